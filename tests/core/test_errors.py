"""Every error says what was expected, what came, and what to do; and comes before any computation."""

import pickle
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
from tests.support.registered import ALL, GROUPED

X = jnp.ones((4, 3, 2, 6))
SIX = jnp.ones(6)
RUNNING = F.RunningStatistics(jnp.zeros(6), jnp.ones(6))
RENORM = F.RenormStatistics(jnp.zeros(6), jnp.ones(6))


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
    (
        "bias",
        lambda: F.batch_norm(X, SIX, jnp.ones((2, 5))),
        ValueError,
        r"`bias` with one value for each feature.*got \(2, 5\)",
    ),
    ("group scale", lambda: F.group_norm(X, jnp.ones(3), num_groups=3), ValueError, r"`scale` to have shape \(6,\)"),
    (
        "running",
        lambda: F.batch_renorm(X, F.RenormStatistics(SIX[:3], SIX), r_max=2.0, d_max=1.0),
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
        "output in 8 bits",
        lambda: init(linen.LayerNorm(dtype=jnp.float8_e5m2)),
        TypeError,
        r"`dtype` to be a real float of 16 bits or more, got float8_e5m2\. Leave it out",
    ),
    (
        "complex parameters",
        lambda: nnx.RMSNorm(6, param_dtype=jnp.complex64, rngs=rngs())(X),
        TypeError,
        r"`param_dtype` of `scale` to be a real float of 16 bits or more, got complex64",
    ),
    (
        "norm that is gone",
        lambda: pickle.loads(pickle.dumps(norms.get("batch")).replace(b"batch", b"gauss")),
        UnknownNorm,
        r"norm 'gauss' to be registered where it is loaded.*Import the module that calls `normlab\.norms\.register`",
    ),
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
        lambda: F.batch_renorm(X, RENORM, r_max=0.5, d_max=1.0),
        ValueError,
        r"`r_max` to be at least 1, got 0\.5",
    ),
    (
        "d_max",
        lambda: F.batch_renorm(X, RENORM, r_max=2.0, d_max=-1.0),
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
        "statistics of batch norm in batch renorm",
        lambda: F.batch_renorm(X, RUNNING),
        TypeError,
        r"`running` to be `RenormStatistics`, got RunningStatistics\. A running standard deviation is",
    ),
    (
        "statistics of batch renorm in batch norm",
        lambda: F.update_batch_norm(RENORM, F.batch_moments(X), momentum=0.9),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"`running` to be `RunningStatistics`, got RenormStatistics\. A running variance is",
    ),
    (
        "unknown option of a norm of NNX",
        lambda: nnx.DyT(6, alpha=1.0, rngs=rngs()),  # pyright: ignore[reportCallIssue]
        TypeError,
        r"Expected an option of DyT, got 'alpha'\. Did you mean `alpha_init`\?",
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


STREAM = (F.OnlineErrors(SIX, SIX), F.initial_streaming((6,)))
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "layer": F.layer_norm,
    "rms": F.rms_norm,
    "group": lambda x: F.group_norm(x, num_groups=2),
    "instance": F.instance_norm,
    "batch": F.batch_norm,
    "renorm": lambda x: F.batch_renorm(x, RENORM),
    "moments": F.batch_moments,
    "inference": lambda x: F.normalize(x, SIX, SIX),
    "online": lambda x: F.online_norm(x, RUNNING, STREAM[0]),
    "online inference": lambda x: F.evaluate_online_norm(x, RUNNING),
    "streaming": lambda x: F.streaming_norm(x, *STREAM[1]),
}
MODULES: dict[str, Callable[[Any], Any]] = {
    f"{api} {name}": call
    for name in ALL
    if name != "none"
    for options in ({"num_groups": 2} if name in GROUPED else {},)
    for api, call in {
        "linen": lambda x, name=name, o=options: init(norms.get(name, **o).linen(train=True), x),
        "linen, evaluating": lambda x, name=name, o=options: init(norms.get(name, **o).linen(train=False), x),
        "nnx": lambda x, name=name, o=options: norms.get(name, **o).nnx(6, rngs=rngs())(x),
    }.items()
}
CELLS: dict[str, Callable[[Any], Any]] = {
    f"{api} {name}": call
    for name in norms.cell_names()
    if name != "none"
    for api, call in {
        "linen": lambda x, n=name: init(linen.RNN(linen.LSTMCell(4, norm=n, use_running_average=False)), x[:, 0]),
        "nnx": lambda x, n=name: nnx.RNN(nnx.GRUCell(6, 4, norm=n, rngs=rngs()), rngs=rngs())(x[:, 0]),
    }.items()
}
NARROW = [jnp.dtype(d) for d in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4", "uint4", "int2")]


@pytest.mark.parametrize("call", [*FUNCTIONS.values(), *MODULES.values()], ids=[*FUNCTIONS, *MODULES])
def test_dtypes_that_no_norm_computes_in(call: Callable[[Any], Any]) -> None:
    for dtype in NARROW:
        message = (
            rf"`x` in a dtype that JAX promotes to float32, got {dtype}\. Cast it, as in `x\.astype\(jnp\.bfloat16\)`"
        )
        with pytest.raises(TypeError, match=message):
            call(X.astype(dtype))
    with pytest.raises(TypeError, match=r"`x` to be real, got complex64\. Normalize `x\.real` and `x\.imag`"):
        call(X + 1j)
    for dtype in (jnp.bool_, jnp.int8, jnp.uint8, jnp.float16):
        jax.eval_shape(call, X.astype(dtype))


@pytest.mark.parametrize("call", CELLS.values(), ids=CELLS)
def test_dtypes_that_no_norm_in_a_cell_computes_in(call: Callable[[Any], Any]) -> None:
    for dtype in NARROW:
        with pytest.raises(
            TypeError, match=rf"`inputs` in a dtype that JAX promotes to float32, got {dtype}\. Cast it"
        ):
            call(X.astype(dtype))
    with pytest.raises(TypeError, match=r"`inputs` to be real, got complex64\. Normalize `inputs\.real`"):
        call(X + 1j)


def recurrent(**options: Any) -> Any:
    """A Linen RNN by shape alone."""
    cell = {k: options.pop(k) for k in ("use_running_average", "norm") if k in options}
    cell = linen.LSTMCell(4, **{"norm": "batch_step", "use_running_average": False, **cell})
    return init(linen.RNN(cell, **options), X[:, 0])


def unrolled(flag: Any) -> Any:
    """One step of a cell as a function."""
    parameters = F.CellParameters(jnp.ones((6, 2)), jnp.ones((2, 2)), jnp.zeros(2))
    return F.unroll(F.SIMPLE, F.cell_norm("none"), parameters, X[:, :, 0], jnp.zeros((3, 2)), train=flag)


def viewed(flag: Any) -> Any:
    """An NNX norm whose mode is set from outside."""
    norm = nnx.BatchNorm(6, rngs=rngs())
    norm.set_view(use_running_average=flag)
    return norm(X)


FLAGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "linen batch": ("use_running_average", lambda f: init(linen.BatchNorm(use_running_average=f))),
    "linen batch, call": (
        "use_running_average",
        lambda f: linen.BatchNorm().init(jax.random.key(0), X, use_running_average=f),
    ),
    "linen renorm": ("use_running_average", lambda f: init(linen.BatchRenorm(use_running_average=f))),
    "linen online": ("use_running_average", lambda f: init(linen.OnlineNorm(use_running_average=f))),
    "linen streaming": ("use_running_average", lambda f: init(linen.StreamingNorm(use_running_average=f))),
    "linen continual": (
        "use_running_average",
        lambda f: init(linen.ContinualNorm(use_running_average=f, num_groups=2)),
    ),
    "linen cell": ("use_running_average", lambda f: recurrent(use_running_average=f)),
    "linen scale": ("use_scale", lambda f: init(linen.LayerNorm(use_scale=f))),
    "linen bias": ("use_bias", lambda f: init(linen.GroupNorm(use_bias=f))),
    "linen fast": ("use_fast_variance", lambda f: init(linen.InstanceNorm(use_fast_variance=f))),
    "linen force": ("force_float32_reductions", lambda f: init(linen.RMSNorm(force_float32_reductions=f))),
    "linen frozen": ("frozen", lambda f: call(frozen=f)),
    "linen unbiased": ("unbiased_running_var", lambda f: call(unbiased_running_var=f)),
    "linen first batch": (
        "initialize_from_first_batch",
        lambda f: init(linen.BatchRenorm(use_running_average=False, initialize_from_first_batch=f)),
    ),
    "linen reverse": ("reverse", lambda f: recurrent(reverse=f)),
    "linen time": ("time_major", lambda f: recurrent(time_major=f)),
    "linen order": ("keep_order", lambda f: recurrent(keep_order=f)),
    "linen carry": ("return_carry", lambda f: recurrent(return_carry=f)),
    "cell option": ("clamp", lambda f: F.cell_norm("batch_step", clamp=f)),
    "nnx batch": ("use_running_average", lambda f: nnx.BatchNorm(6, use_running_average=f, rngs=rngs())),
    "nnx batch, call": ("use_running_average", lambda f: nnx.BatchNorm(6, rngs=rngs())(X, use_running_average=f)),
    "nnx view": ("use_running_average", viewed),
    "nnx online, call": ("use_running_average", lambda f: nnx.OnlineNorm(6, rngs=rngs())(X, use_running_average=f)),
    "nnx frozen": ("frozen", lambda f: nnx.BatchNorm(6, frozen=f, rngs=rngs())),
    "nnx scale": ("use_scale", lambda f: nnx.LayerNorm(6, use_scale=f, rngs=rngs())),
    "nnx cell": (
        "use_running_average",
        lambda f: nnx.LSTMCell(6, 4, norm="batch_step", use_running_average=f, rngs=rngs()),
    ),
    "nnx reverse": (
        "reverse",
        lambda f: nnx.RNN(nnx.GRUCell(6, 4, norm="layer", rngs=rngs()), rngs=rngs())(X[:, 0], reverse=f),
    ),
    "registry": ("train", lambda f: norms.get("batch").linen(train=f)),
    "fast layer": ("use_fast_variance", lambda f: F.layer_norm(X, use_fast_variance=f)),
    "fast batch": ("use_fast_variance", lambda f: F.batch_norm(X, use_fast_variance=f)),
    "unbiased update": (
        "unbiased_running_var",
        lambda f: F.update_batch_norm(RUNNING, F.batch_moments(X), momentum=0.9, unbiased_running_var=f),
    ),
    "unroll": ("train", unrolled),
}


@pytest.mark.parametrize(("flag", "call"), FLAGS.values(), ids=FLAGS)
def test_a_traced_flag_is_told_apart_from_a_width(flag: str, call: Callable[[Any], Any]) -> None:
    message = rf"`{flag}` to be True, False or None when the function is traced.*`static_argnames`"
    with pytest.raises(TypeError, match=message) as raised:
        jax.jit(call)(True)
    assert "number of features" not in str(raised.value).splitlines()[0]
