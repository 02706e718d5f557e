"""Combined norms: the vectors of their specification, special cases, gradients, domains, devices, bad input."""

import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import linen, norms
from normlab.errors import StatisticsError
from tests.support.references import combined

pytestmark = pytest.mark.usefixtures("strict")

NUMBERS = "5 -12 20 3 15 4 -7 11 -8 22 9 -16 2 -5 13 6"
COTANGENT = "3 -7 2 5 -4 6 1 -2 8 1 -3 4 -6 9 -5 7"
X, DY = (np.array(text.split(), float).reshape(2, 2, 4) / 10 for text in (NUMBERS, COTANGENT))
AFFINE = {"scale": np.array([1.1, 0.9, 1.2, 0.8]), "bias": np.array([0.1, -0.2, 0.3, 0.0])}
START = {"mean": np.zeros(4), "var": np.ones(4)}
DOMAINS = {
    "scale": np.stack([AFFINE["scale"], [0.7, 1.3, -0.4, 1.0]]),
    "bias": np.stack([AFFINE["bias"], [0.2, 0.0, -0.1, 0.4]]),
}
FOUR = np.concatenate([X, 0.5 * X[::-1] + 1])
SWITCHED = {"mean_weight": np.array([1, 0.5, -0.3]), "var_weight": np.array([0.2, 1, 0.4])}

VECTORS = {
    "mean_only_batch": (
        {"bias": AFFINE["bias"], "mean": np.zeros(4)},
        ".25 -1.625 1.425 .2 1.25 -.025 -1.275 1 -1.05 1.775 .325 -1.7 -.05 -.925 .725 .5",
        "",
    ),
    "batch_channel:num_groups=2": (
        {**AFFINE, **START, "channel_scale": np.array([1.5, 0.5]), "channel_bias": np.array([0.1, -0.1])},
        ".30061603 -1.92249743 .49028634 -.13841769 2.27773676 -.25585536 -.87483293 .12296429 -1.72475680 2.36389514 "
        ".07014305 -.94327160 .35399398 -.59313232 .36575104 .10737751",
        "",
    ),
    "switchable": (
        {**AFFINE, **START, **SWITCHED},
        "-.20713218 -1.21511991 1.81368270 -.21554006 1.07098788 .16468383 -1.16988125 .49003004 -.80914715 .98656688 "
        ".41761795 -1.04479887 .35061418 -.98834634 .91340025 .55007732",
        ".37844594 -.48832891 .13105970 .31022601 -.33716677 .41971814 .03211057 -.27376066 .52857115 .03082432 "
        "-.05555031 -.23499427 -.76389522 .28645770 -.23665480 .27293742",
    ),
    "domain_batch:num_domains=2,momentum=0.9": (
        {**DOMAINS, "mean": np.zeros((2, 4)), "var": np.ones((2, 4))},
        "-1.06192557 -1.51177161 1.32106947 -.70606159 1.67201695 -.28617478 -1.74213894 .62299552 -.79696308 "
        "1.79479722 .14491978 -1.26418277 -.08484659 -1.72953187 -.16857754 .54381826 -.78853132 1.01602186 .69708257 "
        "-.87219373 .57843994 -.01807547 .92398690 .95525980 .66287571 -.55475551 -.71719785 .99581852 1.01893396 "
        ".48949015 .34085561 1.32454598",
        "",
    ),
}
DOMAIN_STATE = {
    "mean": ".0925 .05125 .11 .0725 .06 .0825 .12125 .0425",
    "var": ".91618750 1.03804688 1.011875 .92318750 .996625 .99918750 .92604688 1.04806250",
}


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), float)


def variables_of(flat: dict[str, np.ndarray], dtype: Any = np.float32) -> dict[str, dict[str, jax.Array]]:
    """Variables of a Linen norm from arrays by name."""
    stats = {"mean", "var", "step"}
    parts = {"params": flat.keys() - stats, "batch_stats": flat.keys() & stats}
    return {kind: {name: jnp.asarray(flat[name], dtype) for name in sorted(names)} for kind, names in parts.items()}


def apply(
    norm: str, flat: dict[str, np.ndarray], x: Any, train: bool = True, dtype: Any = np.float32, **call: Any
) -> Any:
    """Output and state of a Linen norm."""
    module = norms.get(norm).linen(train=train)
    return module.apply(variables_of(flat, dtype), jnp.asarray(x, dtype), mutable=["batch_stats"], **call)


@pytest.fixture
def x64(strict: None) -> Iterator[None]:
    """Compute in float64."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("norm", VECTORS)
def test_gives_the_vectors_of_the_specification(x64: None, norm: str) -> None:
    flat, expected, gradient = VECTORS[norm]
    domains = norm.startswith("domain")
    x, call = (FOUR, {"domain": np.array([0, 1, 0, 1])}) if domains else (X, {})
    for dtype, close in ((np.float64, {"atol": 6e-9}), (np.float32, {"rtol": 1e-6, "atol": 1e-6})):
        y, after = apply(norm, flat, x, dtype=dtype, **call)
        np.testing.assert_allclose(y.ravel(), numbers(expected), **close)
        for name, text in DOMAIN_STATE.items() if domains else ():
            np.testing.assert_allclose(after["batch_stats"][name].ravel(), numbers(text), **close)
        if gradient:
            dx = jax.vjp(lambda x, t=dtype: apply(norm, flat, x, dtype=t)[0], jnp.asarray(x, dtype))[1](
                DY.astype(dtype)
            )
            np.testing.assert_allclose(dx[0].ravel(), numbers(gradient), **close)


def random(seed: int, *shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def filled(norm: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Variables away from their start."""
    call = {"domain": jnp.asarray(0)} if norm.startswith("domain") else {}
    module = norms.get(norm).linen(train=True)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.ones(shape), **call))
    leaves = {name: leaf for part in made.values() for name, leaf in part.items()}
    return {name: random(i, *leaf.shape, low=0.5, high=1.5) for i, (name, leaf) in enumerate(sorted(leaves.items()))}


CASES = [
    ("mean_only_batch", (4, 3, 6)),
    ("batch_channel:num_groups=3", (4, 3, 6)),
    ("batch_channel:group_size=3,channel_affine='feature'", (4, 6)),
    ("representative", (4, 3, 6)),
    ("representative", (4, 6)),
    ("switchable", (4, 3, 6)),
    ("switchable", (4, 6)),
    ("domain_batch:num_domains=3", (6, 3, 2)),
]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("norm", "shape"), CASES)
def test_evaluation_and_gradients_are_those_of_the_reference(
    x64: None, norm: str, shape: tuple[int, ...], masked: bool
) -> None:
    """Gradients by random cotangents, along a random direction, beside differences of the float64 reference."""
    spec, flat, x = norms.get(norm), filled(norm, shape), random(7, *shape)
    where = np.random.default_rng(3).random((*shape[:-1], 1)) < 0.8 if masked else None
    call: dict[str, Any] = {"domain": np.arange(shape[0]) % 3} if spec.name == "domain_batch" else {}
    kept = np.ones(shape, bool) if where is None else np.broadcast_to(where, shape)
    given = {**call, "mask": None if where is None else jnp.asarray(where)}
    y, _ = apply(norm, flat, x, train=False, dtype=np.float64, **given)
    expected = combined.evaluated(spec.name, x, flat, where, **spec.options, **call)
    np.testing.assert_allclose(np.where(kept, y, 0), np.where(kept, expected, 0), rtol=1e-9, atol=1e-9)

    dy, along, of_flat = (
        random(8, *shape) * kept,
        random(9, *shape) * kept,
        {k: random(10, *v.shape) for k, v in flat.items()},
    )
    of_flat |= {k: np.zeros_like(v) for k, v in flat.items() if k in ("mean", "var")}

    def loss(flat: Any, x: Any) -> jax.Array:
        variables = variables_of(flat, np.float64)
        return (spec.linen(train=True).apply(variables, x, mutable=["batch_stats"], **given)[0] * dy).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))(flat, x)
    found = sum(np.vdot(gradients[0][k], of_flat[k]) for k in flat) + np.vdot(gradients[1], along)
    h, values = 1e-5, []
    for step in (-h, h):
        moved = {k: v + step * of_flat[k] for k, v in flat.items()}
        y, _ = combined.NORMS[spec.name](x + step * along, moved, where, **spec.options, **call)
        values.append((y * dy).sum())
    np.testing.assert_allclose(found, (values[1] - values[0]) / (2 * h), rtol=1e-6, atol=1e-7)


def close(found: Any, expected: Any) -> None:
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


IMAGES = jnp.asarray(random(0, 4, 3, 2, 6), jnp.float32)
SCALE, BIAS = jnp.asarray(random(1, 6), jnp.float32), jnp.asarray(random(2, 6), jnp.float32)


@pytest.mark.parametrize("kind", ["instance", "layer", "batch"])
def test_all_weight_on_one_kind_is_that_norm(kind: str) -> None:
    weight = jnp.where(jnp.asarray([k == kind for k in ("instance", "layer", "batch")]), 200.0, 0.0)
    found, _ = F.switchable_norm(IMAGES, SCALE, BIAS, mean_weight=weight, var_weight=weight)
    expected = {
        "instance": lambda: F.instance_norm(IMAGES, SCALE, BIAS, epsilon=1e-5),
        "layer": lambda: F.layer_norm(IMAGES, SCALE, BIAS, axis=(1, 2, 3), feature_axes=-1, epsilon=1e-5),
        "batch": lambda: F.batch_norm(IMAGES, SCALE, BIAS)[0],
    }[kind]()
    close(found, expected)


def test_weights_decide_between_layer_and_batch_without_positions() -> None:
    x = IMAGES[:, 0, 0]
    for weights in ([-200.0, 200.0], [7.0, -200.0, 200.0]):
        shares = jnp.asarray(weights)
        found, _ = F.switchable_norm(x, mean_weight=shares, var_weight=shares, epsilon=0.0)
        close(found, F.batch_norm(x, epsilon=0.0)[0] * np.sqrt(3 / 4))  # whose variance is biased
    assert norms.get("switchable").linen(train=True).init(jax.random.key(0), x)["params"]["mean_weight"].shape == (2,)


def test_a_single_domain_is_batch_norm() -> None:
    found = F.domain_batch_norm(IMAGES, 0, SCALE, BIAS, num_domains=1)
    expected, moments = F.batch_norm(IMAGES, SCALE, BIAS)
    close(found[0], expected)
    close(
        [a[0] for a in (found[1].mean, found[1].var, found[1].unbiased_var)],
        [moments.mean, moments.var, moments.unbiased_var],
    )


def test_batch_channel_norm_whose_batch_norm_does_nothing_is_group_norm() -> None:
    module = norms.get("batch_channel:num_groups=3,statistics='running',epsilon=0.0").linen(train=True)
    variables = module.init(jax.random.key(0), IMAGES)
    close(module.apply(variables, IMAGES, mutable=["batch_stats"])[0], F.group_norm(IMAGES, num_groups=3, epsilon=0.0))


def test_representative_norm_is_a_share_of_batch_norm_at_the_start() -> None:
    found, moments = F.representative_batch_norm(IMAGES, SCALE, BIAS)
    expected, of_batch = F.batch_norm(IMAGES, SCALE, jnp.zeros(6))
    close(found - BIAS[None, None, None], expected * jax.nn.sigmoid(1.0))
    close((moments.mean, moments.var), (of_batch.mean, of_batch.var))


def test_mean_only_norm_and_its_gradient_have_mean_0() -> None:
    (y, _), pull = jax.vjp(F.mean_only_batch_norm, IMAGES)
    dx = pull((jnp.asarray(random(5, *IMAGES.shape), jnp.float32), jax.tree.map(jnp.zeros_like, _)))[0]
    close((y.mean((0, 1, 2)), dx.mean((0, 1, 2))), (jnp.zeros(6), jnp.zeros(6)))


@pytest.mark.parametrize("domain", [np.array([0, 2, 0, 2]), 1, np.int32(2)], ids=["mixed", "one", "scalar"])
def test_only_domains_that_are_there_move(domain: Any) -> None:
    module = norms.get("domain_batch:num_domains=3,momentum=None").linen(train=True)
    variables = module.init(jax.random.key(0), IMAGES, domain=0)
    _, after = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(variables, IMAGES, domain=domain)
    there = np.isin(np.arange(3), domain)
    np.testing.assert_array_equal(after["batch_stats"]["step"], there.astype(int))
    np.testing.assert_array_equal((after["batch_stats"]["var"] != 1).all(1), there)
    _, again = module.apply({**variables, **after}, IMAGES + 1, domain=1 - np.ones(4, int), mutable=["batch_stats"])
    np.testing.assert_array_equal(again["batch_stats"]["step"] - there.astype(int), [1, 0, 0])


def test_a_domain_of_one_element_gives_its_bias_and_moves_nothing() -> None:
    flat = {k: v.astype(np.float32) for k, v in filled("domain_batch:num_domains=2", (4, 6)).items()}
    y, after = apply("domain_batch:num_domains=2", flat, IMAGES[:, 0, 0], domain=np.array([0, 0, 1, 0]))
    np.testing.assert_array_equal(y[2], flat["bias"][1])
    np.testing.assert_array_equal(after["batch_stats"]["var"][1], flat["var"][1])


def test_splits_are_domains_in_training_and_domain_0_at_evaluation() -> None:
    flat = filled("domain_batch:num_domains=2", IMAGES.shape)
    split, told = "domain_batch:splits=2", "domain_batch:num_domains=2"
    close(apply(split, flat, IMAGES), apply(told, flat, IMAGES, domain=np.array([0, 0, 1, 1])))
    close(apply(split, flat, IMAGES, train=False), apply(told, flat, IMAGES, train=False, domain=0))
    by_second = apply(told, flat, IMAGES, train=False, domain=1)[0]
    assert jnp.abs(by_second - apply(split, flat, IMAGES, train=False)[0]).max() > 0.1


def test_a_traced_domain_that_is_unknown_gives_nan() -> None:
    y = jax.jit(lambda x, d: F.domain_batch_norm(x, d, num_domains=2)[0])(IMAGES, jnp.asarray([0, 1, 0, 2]))
    np.testing.assert_array_equal(np.isnan(y).all((1, 2, 3)), [False, False, False, True])


CALLS: dict[str, Callable[..., Any]] = {
    "mean_only": lambda x, domain, **o: F.mean_only_batch_norm(x, BIAS, **o),
    "batch_channel": lambda x, domain, **o: F.batch_channel_norm(x, SCALE, BIAS, num_groups=3, **o),
    "representative": lambda x, domain, **o: F.representative_batch_norm(
        x, center_weight=SCALE, scale_weight=BIAS, **o
    ),
    "switchable": lambda x, domain, **o: F.switchable_norm(x, SCALE, mean_weight=SCALE[:3], **o),
    "domain": lambda x, domain, **o: F.domain_batch_norm(x, domain, num_domains=3, **o),
}


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
@pytest.mark.parametrize("norm", CALLS)
def test_devices_give_what_one_gives_from_the_whole_batch(norm: str, way: str) -> None:
    x, domain = jnp.asarray(1e4 + random(0, 8, 3, 6), jnp.float32), jnp.asarray([0, 0, 2, 1, 0, 1, 0, 0])
    where = jnp.asarray(np.random.default_rng(3).random((8, 3, 1)) < 0.8).at[2:4].set(False)

    def joint(x: jax.Array, domain: jax.Array, where: jax.Array) -> Any:
        y, moments = CALLS[norm](x, domain, where=where, axis_name="d")
        return y, (moments.mean, moments.var)

    if way == "vmap":
        split = [a.reshape(4, 2, *a.shape[1:]) for a in (x, domain, where)]
        found, moments = jax.vmap(joint, axis_name="d")(*split)
        found, moments = found.reshape(x.shape), jax.tree.map(lambda a: a[0], moments)
    else:
        mesh, spec = Mesh(np.array(jax.devices()[:4]), ("d",)), (P("d"),) * 3
        run = jax.jit(jax.shard_map(joint, mesh=mesh, in_specs=spec, out_specs=(P("d"), P())))
        found, moments = run(x, domain, where)
    expected, of_all = CALLS[norm](x, domain, where=where)
    close(jnp.where(where, found, 0), jnp.where(where, expected, 0))
    close(moments, (of_all.mean, of_all.var))


def call(norm: str, x: Any = IMAGES, **given: Any) -> Callable[[], object]:
    module = norms.get(norm).linen(train=True)
    return lambda: module.init(jax.random.key(0), jnp.asarray(x), **given)


WRONG = {
    "channel affine": (call("batch_channel:channel_affine='groups'"), ValueError, "'group', 'feature' or None, got"),
    "groups": (call("batch_channel:num_groups=4"), ValueError, "`num_groups` to divide the 6 features"),
    "grouped axis": (call("batch_channel:axis=1,num_groups=3"), ValueError, "`axis` to be the last, along which"),
    "unknown domain": (
        call("domain_batch:num_domains=2", domain=2),
        ValueError,
        r"`domain` to lie in \[0, 2\), got 2\. Raise",
    ),
    "negative domain": (
        call("domain_batch:num_domains=2", domain=[0, 0, -1, 0]),
        ValueError,
        r"`domain` to lie in .*got -1",
    ),
    "domains of another batch": (
        call("domain_batch:num_domains=2", domain=[0, 1]),
        ValueError,
        r"each of the 4 examples, got .*\(2,\)",
    ),
    "domains that are no numbers": (
        call("domain_batch:num_domains=2", domain=0.5),
        TypeError,
        "whole numbers, got float32",
    ),
    "splits": (call("domain_batch:splits=3"), ValueError, "that `splits` divides, got 4 examples and splits=3"),
    "no domain": (
        call("domain_batch:num_domains=2"),
        ValueError,
        "`domain`, a number for each example, beside 2 domains, got none. Pass it, or say with `splits` that",
    ),
    "splits beside domains": (
        lambda: call("domain_batch:num_domains=3,splits=2")(),
        ValueError,
        "`splits` to be `num_domains`, the 3 domains there are, got 2. Leave one of them out.",
    ),
    "no splits": (lambda: call("domain_batch:splits=0")(), ValueError, "`splits` to be a positive whole number, got 0"),
    "ghosts": (call("domain_batch:ghost_batch_size=2"), ValueError, "no `ghost_batch_size` beside domains, got 2"),
    "batch axis": (call("representative:axis=0"), ValueError, "`axis` without the first axis, the batch"),
    "weights": (
        lambda: F.switchable_norm(IMAGES, mean_weight=jnp.ones(2)),
        ValueError,
        "`mean_weight` to be 3 numbers, those of instance, layer and batch",
    ),
    "one position": (call("switchable", IMAGES[:, :1, :1]), StatisticsError, "Leave out the axes between"),
    "one feature": (call("switchable", IMAGES[:, 0, 0, :1]), StatisticsError, "Use batch norm"),
    "center weight": (
        lambda: F.representative_batch_norm(IMAGES, center_weight=jnp.ones(5)),
        ValueError,
        r"`center_weight` to have shape \(6,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_clear_line(name: str) -> None:
    run, error, message = WRONG[name]
    with pytest.raises(error, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", ["mean_only_batch", "batch_channel:num_groups=3", "switchable"])
def test_a_frozen_norm_trains_no_parameter(norm: str) -> None:
    module = norms.get(norm, frozen=True).linen(train=True)
    variables = module.init(jax.random.key(0), IMAGES)
    assert not any(jax.tree.leaves(linen.trainable(module, variables, IMAGES)))
    live = norms.get(norm, frozen=True).nnx(6, rngs=nnx.Rngs(0))
    assert not nnx.to_flat_state(nnx.state(live, nnx.Param))
    live.frozen = False
    assert len(nnx.to_flat_state(nnx.state(live, nnx.Param))) == len(variables["params"])


@pytest.mark.parametrize(
    "norm", ["domain_batch:splits=2", "batch_channel:num_groups=3", "representative", "switchable"]
)
def test_modules_and_layers_pickle(norm: str) -> None:
    module = norms.get(norm).linen(train=True)
    assert pickle.loads(pickle.dumps(module)) == module
    assert pickle.loads(pickle.dumps(module.layer())) == module.layer()
