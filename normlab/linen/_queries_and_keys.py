"""Norms of queries and keys for Linen."""

from collections.abc import Callable

from normlab.functional.queries_and_keys import recipe
from normlab.linen._norm import NormModule
from normlab.linen._per_example import LayerNorm, RMSNorm
from normlab.linen._unit import L2Norm

_KINDS: dict[str, Callable[..., NormModule]] = {kind.__name__: kind for kind in (LayerNorm, RMSNorm, L2Norm)}


def qk_norm(norm: object = "rms", **options: object) -> tuple[NormModule, NormModule]:
    """Return norms of queries and of keys, for attention after heads are split and before positions are rotated.

    Their names are `query_norm` and `key_norm`. By default they act on `[..., heads, features]` over the features of
    one head, with a scale that heads share.

    Args:
        norm: `rms` (Qwen3, Gemma 3); `layer`, which has no bias (ViT-22B, Flax's `normalize_qk`); or `l2`, without a
            scale, whose query has a `temperature` (Henry et al., 2020); perhaps with options in the string. A
            `normlab.norms.Norm` serves as well.
        **options: Further options of both. `reduction_axes=(-2, -1), feature_axes=(-2, -1)` is over heads and features
            (OLMo 2).

    Raises:
        ValueError: If there is no such pair.

    Example:
        >>> query, key = qk_norm("layer:epsilon=1e-5")
        >>> query.name, key.name, query.use_bias
        ('query_norm', 'key_norm', False)
    """
    kind, of_query, of_key = recipe(norm, options)
    make = _KINDS[kind]
    return make(name="query_norm", **of_query), make(name="key_norm", **of_key)
