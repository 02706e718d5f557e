"""The registry of norms of kernels, and models whose kernels are normalized outside of them.

A norm of kernels normalizes the weights of a layer, and not its activations. It is a value, a pure function of a raw
kernel, its parameters and its state:

>>> import jax.numpy as jnp
>>> norm = get("weight_norm")
>>> kernel, state = norm(jnp.array([[3.0], [4.0]]), {"g": jnp.array([10.0])})
>>> kernel.ravel()
Array([6., 8.], dtype=float32)

`normlab.linen.Reparametrized` and `normlab.nnx.Reparametrized` give it to a layer. Norms of your own join with
`register`.
"""

from collections.abc import Mapping
from typing import Any

from normlab.functional.kernels import ACTIVATION_GAINS, KernelNorm, get, kinds, names, register, unregister

__all__ = [
    "ACTIVATION_GAINS",
    "KernelNorm",
    "apply",
    "fold",
    "get",
    "initialize_weight_norm",
    "names",
    "register",
    "table",
    "unregister",
]


def table() -> str:
    """Return the norms of kernels as a table in Markdown, a row each, as in the documentation."""
    rows = [("name", "kernel", "statistics over", "parameters", "state", "paper"), ("---",) * 6]
    for kind in kinds():
        paper = f"[{kind.paper}]({kind.url})" if kind.url else kind.paper
        own = [", ".join(f"`{name}`" for name in names) for names in (kind.parameter_names, kind.state_names)]
        rows.append((f"`{kind.name}`", kind.formula, kind.over, *own, paper))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("  ", " ")


def apply(
    model: Any, variables: Mapping[str, Any] | None = None, *inputs: object, update_stats: bool = False, **options: Any
) -> Any:
    """Normalize all kernels of a model at once, as for several microbatches of one step.

    The result is for the plain model: the same one with the norm `none` in Linen, and the model that is returned in
    NNX. Gradients flow through it to the raw kernels and the norms' parameters.

    Args:
        model: A model of Linen or NNX with `Reparametrized` layers or standardized ones.
        variables: Linen: the variables, as from `model.init`. Kernels of layers in `nn.scan` and `nn.vmap` are stacked
            along the first axis.
        *inputs: Linen: inputs of a call of the model; only shapes are computed.
        update_stats: Whether the state of norms is replaced, as in a training step.
        **options: Linen: keyword arguments of the call, such as `train=True` or `rngs`.

    Returns:
        Linen: variables with normalized kernels, without the norms' parameters, with their state after it. NNX: a model
        in which the layers stand for themselves; it shares all variables but the kernels with `model`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from normlab.linen import Reparametrized
        >>> x = jnp.ones((1, 3))
        >>> model, plain = (Reparametrized(nn.Dense(2), norm) for norm in ("weight_norm", "none"))
        >>> variables = model.init(jax.random.key(0), x)
        >>> bool(jnp.allclose(plain.apply(apply(model, variables, x), x), model.apply(variables, x)))
        True
    """
    if not _is_linen(model):
        from normlab.nnx import _kernels

        return _kernels.normalized(model, update_stats=update_stats)
    from normlab.linen import _kernels

    return _kernels.normalized(model, variables or {}, inputs, options, update_stats=update_stats, keep_state=True)


def fold(model: Any, variables: Mapping[str, Any] | None = None, *inputs: object, **options: Any) -> Any:
    """Replace raw kernels by the normalized ones for good, as to export a trained model.

    Args:
        model: See `apply`.
        variables: See `apply`.
        *inputs: See `apply`.
        **options: See `apply`.

    Returns:
        Linen: variables of the plain model, the same one with the norm `none`: no parameters and no state of norms of
        kernels. NNX: a model that shares nothing with `model`, in which the layers stand for themselves.

    Example:
        >>> from flax import nnx
        >>> from normlab.nnx import Reparametrized
        >>> layer = Reparametrized(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "spectral_norm")
        >>> type(fold(layer)).__name__
        'Linear'
    """
    if not _is_linen(model):
        from flax import nnx

        from normlab.nnx import _kernels

        return _kernels.normalized(nnx.clone(model), update_stats=False)
    from normlab.linen import _kernels

    return _kernels.normalized(model, variables or {}, inputs, options, update_stats=False, keep_state=False)


def initialize_weight_norm(model: Any, *inputs: object, **options: Any) -> Any:
    """Choose `g` and the bias of each layer with weight norm so that its output is standardized on a batch.

    The first layer sees the batch, each later one the outputs that the layers before it have then (Salimans & Kingma,
    2016, section 3). The call is not to be compiled. Layers without a bias keep their mean.

    Args:
        model: A model of Linen or NNX. Each layer with weight norm is called once.
        *inputs: Linen: the variables, as from `model.init`, then the inputs of a call. NNX: the inputs of a call.
        **options: Keyword arguments of the call.

    Returns:
        Linen: new variables. NNX: `model`, whose parameters are replaced.

    Raises:
        ValueError: If a layer is called twice.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from normlab.nnx import Reparametrized
        >>> layer = Reparametrized(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "weight_norm")
        >>> x = jax.random.normal(jax.random.key(0), (64, 3))
        >>> initialize_weight_norm(layer, x)(x).std(0).round(3)
        Array([1., 1.], dtype=float32)
    """
    if not _is_linen(model):
        from normlab.nnx import _kernels

        _kernels.initialize(model, inputs, options)
        return model
    from normlab.linen import _kernels

    variables, *rest = inputs
    assert isinstance(variables, Mapping)
    return _kernels.initialized(model, variables, tuple(rest), options)


def _is_linen(model: object) -> bool:
    """Check which of Flax's kinds a model is; the other kind is not imported."""
    from flax import linen

    return isinstance(model, linen.Module)
