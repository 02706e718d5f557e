"""Statistics of norms that keep more, or other, than mean and variance of their input, against NumPy in float64."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx
from normlab.tools import Moments, collect, cumulative, precise, reset
from tests.tools.nets import refused, same

SIZES, EPSILON = (6, 3), 0.01
RNG = np.random.default_rng(0)
X = [3 + RNG.normal(size=(n, 5, 4)) * [1, 2, 3, 4] @ (np.eye(4) + 0.5) for n in SIZES]
MASKS = [RNG.random((n, 5, 1)) < 0.7 for n in SIZES]
DOMAINS = [np.arange(n) % 2 for n in SIZES]
CENTER = np.array([0.5, -0.3, 1.0, 0.0])

Options = dict[str, object]
Reference = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], dict[str, np.ndarray]]


def elements(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x[mask[..., 0]] for x, mask in zip(xs, masks, strict=True)])


def variance(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {"var": elements(xs, masks).var(0)}


def square(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {"run": np.square(elements(xs, masks)).mean(0)}


def scaled_square(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    groups = elements(xs, masks).reshape(-1, 2, 2)
    h = groups / np.sqrt(np.square(groups).mean(-1, keepdims=True) + EPSILON)
    return {"phi": np.square(h).mean(0).ravel()}


def calibrated(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    pooled = [(x * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True) for x, mask in zip(xs, masks, strict=True)]
    u = elements([x + CENTER * mean for x, mean in zip(xs, pooled, strict=True)], masks)
    return {"mean": u.mean(0), "var": u.var(0)}


def covariances(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    rows = elements(xs, masks)
    groups = [np.cov(rows[:, [i, i + 1]].T, bias=True) + EPSILON * np.eye(2) for i in (0, 2)]
    return {"mean": rows.mean(0), "matrix": np.stack(groups)}


def root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(values)[..., None, :] @ np.swapaxes(vectors, -1, -2)


def roots(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    found = covariances(xs, masks)
    return {**found, "matrix": root(found["matrix"])}


def by_domain(xs: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    mean, var = np.zeros((3, 4)), np.ones((3, 4))  # nothing is of the last domain, whose statistics stay
    for d in range(2):
        own = [mask & (domain == d)[:, None, None] for mask, domain in zip(masks, DOMAINS, strict=True)]
        mean[d], var[d] = elements(xs, own).mean(0), elements(xs, own).var(0)
    return {"mean": mean, "var": var}


CASES: dict[str, tuple[str, Options, Reference]] = {
    **{f"evonorm_{one}": ("EvoNormBatch", {"variant": one}, variance) for one in ("b0", "b1", "b2")},
    "mabn": ("MABN", {"buffer_size": 2}, square),
    "power": ("PowerNorm", {"num_groups": 2}, scaled_square),
    "representative": ("RepresentativeBatchNorm", {}, calibrated),
    "whiten": ("Whiten", {"group_size": 2, "exact": True}, roots),
    "whiten by covariance": ("Whiten", {"group_size": 2, "average": "covariance"}, covariances),
    "domain_batch": ("DomainBatchNorm", {"num_domains": 3}, by_domain),
}


def batches(case: str, *, masked: bool) -> list[tuple[np.ndarray, Options]]:
    """Return inputs in float32, and keywords of a call."""
    found: list[tuple[np.ndarray, Options]] = []
    for x, mask, domain in zip(X, MASKS, DOMAINS, strict=True):
        keywords: Options = {"mask": mask} if masked else {}
        hidden = np.where(mask, x, np.nan) if masked else x
        found.append((hidden.astype(np.float32), keywords | ({"domain": domain} if case == "domain_batch" else {})))
    return found


def call(batch: tuple[np.ndarray, Options]) -> tuple[tuple[np.ndarray], Options]:
    return (batch[0],), batch[1]


def linen_of(case: str, **more: object) -> tuple[nn.Module, dict[str, dict[str, jax.Array]]]:
    """Return a norm of Linen, and its variables."""
    kind, options, _ = CASES[case]
    norm = getattr(normlab.linen, kind)(use_running_average=None, epsilon=EPSILON, **options, **more)
    ((x, keywords), *_) = batches(case, masked=False)
    variables = norm.init(jax.random.key(0), x, use_running_average=True, **keywords)
    if case == "representative":
        variables["params"]["center_weight"] = jnp.asarray(CENTER, jnp.float32)
    return norm, variables


def found_by(library: str, case: str, *, masked: bool = False, **options: object) -> dict[str, jax.Array]:
    """Return the statistics that `precise` finds for a norm."""
    data = batches(case, masked=masked)
    if library == "linen":
        return precise(*linen_of(case), data, call=call, **options).variables["batch_stats"]
    kind, own, _ = CASES[case]
    norm = getattr(normlab.nnx, kind)(4, epsilon=EPSILON, rngs=nnx.Rngs(0), **own)
    if case == "representative":
        norm.center_weight[...] = jnp.asarray(CENTER, jnp.float32)
    return nnx.to_pure_dict(nnx.state(precise(norm, None, data, call=call, **options).model, nnx.BatchStat))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("case", CASES)
def test_statistics_are_those_of_the_norm_over_all_batches(case: str, library: str, masked: bool) -> None:
    found = found_by(library, case, masked=masked)
    masks = MASKS if masked else [np.ones_like(mask) for mask in MASKS]
    for name, value in CASES[case][2](X, masks).items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if case != "representative"])  # which pools each example
def test_weights_of_0_and_1_are_a_mask_of_examples(case: str) -> None:
    def weight(batch: tuple[np.ndarray, Options]) -> jax.Array:
        return (jnp.arange(len(batch[0])) % 3 > 0).astype(jnp.float32)

    masks = [np.broadcast_to((np.arange(n) % 3 > 0)[:, None, None], (n, 5, 1)) for n in SIZES]
    found = found_by("linen", case, weights=weight)
    for name, value in CASES[case][2](X, masks).items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


def test_statistics_of_whitening_put_batches_together_in_three_ways() -> None:
    norm, variables = linen_of("whiten")
    alike = [x[:3].astype(np.float32) for x in X]
    rows = [x.reshape(-1, 4) for x in alike]
    pairs = [np.stack([np.cov(r[:, [i, i + 1]].T, bias=True) for i in (0, 2)]) for r in map(np.float64, rows)]
    own = [root(pair + EPSILON * np.eye(2)) for pair in pairs]
    found = cumulative(norm, variables, alike)["batch_stats"]
    np.testing.assert_allclose(found["matrix"], np.mean(own, 0), rtol=1e-5, atol=1e-6)
    unbiased = np.mean(pairs, 0) * 15 / 14 + EPSILON * np.eye(2)
    found = precise(norm, variables, alike, estimator="paper").variables["batch_stats"]
    np.testing.assert_allclose(found["matrix"], root(unbiased), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["mean"], np.mean([r.mean(0) for r in rows], 0), rtol=1e-6)


def test_mean_squares_are_averaged_over_batches_as_in_the_warmup_of_power_norm() -> None:
    norm, expected = linen_of("power")
    start, data = expected, batches("power", masked=False)
    for x, _ in data:
        expected = {**expected, **norm.apply(expected, x, use_running_average=False, mutable="batch_stats")[1]}
    found = cumulative(norm, start, data, call=call)["batch_stats"]
    np.testing.assert_allclose(found["phi"], expected["batch_stats"]["phi"], rtol=1e-6)
    assert found["step"] == expected["batch_stats"]["step"] == 2


def test_moments_of_whitening_can_be_written_merged_and_read(tmp_path: object) -> None:
    norm, variables = linen_of("whiten")
    first, second = (collect(norm, variables, [batch], call=call) for batch in batches("whiten", masked=True))
    first.save(f"{tmp_path}/moments")
    merged = Moments.load(f"{tmp_path}/moments") + second
    expected = precise(norm, variables, batches("whiten", masked=True), call=call).variables
    same(merged.apply(variables), expected)
    same((Moments() + merged).apply(variables), expected)


class Two(nn.Module):
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for _ in range(2):
            x = nn.relu(nn.Dense(4)(self.norm(use_running_average=not train)(x)))
        return x


class NNXTwo(nnx.Module):
    def __init__(self, norm: Callable[..., nnx.Module]) -> None:
        self.norms = nnx.List([norm(4, rngs=nnx.Rngs(i)) for i in range(2)])
        self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(9))

    def __call__(self, x: jax.Array) -> jax.Array:
        for norm in self.norms:
            x = nnx.relu(self.dense(norm(x)))
        return x


@pytest.mark.parametrize("kind", ["PowerNorm", "MABN"])
def test_running_mean_squares_and_devices_play_no_part_while_statistics_are_taken(kind: str) -> None:
    data = [x.astype(np.float32) for x in X]
    options = {"warmup_steps": 0, **({"clip_from": 0} if kind == "MABN" else {}), "axis_name": "data"}
    model = Two(partial(getattr(normlab.linen, kind), **options))
    variables = model.init(jax.random.key(0), data[0], train=False)
    fresh = precise(model, variables, data).variables["batch_stats"]
    used = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf * 7 + 3, variables["batch_stats"])}
    found = precise(model, used, data).variables["batch_stats"]
    name = {"PowerNorm": "phi", "MABN": "run"}[kind]
    for path in fresh:
        same(found[path][name], fresh[path][name])
    twin = NNXTwo(partial(getattr(normlab.nnx, kind), **options))
    expected = precise(twin, None, data).model
    for norm in twin.norms:
        getattr(norm, name)[...] = jnp.full(4, 7.0)
        norm.step[...] = jnp.int32(1000)
    again = precise(twin, None, data).model
    for one, other in zip(again.norms, expected.norms, strict=True):
        same(getattr(one, name)[...], getattr(other, name)[...])


def test_buffers_of_moving_average_norm_stay_with_their_step() -> None:
    norm, variables = linen_of("mabn")
    start = {**variables["batch_stats"], "chi": jnp.full((2, 4), 5.0), "step": jnp.int32(40)}
    found = precise(norm, {**variables, "batch_stats": start}, batches("mabn", masked=False), call=call)
    same({**found.variables["batch_stats"], "run": 0}, {**start, "run": 0})
    assert precise(*linen_of("power"), batches("power", masked=False), call=call).variables["batch_stats"]["step"] == 2


@pytest.mark.parametrize("case", CASES)
def test_changes_are_none_the_second_time_and_fresh_statistics_come_back(case: str) -> None:
    norm, variables = linen_of(case)
    data = batches(case, masked=True)
    found = precise(norm, variables, data, call=call)
    assert found.change[""] > 0.1
    assert precise(norm, found.variables, data, call=call).change == {"": 0}
    same(reset(norm, found.variables), variables)


def test_a_change_of_correlation_alone_is_seen() -> None:
    norm, variables = linen_of("whiten by covariance")
    found = precise(norm, variables, batches("whiten", masked=False), call=call)
    stats = dict(found.variables["batch_stats"])
    own = np.asarray(stats["matrix"])
    stats["matrix"] = own * np.eye(2)
    again = precise(norm, {**variables, "batch_stats": stats}, batches("whiten", masked=False), call=call)
    expected = np.abs(own[:, 0, 1]) / np.sqrt(own[:, 0, 0] * own[:, 1, 1])
    assert again.change[""] == pytest.approx(expected.max(), rel=1e-6)


def test_whitening_inside_a_scan_has_statistics_of_each_run() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return nn.Dense(4)(normlab.linen.Whiten(use_running_average=False, group_size=2)(x)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            scan = nn.scan(Body, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)
            return scan(name="body")(x, None)[0]

    model, x = Scanned(), X[0].astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    found = precise(model, variables, [x], train={}).variables["batch_stats"]["body"]["Whiten_0"]
    assert found["matrix"].shape == (3, 2, 2, 2)
    first = normlab.linen.Whiten(use_running_average=None, group_size=2)
    alone = precise(first, first.init(jax.random.key(0), x, use_running_average=True), [x]).variables["batch_stats"]
    np.testing.assert_allclose(found["matrix"][0], alone["matrix"], rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(found["matrix"][1] - found["matrix"][0]).max()) > 1e-3


def test_norms_that_cannot_be_estimated_are_refused_with_the_reason() -> None:
    norm, variables = linen_of("whiten")
    x, mask = X[0].astype(np.float32), np.ones((6, 5, 4), bool)
    with refused(
        "Expected a mask of whole positions for `` (whiten), whose covariances of two batches cannot be merged"
    ):
        precise(norm, variables, [x], call=lambda x: ((x,), {"mask": mask}))
    online = normlab.linen.OnlineNorm(use_running_average=None)
    variables = online.init(jax.random.key(0), x, use_running_average=True)
    with refused(
        "Expected a model with running statistics of batches, found none among its 1 norms (online), such as ``, whose "
        "statistics follow a stream, one example after another. Train on for a while to renew them."
    ):
        precise(online, variables, [x])
    whitened = nn.Sequential([normlab.linen.GroupWhiten(num_groups=2), nn.BatchNorm(use_running_average=False)])
    with refused(
        "Expected norms with running statistics of batches in `where`, got `layers_0` (group_whiten), which keeps "
        "none. Take norms such as `layers_1`."
    ):
        precise(whitened, whitened.init(jax.random.key(0), x), [x], where="layers_0")
