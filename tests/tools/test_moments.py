"""Mergeable moments: the values of small batches by hand, merging, files, and writing statistics back."""

import re
import time
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normlab.errors import BadInput
from normlab.tools.moments import Form, Moments, SiteMoments

FORM = Form({"mean": "batch_stats/bn/mean", "var": "batch_stats/bn/var"})
RENORM = Form({"mean": "batch_stats/bn/mean", "std": "batch_stats/bn/std", "step": "batch_stats/bn/step"}, epsilon=0.25)


def of(*values: float, form: Form = FORM) -> Moments:
    """Return the moments of a batch with one feature."""
    x = np.array(values)[:, None]
    return Moments.of_batch({"bn": (len(x), x.mean(0), x.var(0))}, {"bn": form}, examples=len(x))


def total(*parts: Moments) -> Moments:
    merged = Moments()
    for part in parts:
        merged = merged + part
    return merged


def arrays_of(moments: Moments) -> dict[str, dict[str, np.ndarray]]:
    return {path: vars(site) for path, site in moments.items()}


def variables(features: int = 1) -> dict[str, dict[str, dict[str, jax.Array]]]:
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)}
    return {"params": {"bn": {"scale": jnp.full(features, 2.0)}}, "batch_stats": {"bn": stats}}


@pytest.mark.parametrize(
    ("batches", "estimator", "mean", "var"),
    [
        ([(1, 2, 3), (7,)], "population", 3.25, 5.1875),
        ([(1, 3), (5, 9)], "population", 4.5, 8.75),
        ([(1, 3), (5, 9)], "paper", 4.5, 5.0),
        ([(1, 3), (5, 9)], "average", 4.5, 2.5),
        ([(1, 2, 3), (7,)], "average", 4.5, 1 / 3),
        ([(9999,), (10001,)], "population", 1e4, 1.0),
        ([(1e8 - 1,), (1e8 + 1,)], "population", 1e8, 1.0),
        ([(4, 4), (4, 4)], "paper", 4.0, 0.0),
    ],
)
def test_statistics_of_small_batches_are_those_by_hand(
    batches: list[tuple[float, ...]], estimator: str, mean: float, var: float
) -> None:
    found = total(*(of(*batch) for batch in batches))["bn"].statistics(estimator)
    np.testing.assert_allclose(found, [[mean], [var]], rtol=1e-15)


def test_an_unbiased_variance_counts_one_less() -> None:
    moments = total(of(1, 2, 3), of(7))["bn"]
    np.testing.assert_allclose(moments.statistics(unbiased=True)[1], [5.1875 * 4 / 3])
    np.testing.assert_allclose(moments.statistics("average", unbiased=True)[1], [0.5])
    assert of(7)["bn"].statistics(unbiased=True)[1] == 0


def test_merging_with_nothing_is_the_identity() -> None:
    a = of(1, 2, 4)
    nothing = Moments.of_batch({"bn": (0, [5.0], [6.0])}, {"bn": FORM}, examples=0)
    for merged in (a + Moments(), Moments() + a, a + nothing, nothing + a):
        for name, value in vars(a["bn"]).items():
            np.testing.assert_array_equal(getattr(merged["bn"], name), value)
    assert ((a + Moments()).batches, (a + Moments()).examples, (a + Moments()).sizes) == (1, 3, (3,))
    assert (len(Moments()), list(a), "bn" in a) == (0, ["bn"], True)


BATCHES = st.lists(
    st.integers(1, 6).flatmap(lambda n: arrays(np.float64, (n, 2), elements=st.floats(-50, 50))), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.randoms(use_true_random=False), st.sampled_from([0.0, 1e4]))
def test_any_order_and_any_grouping_gives_the_moments_of_all_elements(batches, random, offset: float) -> None:
    def moments(x: np.ndarray) -> Moments:
        return Moments.of_batch({"bn": (len(x), x.mean(0), x.var(0))}, {"bn": FORM}, examples=len(x))

    parts = [moments(x + offset) for x in batches]
    everything = np.concatenate(batches) + offset
    cut = random.randint(0, len(parts))
    shuffled = random.sample(parts, len(parts))
    for merged in (total(*parts), total(*shuffled), total(*parts[:cut]) + total(*parts[cut:])):
        np.testing.assert_allclose(merged["bn"].mean, everything.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(merged["bn"].var, everything.var(0), rtol=1e-6, atol=1e-7)
        assert (merged["bn"].count == len(everything)).all()
        assert (merged.batches, merged.examples) == (len(parts), len(everything))


def test_features_are_counted_apart() -> None:
    one = SiteMoments.of_batch([2.0, 0.0, 1.0], [1.0, 9.0, 3.0], [4.0, 9.0, 0.0])
    two = SiteMoments.of_batch([2.0, 1.0, 0.0], [3.0, 5.0, 7.0], [4.0, 0.0, 1.0])
    np.testing.assert_array_equal((one + two).mean, [2, 5, 3])
    np.testing.assert_array_equal((one + two).var, [5, 0, 0])
    np.testing.assert_array_equal((one + two).batches, [2, 1, 1])
    np.testing.assert_array_equal((one + two).mean_of_means, [2, 5, 3])


@pytest.mark.parametrize("freeze", [dict, flax.core.freeze])
def test_apply_replaces_statistics_and_nothing_else(freeze) -> None:
    given = freeze(variables())
    found = of(1, 3).apply(given)
    assert type(found) is type(given)
    assert found["batch_stats"]["bn"] == {"mean": jnp.array([2.0]), "var": jnp.array([1.0])}
    assert found["params"]["bn"]["scale"] is given["params"]["bn"]["scale"]
    assert given["batch_stats"]["bn"] == {"mean": jnp.array([0.0]), "var": jnp.array([1.0])}


def test_each_norm_gets_its_own_form() -> None:
    stats = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32), "step": np.int32(9)}
    found = (of(1, 3, form=RENORM) + of(5, 9, form=RENORM)).apply({"batch_stats": {"bn": stats}})["batch_stats"]["bn"]
    assert (found["mean"], found["std"], found["step"]) == (4.5, np.float32(3.0), 2)  # sqrt(8.75 + 0.25)
    assert (found["std"].dtype, found["step"].dtype) == (np.float32, np.int32)
    unbiased = Form(FORM.variables, unbiased=True)
    assert of(1, 3, form=unbiased).apply(variables())["batch_stats"]["bn"]["var"] == 2


def test_a_feature_that_was_never_counted_keeps_its_statistics() -> None:
    moments = Moments.of_batch({"bn": ([2, 0], [5.0, 0.0], [4.0, 0.0])}, {"bn": FORM}, examples=2)
    found = moments.apply(variables(2))["batch_stats"]["bn"]
    assert found["mean"].tolist() == [5, 0]
    assert found["var"].tolist() == [4, 1]


def test_boxes_and_shardings_stay_and_half_precision_is_widened() -> None:
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
    mean = nn.Partitioned(jax.device_put(jnp.zeros(1, jnp.bfloat16), sharding), ("data",))
    found = of(1, 2.001).apply({"batch_stats": {"bn": {"mean": mean, "var": jnp.ones(1, jnp.float16)}}})
    assert isinstance(found["batch_stats"]["bn"]["mean"], nn.Partitioned)
    value = found["batch_stats"]["bn"]["mean"].unbox()
    assert (value.dtype, value.sharding, value[0]) == (jnp.float32, sharding, np.float32(1.5005))
    assert found["batch_stats"]["bn"]["var"].dtype == jnp.float32


def test_apply_to_an_nnx_module_returns_a_copy() -> None:
    model = nnx.Sequential(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), nnx.BatchNorm(1, rngs=nnx.Rngs(0)))
    form = Form({"mean": "layers/1/mean", "var": "layers/1/var"})
    found = of(1, 3, form=form).apply(model)
    assert (found.layers[1].mean[...], found.layers[1].var[...]) == (2, 1)
    assert (model.layers[1].mean[...], model.layers[1].var[...]) == (0, 1)
    np.testing.assert_array_equal(found.layers[0].kernel[...], model.layers[0].kernel[...])


def test_a_file_returns_every_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sites = {path: (5, rng.normal(size=n), rng.random(n)) for path, n in (("", 3), ("a/b", 2))}
    forms = {"": FORM, "a/b": RENORM}
    moments = Moments.of_batch(sites, forms, examples=5) + Moments.of_batch(sites, forms, examples=4)
    moments.save(tmp_path / "moments")
    found = Moments.load(tmp_path / "moments")
    jax.tree.map(np.testing.assert_array_equal, arrays_of(found), arrays_of(moments))
    assert found.forms == moments.forms
    assert (found.batches, found.examples, found.sizes) == (2, 9, (5, 4))
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(10**9))
    assert found.to_bytes() == (tmp_path / "moments").read_bytes()  # whatever the time
    Moments().save(tmp_path / "nothing")
    assert len(Moments.load(tmp_path / "nothing") + moments) == 2


def refused(message: str):
    return pytest.raises(BadInput, match=f"^{re.escape(message)}$")


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sizes = Moments.of_batch({}, {}, examples=32) + Moments.of_batch({}, {}, examples=17)
    with refused(
        "Expected batches of one size with `estimator='paper'`, got 32 and 17. Drop the remainder or take 'population'."
    ):
        sizes.apply(variables(), "paper")
    with refused("Expected `estimator` to be one of ('population', 'paper', 'average'), got 'papers'. Choose one."):
        of(1, 3).apply(variables(), "papers")
    with refused("Expected variables with `batch_stats/bn/mean`, got none. Did you mean `batch_stats/bm/mean`?"):
        of(1, 3).apply({"batch_stats": {"bm": variables()["batch_stats"]["bn"]}})
    with refused("Expected `batch_stats/bn/mean` of shape (1,), got (2,). Take the variables of the same model."):
        of(1, 3).apply(variables(2))
    wide = Moments.of_batch({"bn": (1, [1.0, 2.0], [0.0, 0.0])}, {"bn": FORM}, examples=1)
    with refused(
        "Expected moments of one model, got `bn` of shape (1,) and of (2,). "
        "Merge moments that the same model collected."
    ):
        of(1, 3) + wide
    with refused(
        "Expected moments of one model, got `bn` with two ways to keep statistics, "
        f"{FORM} and {RENORM}. Merge moments that the same model collected."
    ):
        of(1, 3) + of(1, 3, form=RENORM)
    (tmp_path / "notes.txt").write_text("moments")
    with refused("Expected a file that `Moments.save` wrote, got notes.txt. Collect the moments again."):
        Moments.load(tmp_path / "notes.txt")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with refused("Expected a file that `Moments.save` wrote, got other.npz. Collect the moments again."):
        Moments.load(tmp_path / "other.npz")
