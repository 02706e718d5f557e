"""Every error says what was expected, what came, and what to do; and comes before any computation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx as flax_nnx

from normlab import functional as F
from normlab import linen, nnx, norms
from normlab.functional import StatisticsError
from normlab.norms import Ramp, UnknownNorm

X = jnp.ones((4, 3, 2, 6))
SIX = jnp.ones(6)
RUNNING = F.RunningStatistics(jnp.zeros(6), jnp.ones(6))


def init(module: Any, x: jax.Array = X) -> Any:
    """Make the variables of a Linen module, by shape alone."""
    return jax.eval_shape(module.init, jax.random.key(0), x)


def call(**options: Any) -> Any:
    """Call a Linen batch norm in training."""
    return init(linen.BatchNorm(use_running_average=False, **options))


def rngs() -> flax_nnx.Rngs:
    """Random streams."""
    return flax_nnx.Rngs(0)


CASES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "groups",
        lambda: F.group_norm(X, num_groups=4),
        ValueError,
        r"`num_groups` to divide the 6 features of `x`, got 4\. Choose one of \[1, 2, 3, 6\]",
    ),
    ("group size", lambda: F.group_norm(X, group_size=5), ValueError, r"`group_size` to divide the 6 features"),
    ("no groups", lambda: F.group_norm(X), ValueError, r"one of `num_groups` and `group_size`, got num_groups=None"),
    ("both groups", lambda: F.group_norm(X, num_groups=2, group_size=3), ValueError, r"one of `num_groups` and"),
    ("default groups", lambda: init(linen.GroupNorm()), ValueError, r"divide the 6 features of `x`, got 32"),
    ("nnx groups", lambda: nnx.GroupNorm(6, rngs=rngs()), ValueError, r"divide the 6 features of `x`, got 32"),
    ("group rank", lambda: F.group_norm(SIX, num_groups=2), ValueError, r"\[batch, \.\.\., features\], got \(6,\)"),
    (
        "scale",
        lambda: F.layer_norm(X, jnp.ones(5)),
        ValueError,
        r"`scale` to have shape \(6,\) \(the feature axes of `x`\), got \(5,\)\. Pass `scale=None` for no scale",
    ),
    ("bias", lambda: F.batch_norm(X, SIX, jnp.ones((1, 6))), ValueError, r"`bias` to have shape \(6,\).*got \(1, 6\)"),
    ("group scale", lambda: F.group_norm(X, jnp.ones(3), num_groups=3), ValueError, r"`scale` to have shape \(6,\)"),
    (
        "running",
        lambda: F.batch_renorm(X, F.RunningStatistics(SIX[:3], SIX), r_max=2.0, d_max=1.0),
        ValueError,
        r"`running\.mean` to have shape \(6,\)",
    ),
    ("given mean", lambda: F.normalize(X, SIX[:3], SIX), ValueError, r"`mean` to have shape \(6,\)"),
    (
        "mask dtype",
        lambda: F.layer_norm(X, where=jnp.ones(6)),
        TypeError,
        r"`where` to be boolean, True where elements count, got float32",
    ),
    (
        "mask shape",
        lambda: F.rms_norm(X, where=jnp.ones(5, bool)),
        ValueError,
        r"`where` to be broadcastable to the shape of `x`, \(4, 3, 2, 6\), got \(5,\)\. Add axes of size 1",
    ),
    ("mask of examples", lambda: F.batch_norm(X, where=jnp.ones(4, bool)), ValueError, r"`where` to be broadcastable"),
    (
        "mask too large",
        lambda: F.group_norm(X[:1], num_groups=2, where=jnp.ones(X.shape, bool)),
        ValueError,
        r"`where` to be broadcastable",
    ),
    ("axis", lambda: F.layer_norm(X, axis=4), ValueError, r"`axis` to lie in \[-4, 4\) for `x` of rank 4, got 4"),
    ("axis twice", lambda: F.rms_norm(X, axis=(-1, 3)), ValueError, r"`axis` to name each axis once, got \(-1, 3\)"),
    ("feature axes", lambda: F.layer_norm(X, feature_axes=-5), ValueError, r"`feature_axes` to lie in \[-4, 4\)"),
    ("batch axis", lambda: F.instance_norm(X, feature_axes=0), ValueError, r"without the first axis, the batch, got 0"),
    (
        "positions",
        lambda: F.instance_norm(jnp.ones((4, 6))),
        StatisticsError,
        r"positions between batch and features.*got \(4, 6\).*Use layer, RMS or group norm",
    ),
    (
        "epsilon",
        lambda: F.layer_norm(X, epsilon=12),
        ValueError,
        r"`epsilon` to lie in \[0, 1\), got 12\. If this is the number of features: Linen",
    ),
    (
        "negative epsilon",
        lambda: F.batch_norm(X, epsilon=-1e-5),
        ValueError,
        r"`epsilon` to lie in \[0, 1\), got -1e-05",
    ),
    ("epsilon kind", lambda: F.rms_norm(X, epsilon=True), TypeError, r"`epsilon` to be a number, got True"),
    ("width for epsilon", lambda: init(linen.LayerNorm(12)), ValueError, r"`epsilon` to lie in \[0, 1\), got 12"),
    (
        "width for a flag",
        lambda: init(linen.BatchNorm(64)),
        TypeError,
        r"`use_running_average` to be True, False or None, got 64\. If this is the number of features: Linen",
    ),
    ("width for a flag in renorm", lambda: init(linen.BatchRenorm(64)), TypeError, r"`use_running_average` to be True"),
    (
        "flag at call",
        lambda: linen.BatchNorm().init(jax.random.key(0), X, 1),
        TypeError,
        r"`use_running_average`.*got 1",
    ),
    ("no mode", lambda: init(linen.BatchNorm()), ValueError, r"in one of them only, got None and None\. Pass False to"),
    (
        "nnx width",
        lambda: nnx.LayerNorm(0, rngs=rngs()),
        ValueError,
        r"`num_features` to be positive whole numbers, got 0",
    ),
    ("complex", lambda: F.layer_norm(X + 1j), TypeError, r"`x` to be real, got complex64\. Normalize `x\.real`"),
    ("complex batch", lambda: F.batch_norm(X + 1j), TypeError, r"`x` to be real"),
    (
        "narrow",
        lambda: init(linen.LayerNorm(force_float32_reductions=False)),
        ValueError,
        r"`force_float32_reductions=True`, got False: statistics are always in float32 or wider",
    ),
    ("narrow batch", lambda: call(force_float32_reductions=False), ValueError, r"`force_float32_reductions=True`"),
    (
        "one element",
        lambda: F.batch_norm(jnp.ones((1, 6))),
        StatisticsError,
        r"more than one element, got one: `x` of shape \(1, 6\) is reduced over axes \(0,\)\. Use a larger batch",
    ),
    (
        "ghost of one",
        lambda: F.batch_norm(jnp.ones((4, 6)), ghost_batch_size=1),
        StatisticsError,
        r"more than one element",
    ),
    (
        "ghost remainder",
        lambda: F.batch_norm(jnp.ones((5, 6)), ghost_batch_size=2),
        StatisticsError,
        r"remainder of more than one element, got 2 for a batch of 5\. Choose a size that divides the batch",
    ),
    ("ghost size", lambda: F.batch_norm(X, ghost_batch_size=0), ValueError, r"positive whole number or None, got 0"),
    (
        "ghost kind",
        lambda: F.batch_norm(X, ghost_batch_size=True),
        ValueError,
        r"positive whole number or None, got True",
    ),
    ("ghost axis", lambda: F.batch_norm(X, axis=1, ghost_batch_size=2), ValueError, r"first axis among the reduced"),
    (
        "unbound axis",
        lambda: F.batch_norm(X, axis_name="devices"),
        ValueError,
        r"`axis_name` 'devices' to be an axis of an enclosing.*not bound here.*leave `axis_name=None`",
    ),
    (
        "groups of devices",
        lambda: F.batch_norm(X, axis_index_groups=[[0, 1]]),
        ValueError,
        r"`axis_name` beside `axis_index_groups`, got None",
    ),
    (
        "r_max",
        lambda: F.batch_renorm(X, RUNNING, r_max=0.5, d_max=1.0),
        ValueError,
        r"`r_max` to be at least 1, got 0\.5",
    ),
    (
        "d_max",
        lambda: F.batch_renorm(X, RUNNING, r_max=2.0, d_max=-1.0),
        ValueError,
        r"`d_max` to be at least 0, got -1",
    ),
    (
        "r_max of a module",
        lambda: init(linen.BatchRenorm(use_running_average=False, r_max=0.9)),
        ValueError,
        r"`r_max` to be",
    ),
    (
        "momentum",
        lambda: call(momentum=1.1),
        ValueError,
        r"`momentum`, the weight of the old value, to lie in \[0, 1\], got 1\.1\. PyTorch's momentum is 1 minus",
    ),
    (
        "nnx momentum",
        lambda: nnx.BatchNorm(6, momentum=-0.1, rngs=rngs()),
        ValueError,
        r"to lie in \[0, 1\], got -0\.1",
    ),
    (
        "statistics",
        lambda: call(statistics="eval"),
        ValueError,
        r"`statistics` to be one of \('auto', 'batch', 'running'\), got 'eval'",
    ),
    ("frozen", lambda: call(frozen=1), TypeError, r"`frozen` to be True, False or None, got 1"),
    ("ramp", lambda: Ramp(1.0, 3.0, begin=5, end=5), ValueError, r"0 <= `begin` < `end`, got 5 and 5"),
    ("norm", lambda: norms.get("bacth"), UnknownNorm, r"among none, batch, .* got 'bacth'\. Did you mean 'batch'\?"),
    ("norm, far", lambda: norms.get("zzz"), UnknownNorm, r"got 'zzz'\.$"),
    (
        "option",
        lambda: norms.get("group:num_group=8").linen(train=True),
        ValueError,
        r"an option of GroupNorm, got 'num_group' for norm 'group'\. Did you mean 'num_groups'\?",
    ),
    (
        "nnx option",
        lambda: norms.get("group:num_group=2").nnx(6, rngs=rngs()),
        ValueError,
        r"got 'num_group' for norm 'group'",
    ),
    (
        "option of none",
        lambda: norms.get("none:epsilon=0.1").linen(train=True),
        ValueError,
        r"got 'epsilon' for norm 'none'",
    ),
    (
        "malformed",
        lambda: norms.get("group:8"),
        ValueError,
        r"options as in 'group:num_groups=8,epsilon=1e-3', got '8'",
    ),
    ("name taken", lambda: norms.register(norms.get("batch").entry), ValueError, r"a new norm name, got 'batch'"),
]


@pytest.mark.parametrize(("make", "kind", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_says_what_was_expected_and_what_came(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        make()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("made", [True, False])
def test_the_mode_is_given_once(made: bool) -> None:
    module = linen.BatchNorm(use_running_average=made)
    with pytest.raises(ValueError, match=rf"in one of them only, got {made} and True\. Pass False to train"):
        module.init(jax.random.key(0), X, use_running_average=True)


def test_groups_of_devices_are_of_equal_size() -> None:
    def f(x: jax.Array) -> jax.Array:
        return F.batch_norm(x, axis_name="d", axis_index_groups=[[0, 1, 2], [3]])[0]

    with pytest.raises(ValueError, match=r"groups of equal size in `axis_index_groups`, got \(\(0, 1, 2\), \(3,\)\)"):
        jax.vmap(f, axis_name="d")(X)
