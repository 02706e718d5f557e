"""A model that adapts to each batch before it predicts the batch."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from flax import linen as nn
from flax import nnx

from normlab import expect
from normlab.errors import BadInput
from normlab.expect import refusal
from normlab.extras import importing
from normlab.introspect.applied import Variables, check_model
from normlab.introspect.calls import Module
from normlab.tools.adaptation.blend import BATCH, Blend
from normlab.tools.adaptation.descent import Descent
from normlab.tools.adaptation.network import Batch, Caller, Network, evaluating
from normlab.tools.adaptation.predictions import are_logits, entropy, largest_share
from normlab.tools.adaptation.record import Record, has_collapsed
from normlab.tools.averaging import Unestimated, without_check
from normlab.tools.batches import Call, default_call
from normlab.tools.estimation.changes import changes
from normlab.tools.estimation.collecting import Given
from normlab.tools.moments import Moments
from normlab.tools.select import Where

if TYPE_CHECKING:
    import optax

__all__ = ["Adaptation", "Adapter"]

Adaptation: TypeAlias = Literal["adabn", "prediction_time", "blended", "tent"]
"""`adabn`: statistics of all batches so far. `prediction_time`: of this batch. `blended`: between those that the model
keeps and those of this batch. `tent`: of this batch, and scale and bias learn from it."""

_OF_TENT = {"optimizer": None, "steps": 1, "after": False}
_OF_BLENDED = {"alpha": None, "source_count": None, "between": False}


class _State(NamedTuple):
    """All that adaptation changes."""

    variables: Variables
    moments: Moments
    optimizer: "optax.OptState" = ()


class Adapter:
    """A model that adapts to each batch, then predicts it.

    The model and variables that were given stay as they are. The model is called as at evaluation, and compiled once
    for each shape of a batch.

    Attributes:
        curve: A record of each batch since the start or the last `reset`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)
        >>> x = jnp.array([[8.0], [12.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> adapter = Adapter(model, variables, "prediction_time")
        >>> adapter(x).round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)
        >>> adapter.curve[0].shift
        10.0
    """

    def __init__(
        self,
        model: Module,
        variables: Given,
        method: Adaptation,
        *,
        optimizer: "optax.GradientTransformation | None" = None,
        steps: int = 1,
        episodic: bool = False,
        evaluate: Mapping[str, object] | None = None,
        where: Where = None,
        seed: int = 0,
        call: Call = default_call,
        alpha: float | None = None,
        source_count: float | None = None,
        between: bool = False,
        after: bool = False,
    ) -> None:
        """Prepare a model.

        Args:
            model: A module of Linen or NNX.
            variables: Variables of a Linen model; `None` for NNX.
            method: How the model adapts; see `Adaptation`.
            optimizer: Of `tent`: an optimizer of optax; `None` is `optax.sgd(1e-3)`.
            steps: Of `tent`: steps for each batch.
            episodic: Whether each batch starts from the model as it was given.
            evaluate: Keywords of a call at evaluation, such as `{"train": False}`; `None` finds them in the signature.
            where: Norms that adapt: a glob over their paths, several globs, or a function of a `Site`; `None` is all
                batch norms that are not frozen. With `tent` also others, whose scale and bias then learn.
            seed: Of the random stream `dropout` of a Linen model that draws at evaluation, too.
            call: `batch -> (args, kwargs)` of the model.
            alpha: Of `blended`: weight of the batch.
            source_count: Of `blended`: examples N that the running statistics count as; a batch of n examples has the
                weight n / (n + N).
            between: Of `blended`: whether the variance counts the distance of the two means, too.
            after: Of `tent`: whether predictions are made after the last step, by another pass, and not those that the
                last step learned from.

        Raises:
            BadInput: If an argument is of another kind, or belongs to another method.
        """
        check_model(model)
        if method not in get_args(Adaptation):
            raise BadInput(f"Expected `method` to be one of {get_args(Adaptation)}, got {method!r}. Choose one.")
        self._method: Adaptation = method
        _check_own(method, "tent", _OF_TENT, {"optimizer": optimizer, "steps": steps, "after": after})
        blend = {"alpha": alpha, "source_count": source_count, "between": between}
        _check_own(method, "blended", _OF_BLENDED, blend)
        self._blend = Blend(alpha, source_count, between) if method == "blended" else BATCH
        self._steps, self._after = expect.WHOLE.of("`steps`", steps), expect.SWITCH.of("`after`", after)
        self._episodic, self._where = expect.SWITCH.of("`episodic`", episodic), where
        if method == "tent" and episodic and steps == 1 and not after:
            raise BadInput(
                "Expected `after=True` or several `steps` with `episodic=True`, got one step whose outputs come before "
                "it: nothing would be learned. Give `after=True`."
            )
        self._optimizer = _checked(optimizer) if method == "tent" else None
        self._caller = Caller(model, call, evaluate, expect.COUNT.of("`seed`", seed))
        self._given = model if isinstance(model, nn.Module) else nnx.clone(model)
        if isinstance(variables, Unestimated) and (method == "blended" or where is not None):
            iter(variables)  # which refuses: statistics of other weights would normalize
        self._model, given = evaluating(model, without_check(variables))
        self._start = self._state = _State(given, Moments())
        self._network: Network | None = None
        self._descent: Descent | None = None
        self.curve: list[Record] = []

    def __call__(self, batch: object) -> Any:
        """Adapt to a batch, and return the output of the model for it.

        Args:
            batch: A batch of data without labels, as `call` takes it.

        Returns:
            The output of the model.

        Raises:
            BadInput: If the model has no norm that adapts, or an input of a norm is not finite.
            StatisticsError: If the batch alone counts, and has one element per statistic.
        """
        started = time.perf_counter()
        given = self._caller(batch, len(self.curve))
        network = self._network = self._network or self._prepared(given)
        state = self._start if self._episodic else self._state
        output, moments, self._state = self._adapted(network, state, given)
        self.curve.append(self._record(output, moments, given, started))
        return output

    @property
    def variables(self) -> Variables:
        """Variables after the last batch: of a Linen model all, of an NNX model its state.

        `adabn` moves running statistics, `tent` scale and bias; `prediction_time` and `blended` move nothing.
        """
        return self._state.variables

    @property
    def model(self) -> Module:
        """The model after the last batch: the given one for Linen, a copy for NNX."""
        if isinstance(self._given, nn.Module):
            return self._given
        twin = nnx.clone(self._given)
        nnx.update(twin, self.variables)
        return twin

    @property
    def collapsed(self) -> bool:
        """Whether over 0.9 of the predictions were one class in three batches in a row.

        Adaptation that has collapsed does not recover: `reset`, and adapt to larger batches that mix the classes.
        """
        return has_collapsed(self.curve)

    def reset(self) -> None:
        """Go back to the start: variables and the state of the optimizer as they were, and an empty curve."""
        self._state, self.curve = self._start, []

    def _prepared(self, batch: Batch) -> Network:
        """Find the norms that adapt, and start the optimizer."""
        tent, start = self._method == "tent", self._start.variables
        network = Network(self._model, start, batch, blend=self._blend, where=self._where, affine=tent)
        if self._optimizer is not None:
            self._descent = Descent(self._model, network.blending, _affine(network), self._optimizer)
            self._start = self._state = self._start._replace(optimizer=self._descent.start(start))
        return network

    def _adapted(self, network: Network, state: _State, batch: Batch) -> tuple[object, Moments, _State]:
        """Return output and moments of a batch, and all that adaptation changed."""
        for _ in range(self._steps if self._after else self._steps - 1):
            state = self._stepped(state, batch)
        output, moments = network(state.variables, batch)
        if self._method == "adabn":
            total = state.moments + moments
            state = state._replace(moments=total, variables=total.apply(self._start.variables))
            output = network.evaluated(state.variables, batch)
        return output, moments, state if self._after else self._stepped(state, batch)

    def _stepped(self, state: _State, batch: Batch) -> _State:
        """Let scale and bias learn from a batch, where there is an optimizer."""
        if self._descent is None:
            return state
        variables, optimizer = self._descent(state.variables, state.optimizer, batch.args, batch.kwargs, batch.rngs)
        return state._replace(variables=variables, optimizer=optimizer)

    def _record(self, output: object, moments: Moments, batch: Batch, started: float) -> Record:
        """Return the record of a batch."""
        start, nan = self._start.variables, float("nan")
        logits = are_logits(output)
        shift = changes(moments, moments.apply(start), start)
        return Record(
            step=batch.number,
            entropy=float(entropy(output)) if logits else nan,
            shift=max(shift.values(), default=0.0),
            examples=batch.examples,
            seconds=time.perf_counter() - started,
            share=largest_share(output) if logits else nan,
        )


def _check_own(method: str, owner: str, defaults: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Refuse arguments that another method has.

    Raises:
        BadInput: If there is one.
    """
    for name, value in given.items():
        if method != owner and value is not defaults[name] and value != defaults[name]:
            raise BadInput(f"Expected `{name}` with the method '{owner}' alone, got it with '{method}'. Leave it out.")


def _checked(optimizer: object) -> "optax.GradientTransformation":
    """Return an optimizer; the default for `None`.

    Raises:
        BadInput: If it is none of optax.
    """
    with importing("tools"):
        import optax
    if optimizer is None:
        return optax.sgd(1e-3)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise refusal("`optimizer` to be an optimizer of optax", optimizer, "Write one such as `optax.sgd(1e-3)`.")
    return optimizer


def _affine(network: Network) -> list[str]:
    """Return the paths of scale and bias of the norms that adapt.

    Raises:
        BadInput: If there is none.
    """
    roles = ("scale", "bias")
    paths = [site.variables[role] for site in network.norms for role in roles if role in site.variables]
    if not paths:
        raise BadInput(
            f"Expected norms with a scale or a bias to learn, got none in `{network.norms[0].path}` and the like. Take "
            "'prediction_time', which needs neither."
        )
    return paths
