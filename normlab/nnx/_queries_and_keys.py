"""Norms of queries and keys for NNX."""

from collections.abc import Callable, Sequence

from flax import nnx

from normlab.functional.queries_and_keys import recipe
from normlab.nnx._norm import NormModule
from normlab.nnx._per_example import LayerNorm, RMSNorm
from normlab.nnx._unit import L2Norm

_KINDS: dict[str, Callable[..., NormModule]] = {kind.__name__: kind for kind in (LayerNorm, RMSNorm, L2Norm)}


def qk_norm(
    norm: object, num_features: int | Sequence[int], *, rngs: nnx.Rngs, **options: object
) -> tuple[NormModule, NormModule]:
    """Return norms of queries and of keys; see `normlab.linen.qk_norm`.

    Args:
        norm: `rms`, `layer` or `l2`, perhaps with options in the string.
        num_features: Features of a head, or heads and features.
        rngs: Random streams; `params` is used.
        **options: Further options of both.

    Raises:
        ValueError: If there is no such pair.

    Example:
        >>> query, key = qk_norm("rms", 8, rngs=nnx.Rngs(0))
        >>> query.scale.shape
        (8,)
    """
    kind, of_query, of_key = recipe(norm, options)
    make = _KINDS[kind]
    return make(num_features, rngs=rngs, **of_query), make(num_features, rngs=rngs, **of_key)
