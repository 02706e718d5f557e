"""Statistics within one example, shared by layer, RMS, group and instance norm."""

from collections.abc import Sequence

from jax import Array

from normlab._core.axes import expand, expand_where
from normlab._core.checks import (
    check_epsilon,
    check_flag,
    check_real,
    check_where,
)
from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.moments import moments
from normlab._core.reduction import Over
from normlab._core.standardize import reciprocal_std, standardize

Groups = Sequence[Sequence[int]]

REMEDY = "Reduce over more axes or features, or leave the norm out"


def normalize(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    over: Over,
    features: tuple[int, ...],
    epsilon: float,
    where: Array | None,
    use_fast_variance: bool = False,
) -> Array:
    check_real(x)
    check_epsilon(epsilon)
    check_flag("use_fast_variance", use_fast_variance)
    check_where(where, x.shape)
    wide = float32_or_wider(x)
    scale, bias = (expand(name, a, x.shape, features) for name, a in (("scale", scale), ("bias", bias)))
    where = expand_where(where, x.ndim)
    m = moments(wide, over, where, use_fast_variance=use_fast_variance)
    return standardize(over, wide, m, reciprocal_std(m, epsilon), scale, bias, where).astype(output_dtype(x))
