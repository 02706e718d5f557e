"""Filter response norm, EvoNorm and global response norm: published numbers, identities, masks, devices, errors."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab import functional as F
from normlab import linen, norms
from normlab.functional import StatisticsError
from tests.support import references

NAMES = ("frn", *(f"evonorm_{kind}{i}" for kind in "bs" for i in range(3)), "grn")
SMALL = {name: f"{name}:num_groups=2" if "_s" in name else name for name in NAMES}
X = np.array("0.5 -1.2 2 .3 1.5 .4 -.7 1.1 -.8 2.2 .9 -1.6 .2 -.5 1.3 .6".split(), float).reshape(2, 2, 4)
DY = np.array(".3 -.7 .2 .5 -.4 .6 .1 -.2 .8 .1 -.3 .4 -.6 .9 -.5 .7".split(), float).reshape(2, 2, 4)
VARIABLES = {
    "scale": np.array([1.1, 0.9, 1.2, 0.8]),
    "bias": np.array([0.1, -0.2, 0.3, 0.0]),
    "tau": np.array([0.0, 0.2, -0.1, 0.1]),
    "v": np.array([0.5, 1.0, 1.5, 2.0]),
    "e": np.array(1e-4 - 1e-6),
    "var": np.array([0.9, 1.2, 0.7, 1.1]),
}
VECTORS: dict[tuple[str, bool, int], tuple[str, str]] = {
    ("frn", True, 2): (
        (
            ".59193476 .2 1.90178039 .29768313 1.57580427 .20249198 -.1 1.09150482 0 1.04114125 1.26598098 .1 "
            ".47729633 .2 1.69530586 .39725069 "
        ),
        (
            ".38370904 .18112117 .01748052 .51216762 -.12790325 .54336425 .04994413 -.13968218 -.26632604 "
            ".00277092 .03348706 .15237002 -1.06530749 .01219195 -.02318395 .40632038 "
        ),
    ),
    ("frn:nonlinear=False,learn_epsilon=True", True, 1): (
        ("1.19978007 -1.09996875 1.49998500 .79955593 -.99991407 .69999070 1.49992593 -.79998438 "),
        "",
    ),
    ("evonorm_b0", True, 2): (
        (
            ".77067685 -1.04803490 .85172367 .23477455 1.41998944 .08267830 -.54771325 .33845991 -.97308296 "
            ".35774590 .99676296 -1.25213094 .36827074 -.55334788 1.02557296 .20869524 "
        ),
        (
            ".23683901 -.39689401 .02872103 .39662114 .42018575 .41200778 .09979063 .09528674 .72328905 "
            "-.13375229 -.18120855 .18883730 -.85043751 .69363607 .13498709 .13055696 "
        ),
    ),
    ("evonorm_b0", False, 2): (
        (
            ".67974768 -1.18589650 .85172367 .22882998 1.41998944 .09999844 -.70398486 .33845991 -.82759629 "
            ".35774590 .99676296 -1.22042657 .33189907 -.61079021 1.02557296 .20869524 "
        ),
        "",
    ),
    ("evonorm_s0:num_groups=2", True, 2): (
        (
            ".41976229 -.45853547 2.59551091 .15559011 1.25893712 .02289210 .08136198 .79545370 -.20206416 "
            "1.32462170 1.06254974 -.04457272 .19878677 -.34531494 1.51424773 .32798361 "
        ),
        (
            ".21568807 -.03295953 .14334042 .34809185 -.36642759 .38942315 .13029611 -.21449503 .17482365 "
            ".18282504 -.25082028 -.25747344 -.31426852 .14057780 -.45710259 .52593907 "
        ),
    ),
    ("evonorm_b1", True, 2): (
        (
            ".42795532 -1.04803490 .83392573 .22898544 .69031958 .08267830 -.54771325 .51976060 -.97308296 "
            ".18785596 .80840921 -1.25213094 .36827074 -.55334788 .90665254 .24828092 "
        ),
        "",
    ),
}
"""Outputs and gradients in float64 by norm, whether it trains, and positions."""

WHERE = np.array([[[1], [1]], [[1], [0]], [[0], [1]]], bool)
MORE = np.random.default_rng(3).normal(size=(3, 2, 4))


def variables_of(norm: str) -> dict[str, Any]:
    """The variables of a norm for four features, those above by name."""
    shapes = jax.eval_shape(norms.get(norm).linen(train=True).init, jax.random.key(0), jnp.zeros((2, 2, 4)))
    return {part: {name: jnp.asarray(VARIABLES[name]) for name in names} for part, names in shapes.items()}


def apply(norm: str, x: Any, train: bool = True, mask: Any = None) -> tuple[jax.Array, Any]:
    module = norms.get(norm).linen(train=train)
    return module.apply(variables_of(norm), jnp.asarray(x), mask=mask, mutable=["batch_stats"])


def expected(norm: str, x: np.ndarray, where: np.ndarray | None = None, **options: Any) -> Any:
    spec = norms.get(norm)
    return references.NORMS[spec.name](x, VARIABLES, where, **{**spec.options, **options})


@pytest.mark.parametrize(("norm", "train", "positions"), VECTORS)
def test_vectors(norm: str, train: bool, positions: int) -> None:
    y, dx = (np.array(text.split(), float) for text in VECTORS[norm, train, positions])
    x = X[:, :positions]
    np.testing.assert_allclose(apply(norm, x.astype(np.float32), train)[0].ravel(), y, rtol=2e-6, atol=2e-7)
    with jax.enable_x64(True):
        found, pull = jax.vjp(lambda x: apply(norm, x, train)[0], jnp.asarray(x))
        np.testing.assert_allclose(found.ravel(), y, atol=6e-9)
        if dx.size:
            np.testing.assert_allclose(pull(jnp.asarray(DY))[0].ravel(), dx, atol=6e-9)


@pytest.mark.parametrize("norm", SMALL.values())
def test_gradients_with_random_cotangents_are_central_differences_of_the_reference(norm: str) -> None:
    along = np.random.default_rng(4).normal(size=X.shape)
    after, before = (expected(norm, X + step * along)[0] for step in (1e-6, -1e-6))
    with jax.enable_x64(True):
        pull = jax.vjp(lambda x: apply(norm, x)[0], jnp.asarray(X))[1]
        np.testing.assert_allclose(
            (pull(jnp.asarray(DY))[0] * along).sum(), (DY * (after - before) / 2e-6).sum(), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("norm", [n for n in NAMES if norms.get(n).stateful])
def test_evaluation_takes_the_running_variance_and_the_mask(norm: str) -> None:
    y, after = apply(norm, np.where(WHERE, MORE, np.nan), train=False, mask=jnp.asarray(WHERE[..., :1]))
    right, _ = expected(norm, np.where(WHERE, MORE, 0), WHERE, train=False)
    np.testing.assert_allclose(np.where(WHERE, y, 0), np.where(WHERE, right, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after["batch_stats"]["var"], VARIABLES["var"].astype(np.float32))


@pytest.mark.parametrize("norm", [n for n in NAMES if norms.get(n).stateful])
def test_the_running_variance_is_biased_unless_asked_for(norm: str) -> None:
    for option, factor in (("unbiased_running_var=False", 1.0), ("unbiased_running_var=True", 4 / 3)):
        _, after = apply(f"{norm}:momentum=0.9,{option}", X)
        right = 0.9 * VARIABLES["var"] + 0.1 * X.var((0, 1)) * factor
        np.testing.assert_allclose(after["batch_stats"]["var"], right, rtol=1e-6)


@pytest.mark.parametrize("norm", ["evonorm_b0", "evonorm_b2"])
def test_ghost_batches_are_those_of_the_reference(norm: str) -> None:
    x = np.random.default_rng(5).normal(size=(5, 3, 4))
    y, after = apply(f"{norm}:ghost_batch_size=2", x)
    right, state = expected(norm, x, ghost_batch_size=2)
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["batch_stats"]["var"], state["var"], rtol=1e-5)


@pytest.mark.parametrize("norm", NAMES)
def test_devices_are_the_whole(norm: str) -> None:
    """Devices have examples of a norm over the batch, and positions of another."""
    text = SMALL[norm] + (":" if SMALL[norm] == norm else ",") + "axis_name='d'"
    x = jnp.asarray(np.random.default_rng(6).normal(size=(4, 4, 4)), jnp.float32)
    place = 0 if norms.get(norm).needs_batch else 1
    parts = jnp.stack(jnp.split(x, 2, place))
    y, after = jax.vmap(functools.partial(apply, text), axis_name="d")(parts)
    whole, state = apply(SMALL[norm], x)
    np.testing.assert_allclose(jnp.concatenate(list(y), place), whole, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5), after, state)


@pytest.mark.parametrize("norm", [n for n in NAMES if not norms.get(n).needs_batch])
def test_examples_are_independent_to_the_bit(norm: str) -> None:
    run = jax.jit(lambda x: apply(SMALL[norm], x)[0])
    both = jnp.asarray(X, jnp.float32)
    np.testing.assert_array_equal(run(both)[0], run(both.at[1].set(7.0))[0])


@pytest.mark.parametrize("norm", [n for n in NAMES if n.startswith("evonorm")])
def test_without_the_activation_evonorm_is_scale_and_bias(norm: str) -> None:
    linear = norms.get(SMALL[norm]).linear
    assert not linear.activates
    variables = linear.linen(train=True).init(jax.random.key(0), jnp.asarray(X[:, 0]))  # positions are not needed
    assert variables.keys() == {"params"} and variables["params"].keys() == {"scale", "bias"}
    y, _ = apply(str(linear), X)
    np.testing.assert_allclose(y, X * VARIABLES["scale"] + VARIABLES["bias"], rtol=1e-6)


def test_filter_response_norm_is_rms_norm_over_positions() -> None:
    x, scale, bias = jnp.asarray(X), jnp.asarray(VARIABLES["scale"]), jnp.asarray(VARIABLES["bias"])
    uncentred = F.rms_norm(x, scale, axis=1, feature_axes=-1) + bias
    np.testing.assert_allclose(F.frn(x, scale, bias), uncentred, rtol=1e-6, atol=1e-7)
    tau = jnp.asarray(VARIABLES["tau"])
    np.testing.assert_allclose(F.frn(x, scale, bias, tau=tau), jnp.maximum(uncentred, tau), rtol=1e-6, atol=1e-7)


def test_a_learned_epsilon_takes_one_position_and_a_gradient() -> None:
    """The derivative by `e` is that of the formula, and `e` counts by its size."""
    x, e = jnp.asarray(X[:, 0]), jnp.asarray(-1e-2)
    np.testing.assert_allclose(F.frn(x, e=e), x / jnp.sqrt(x**2 + 1e-6 + 1e-2), rtol=1e-6)
    slope = jax.grad(lambda e: F.frn(x, e=e).sum())(e)
    np.testing.assert_allclose(slope, (0.5 * X[:, 0] * (X[:, 0] ** 2 + 1e-6 + 1e-2) ** -1.5).sum(), rtol=1e-5)
    module = linen.FRN(learn_epsilon="per_feature")
    assert jnp.shape(module.init(jax.random.key(0), x)["params"]["e"]) == (4,)  # pyright: ignore[reportArgumentType]


def test_global_response_norm_starts_as_the_identity_and_has_gradients_at_zero() -> None:
    module, x = norms.get("grn").linen(train=True), jnp.asarray(X, jnp.float32).at[..., 1].set(0.0)
    y, _ = module.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)
    ours = norms.get("grn").nnx(4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(ours(x), x)
    dx = jax.grad(lambda x: (F.grn(x, jnp.ones(4), jnp.ones(4)) * DY).sum())(x)
    assert np.isfinite(dx).all() and np.any(dx)


def test_features_that_a_mask_hides_have_no_response() -> None:
    where = jnp.asarray([True, True, False, True])
    x = jnp.where(where, jnp.asarray(X), jnp.nan)
    left_out = F.grn(jnp.asarray(X[..., [0, 1, 3]]))
    np.testing.assert_allclose(F.grn(x, where=where)[..., jnp.asarray([0, 1, 3])], left_out, rtol=1e-6)


@pytest.mark.parametrize("norm", NAMES)
def test_nnx_is_linen_and_pickles(norm: str) -> None:
    module = norms.get(SMALL[norm]).nnx(4, rngs=nnx.Rngs(0))
    state = nnx.state(module)
    for (name,), variable in nnx.to_flat_state(state):
        variable.set_value(jnp.asarray(VARIABLES[str(name)], jnp.float32))
    nnx.update(module, state)
    again = pickle.loads(pickle.dumps(module))
    y, _ = apply(SMALL[norm], X.astype(np.float32))
    for each in (module, again):
        np.testing.assert_allclose(each(jnp.asarray(X, jnp.float32)), y, rtol=1e-6, atol=1e-7)


WRONG = [
    ("frn", (4, 8), StatisticsError, "positions between batch and features.*got .4, 8.*Learn epsilon"),
    ("frn", (4, 1, 8), StatisticsError, "more than one element, got one.*Learn epsilon"),
    ("frn:feature_axes=0", (4, 2, 8), ValueError, "`feature_axes` without the first axis"),
    ("frn:nonlinear=1", (4, 2, 8), TypeError, "`nonlinear` to be True, False or None, got 1"),
    ("evonorm_b0", (4, 8), StatisticsError, "positions between batch and features.*`nonlinear=False`"),
    ("evonorm_b1", (4, 1, 8), StatisticsError, "more than one element, got one.*evonorm_s0"),
    ("evonorm_b0:axis=0", (4, 2, 8), ValueError, "`axis` without the first axis"),
    ("evonorm_s0:num_groups=3", (4, 2, 8), ValueError, r"`num_groups` to divide the 8 features of `x`, got 3. Choose"),
    ("evonorm_s1:num_groups=8", (4, 8), StatisticsError, "more than one element, got one.*Use fewer groups"),
    ("grn:feature_axes=(0, 2)", (4, 2, 8), ValueError, "`feature_axes` without the first axis"),
    ("group:feature_axes=(1, 2)", (4, 32, 32), ValueError, "`feature_axes` to be one axis"),
    ("group:feature_axes=0", (32, 4, 2), ValueError, "`feature_axes` without the first axis"),
]


@pytest.mark.parametrize(("norm", "shape", "kind", "message"), WRONG)
def test_what_is_wrong_is_one_line(norm: str, shape: tuple[int, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        jax.eval_shape(norms.get(norm).linen(train=True).init, jax.random.key(0), jnp.zeros(shape))
    assert "\n" not in str(raised.value)


def test_a_variant_is_no_option_of_a_norm_and_must_be_known() -> None:
    with pytest.raises(ValueError, match="option of EvoNormBatch, got 'variant' for norm 'evonorm_b0'"):
        norms.get("evonorm_b0", variant="b1").linen(train=True)
    with pytest.raises(ValueError, match=r"`variant` to be one of \('s0', 's1', 's2'\), got 'b0'"):
        F.evonorm_sample(jnp.asarray(X), num_groups=2, variant="b0")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("norm", ["group", "evonorm_s0"])
def test_groups_on_any_axis_are_groups_on_the_last(norm: str) -> None:
    rng = np.random.default_rng(7)
    x, scale, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 6, 3, 4), (6,), (6,)))
    where = jnp.asarray(rng.random((2, 1, 3, 4)) < 0.7)
    f = functools.partial(F.group_norm if norm == "group" else F.evonorm_sample, num_groups=3)
    for mask in (None, where):
        last = f(jnp.moveaxis(x, 1, -1), scale, bias, where=None if mask is None else jnp.moveaxis(mask, 1, -1))
        first = f(x, scale, bias, where=mask, feature_axes=1)
        np.testing.assert_allclose(first, jnp.moveaxis(last, -1, 1), rtol=1e-5, atol=1e-6)
    whole = f(x, scale, bias, feature_axes=1)
    parts = jax.vmap(lambda x: f(x, scale, bias, feature_axes=1, axis_name="d"), axis_name="d", in_axes=-1, out_axes=-1)
    np.testing.assert_allclose(parts(x), whole, rtol=1e-5, atol=1e-5)
    module = norms.get(norm, num_groups=3, feature_axes=1)
    ours, theirs = module.nnx(6, rngs=nnx.Rngs(0)), module.linen(train=True)
    y, variables = theirs.init_with_output(jax.random.key(0), x)
    assert jnp.shape(dict(variables["params"])["scale"]) == (6,)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(y, f(x, feature_axes=1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours(x), y, rtol=1e-6, atol=1e-6)
    text = str(jax.make_jaxpr(lambda x: f(x, scale, bias, feature_axes=1))(x))
    assert "transpose" not in text


TIMM = {
    "frn": ("FilterResponseNormTlu2d", {}, 1e-5),
    "evonorm_b0": ("EvoNorm2dB0", {}, 1e-3),
    "evonorm_b1": ("EvoNorm2dB1", {}, 1e-5),
    "evonorm_b2": ("EvoNorm2dB2", {}, 1e-5),
    **{f"evonorm_s{i}": (f"EvoNorm2dS{i}", {"groups": 2}, 1e-5) for i in range(3)},
    "grn": ("GlobalResponseNorm", {"channels_last": False}, 1e-6),
}


@pytest.mark.parametrize("norm", TIMM)
def test_outputs_and_gradients_are_those_of_timm(norm: str) -> None:
    torch = pytest.importorskip("torch")
    layers = pytest.importorskip("timm.layers.grn" if norm == "grn" else "timm.layers")
    name, options, epsilon = TIMM[norm]
    x, dy = (np.random.default_rng(i).normal(size=(3, 4, 2, 5)).astype(np.float32) for i in (8, 9))
    theirs = getattr(layers, name)(4, **options)
    for own, other in (("scale", "weight"), ("bias", "bias"), ("tau", "tau"), ("v", "v")):
        if getattr(theirs, other, None) is not None:
            getattr(theirs, other).data = torch.tensor(VARIABLES[own], dtype=torch.float32)
    at = torch.tensor(x, requires_grad=True)
    out = theirs(at)
    (out * torch.tensor(dy)).sum().backward()
    text = SMALL[norm] + (":" if SMALL[norm] == norm else ",") + f"epsilon={epsilon}"
    y, pull = jax.vjp(lambda x: jnp.moveaxis(apply(text, jnp.moveaxis(x, 1, -1))[0], -1, 1), jnp.asarray(x))
    np.testing.assert_allclose(y, out.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.asarray(dy))[0], at.grad.numpy(), rtol=1e-4, atol=1e-5)
