"""Lower the entropy of a model's predictions by scale and bias of norms.

References:
    Wang et al. Tent: Fully Test-Time Adaptation by Entropy Minimization. ICLR 2021. https://arxiv.org/abs/2006.10726
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
from flax import linen as nn
from jax import Array

from normlab.expect import refusal
from normlab.introspect.applied import Static, Variables, applied, partitioned
from normlab.introspect.calls import Hook, Module
from normlab.tools import leaves
from normlab.tools.adaptation.predictions import are_logits, entropy

if TYPE_CHECKING:
    import optax

__all__ = ["Descent"]

Affine: TypeAlias = dict[str, Array]


class Descent:
    """Compiled steps of gradient descent on the entropy of predictions."""

    def __init__(
        self, model: Module, hook: Hook, parameters: Collection[str], optimizer: "optax.GradientTransformation"
    ) -> None:
        """Prepare the steps.

        Args:
            model: The model, in evaluation mode where it is of NNX.
            hook: Stands around the calls of norms.
            parameters: Paths of the parameters that move.
            optimizer: The optimizer.
        """
        self._model, self._hook, self._parameters, self._optimizer = model, hook, tuple(parameters), optimizer
        self._own = None if isinstance(model, nn.Module) else applied(model, None, hook)
        self._compiled = jax.jit(self._step, static_argnums=0)

    def start(self, variables: Variables) -> "optax.OptState":
        """Return the state of the optimizer before the first step."""
        return self._optimizer.init(self._affine(variables))

    def __call__(
        self,
        variables: Variables,
        state: "optax.OptState",
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        rngs: Mapping[str, Array],
    ) -> tuple[Variables, "optax.OptState"]:
        """Return variables and the state of the optimizer after a step.

        Raises:
            BadInput: If the output of the model is no array of logits.
        """
        arrays, joined, key = partitioned((args, kwargs))
        affine, state = self._compiled(Static(key, joined), variables, state, arrays, rngs)
        return _with(variables, affine), state

    def _affine(self, variables: Variables) -> Affine:
        there = leaves.by_path(variables)
        return {path: jax.numpy.asarray(there[path]) for path in self._parameters}

    def _step(
        self, static: Static, variables: Any, state: "optax.OptState", arrays: list[Array], rngs: Mapping[str, Array]
    ) -> tuple[Affine, "optax.OptState"]:
        """Return the parameters and the state of the optimizer after a step."""
        import optax

        model = self._own or applied(self._model, variables, self._hook)
        args, kwargs = static.joined(arrays)

        def loss(affine: Affine) -> Array:
            output, _ = model.call(_with(variables, affine), args, kwargs, rngs)
            if not are_logits(output):
                raise refusal("logits, an array `[batch, ..., classes]`", output, "Let the model return logits alone.")
            return entropy(output)

        affine = self._affine(variables)
        updates, state = self._optimizer.update(jax.grad(loss)(affine), state, affine)
        return cast(Affine, optax.apply_updates(affine, updates)), state


def _with(variables: Variables, affine: Affine) -> Variables:
    """Return variables with other parameters at some paths."""
    return leaves.mapped(lambda path, leaf: affine[path] if path in affine else leaf, variables)
