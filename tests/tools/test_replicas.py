"""Statistics of replicas: one set from all, their distance, and merging over devices and processes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import multihost_utils

from normlab.errors import BadInput
from normlab.functional import batch_moments
from normlab.tools import replicas
from normlab.tools.moments import Form, Moments

STATS = {"mean": np.array([[0.0], [2.0]]), "var": np.array([[1.0], [3.0]])}


def variables(**more: object) -> dict[str, object]:
    return {"params": {"w": jnp.ones((2, 3))}, "batch_stats": {"a": {"bn": {**STATS, **more}}}}


@pytest.mark.parametrize(("how", "mean", "var"), [("merge", 1, 3), ("mean", 1, 2), ("first", 0, 1)])
def test_replicas_are_reduced_to_one(how: str, mean: float, var: float) -> None:
    given = variables(step=jnp.array([4, 4]))
    found = replicas.reduce(given, how)
    assert found["batch_stats"]["a"]["bn"] == {"mean": mean, "var": var, "step": 4}
    assert found["params"]["w"].shape == (3,)
    assert isinstance(found["batch_stats"]["a"]["bn"]["step"], jax.Array)
    assert given["batch_stats"]["a"]["bn"]["mean"] is STATS["mean"]


def test_deviations_merge_by_their_squares_and_any_axis_can_be_that_of_replicas() -> None:
    stats = {"mean": np.array([[0.0, 2.0]]), "std": np.array([[1.0, 3.0]])}
    found = replicas.reduce({"batch_stats": {"bn": stats}}, axis=1)["batch_stats"]["bn"]
    assert found == {"mean": 1, "std": np.sqrt(6.0)}
    assert replicas.reduce({"batch_stats": {"bn": {"std": stats["std"]}}}, "mean", 1)["batch_stats"]["bn"]["std"] == 2


def test_a_norm_without_a_mean_merges_its_variances() -> None:
    assert replicas.reduce({"batch_stats": {"bn": {"var": STATS["var"]}}})["batch_stats"]["bn"]["var"] == 2


def test_states_of_nnx_are_reduced() -> None:
    make = nnx.vmap(lambda key: nnx.BatchNorm(3, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
    state = nnx.state(make(jax.random.split(jax.random.key(0), 2)))
    state["mean"].set_value(jnp.array([[0.0] * 3, [2.0] * 3]))
    assert replicas.spread(state) == {"": 1.0}
    found = replicas.reduce(state)
    assert isinstance(found, nnx.State)
    assert found["mean"][...].tolist() == [1, 1, 1]
    assert found["var"][...].tolist() == [2, 2, 2]


def test_random_keys_are_those_of_all_replicas() -> None:
    keys = jnp.stack([jax.random.key(3)] * 2)
    assert replicas.reduce({"rngs": {"key": keys}})["rngs"]["key"] == jax.random.key(3)


def test_spread_is_in_standard_deviations() -> None:
    assert replicas.spread(variables()) == {"a/bn": pytest.approx(1 / np.sqrt(2))}
    equal = {"bn": {"mean": np.ones((2, 4)), "std": np.ones((2, 4))}}
    assert replicas.spread({"batch_stats": equal}) == {"bn": 0.0}
    apart = {"bn": {"mean": np.zeros((2, 1)), "std": np.array([[1.0], [3.0]])}}
    assert replicas.spread({"batch_stats": apart}) == {"bn": pytest.approx(1 / np.sqrt(5))}
    constant = {"bn": {"mean": np.array([[0.0, 0.0], [0.0, 1.0]]), "var": np.zeros((2, 2))}}
    assert replicas.spread({"batch_stats": constant}) == {"bn": np.inf}
    assert replicas.spread({"batch_stats": {"other": {"total": np.ones(2)}}, "params": {"mean": np.ones(2)}}) == {}


def test_what_replicas_do_not_agree_on_is_refused() -> None:
    sentence = (
        "Expected `{}` to be the same in all replicas, got others in replica 1 than in replica 0. "
        "Synchronize it, or take the leaf of one replica first."
    )
    with pytest.raises(BadInput, match=re.escape(sentence.format("batch_stats/a/bn/step"))):
        replicas.reduce(variables(step=jnp.array([4, 5])), "first")
    with pytest.raises(BadInput, match=re.escape(sentence.format("params/w"))):
        replicas.reduce({"params": {"w": jnp.arange(2.0)}})
    with pytest.raises(
        BadInput, match=r"^Expected `how` to be one of \('merge', 'mean', 'first'\), got 'sum'\. Choose"
    ):
        replicas.reduce(variables(), "sum")


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_devices_become_those_of_the_batch(offset: float) -> None:
    x = offset + jax.random.normal(jax.random.key(0), (3, 4, 5))
    where = jnp.arange(12).reshape(3, 4, 1) < 9

    def of_device(x: jax.Array, where: jax.Array):
        return replicas.sync(batch_moments(x, where=where), "devices")

    found = jax.vmap(of_device, axis_name="devices")(x, where)
    expected = batch_moments(x.reshape(12, 5)[:9])
    for device in range(3):
        np.testing.assert_allclose(found.mean[device], expected.mean, rtol=3e-7, atol=1e-6)
        np.testing.assert_allclose(found.var[device], expected.var, rtol=1e-5 if not offset else 2e-3)
        np.testing.assert_allclose(found.unbiased_var[device], found.var[device] * 9 / 8, rtol=1e-6)
        np.testing.assert_array_equal(found.count[device], 9)


def test_moments_without_an_element_stay_finite() -> None:
    x = jnp.zeros((2, 4, 1))
    of = partial(batch_moments, where=jnp.zeros((4, 1), bool))
    found = jax.vmap(lambda x: replicas.sync(of(x), "devices"), axis_name="devices")(x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert (found.count == 0).all()


FORM = Form({"mean": "batch_stats/bn/mean", "var": "batch_stats/bn/var"})


def of(*values: float) -> Moments:
    x = np.array(values)[:, None]
    return Moments.of_batch({"bn": (len(x), x.mean(0), x.var(0))}, {"bn": FORM}, examples=len(x))


def test_a_single_process_has_nothing_to_merge() -> None:
    moments = of(1, 3)
    assert replicas.merge(moments) is moments


def test_processes_get_the_same_bits_in_the_order_of_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process stands for all of them: what is gathered is what each would have sent."""
    parts = [of(0.1, 1 / 3), Moments(), of(7.7)]
    contents = [np.frombuffer(part.to_bytes(), np.uint8) for part in parts]
    longest = max(content.size for content in contents)

    def gathered(own: np.ndarray) -> np.ndarray:
        if own.dtype == np.int32:
            return np.array([[content.size] for content in contents], np.int32)
        assert own.size == longest
        return np.stack([np.pad(content, (0, longest - content.size)) for content in contents])

    monkeypatch.setattr(jax, "process_count", lambda: len(parts))
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    found = [replicas.merge(part) for part in parts]
    assert {moments.to_bytes() for moments in found} == {(Moments() + parts[0] + parts[1] + parts[2]).to_bytes()}
    assert (found[0]["bn"].count, found[0].batches, found[0].sizes) == (3, 2, (2, 1))
    np.testing.assert_allclose(found[0]["bn"].var, np.var([0.1, 1 / 3, 7.7]), rtol=1e-15)
