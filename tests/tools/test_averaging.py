"""Averages of weights, and statistics that are refused until they belong to the weights."""

import re
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab.errors import BadInput
from normlab.tools import averaging
from normlab.tools.averaging import Unestimated, average, ema

REFUSAL = (
    "Expected running statistics of these weights, got an average of models: `bn` has the statistics of other weights. "
    "Call tools.precise first, or statistics='copy'."
)


def variables(w: float, mean: float, step: int = 0) -> dict[str, dict[str, object]]:
    return {
        "params": {"w": jnp.full(2, float(w))},
        "batch_stats": {
            "bn": {"mean": jnp.array([float(mean)]), "var": jnp.array([mean + 1.0]), "step": jnp.array(step)}
        },
    }


def numbers(tree: object) -> list[float]:
    return [float(leaf.mean()) for leaf in jax.tree.leaves(tree)]


TREES = (variables(1, 0, 1), variables(2, 3, 2), variables(6, 9, 3))


@pytest.mark.parametrize(("statistics", "mean", "var"), [("average", 4, 5), ("copy", 9, 10)], ids=["average", "copy"])
def test_plain_average(statistics: str, mean: float, var: float) -> None:
    found = average(iter(TREES), statistics=statistics)
    assert found["params"]["w"].tolist() == [3, 3]
    stats = found["batch_stats"]["bn"]
    assert (stats["mean"], stats["var"], stats["step"]) == (mean, var, 3)
    assert numbers(TREES[0]) == numbers(variables(1, 0, 1))


@pytest.mark.parametrize(
    ("statistics", "mean", "var"), [("average", 0.75, 1.75), ("copy", 3, 4)], ids=["average", "copy"]
)
def test_exponential_average(statistics: str, mean: float, var: float) -> None:
    found = ema(TREES[0], TREES[1], 0.75, statistics=statistics)
    assert found["params"]["w"].tolist() == [1.25, 1.25]
    stats = found["batch_stats"]["bn"]
    assert (stats["mean"], stats["var"], stats["step"]) == (mean, var, 2)


def test_statistics_to_be_estimated_again_are_those_of_the_newest_model() -> None:
    for found in (average(TREES), ema(TREES[0], TREES[2], 0.5)):
        assert isinstance(found, Unestimated)
        assert numbers(found.variables["batch_stats"]) == numbers(TREES[2]["batch_stats"])
    assert average(TREES).variables["params"]["w"].tolist() == [3, 3]


class Model(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(3)(x))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_linen_model_refuses_to_evaluate(wrap: Callable) -> None:
    x = jnp.ones((2, 2))
    model, one = Model(), Model().init(jax.random.key(0), x, train=False)
    found = average([one, model.init(jax.random.key(1), x, train=False)])
    evaluate = wrap(lambda variables: model.apply(variables, x, train=False))
    with pytest.raises(BadInput, match=f"^{re.escape(REFUSAL)}"):
        evaluate(found)
    assert evaluate(found.variables).shape == (2, 3)


@pytest.mark.parametrize(
    "use",
    [
        lambda found: found["params"],
        list,
        len,
        lambda found: found.items().__iter__().__next__(),
        lambda found: {**found},
        flax.core.freeze,
        lambda found: nnx.update(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), found),
    ],
)
def test_nothing_reads_the_average_by_accident(use: Callable[[Unestimated], object]) -> None:
    with pytest.raises(BadInput, match=re.escape(REFUSAL)):
        use(average(TREES))


def test_an_nnx_model_refuses_the_state() -> None:
    models = [
        nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(seed)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))) for seed in (0, 1)
    ]
    models[1].layers[0].scale.set_value(jnp.full(2, 3.0))
    found = average([nnx.state(model) for model in models])
    with pytest.raises(BadInput, match="got an average of models: `layers/0` has the statistics of other weights"):
        nnx.update(models[0], found)
    copied = average([nnx.state(model) for model in models], statistics="copy")
    assert nnx.merge(nnx.graphdef(models[0]), copied).layers[0].scale[...].tolist() == [2, 2]


def test_an_average_without_statistics_is_plain_variables() -> None:
    assert average([{"params": {"w": np.ones(2)}}])["params"]["w"].tolist() == [1, 1]
    assert isinstance(ema({"params": {"w": np.ones(2)}}, {"params": {"w": np.ones(2)}}, 0.5), dict)


def test_an_exponential_average_runs_in_a_compiled_loop() -> None:
    @jax.jit
    def loop(first: object) -> object:
        def step(average: object, w: jax.Array) -> tuple[object, None]:
            return ema(average, {**TREES[1], "params": {"w": jnp.full(2, w)}}, 0.5), None

        return jax.lax.scan(step, first, jnp.array([3.0, 5.0]))[0]

    found = loop(ema(TREES[0], TREES[1], 1.0))
    assert isinstance(found, Unestimated)
    assert found.variables["params"]["w"].tolist() == [3.5, 3.5]  # 1, 2, 3.5
    assert numbers(found.variables["batch_stats"]) == numbers(TREES[1]["batch_stats"])


def test_containers_boxes_and_dtypes_stay() -> None:
    tree = flax.core.freeze({"params": {"w": nn.Partitioned(jnp.ones(2, jnp.bfloat16), ("data",))}})
    for found in (average([tree, tree]), ema(tree, tree, 0.9)):
        assert isinstance(found, flax.core.FrozenDict)
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        assert found["params"]["w"].unbox().dtype == jnp.bfloat16


def test_half_precision_is_averaged_in_float32() -> None:
    trees = [{"params": {"w": np.array([w], jnp.bfloat16)}} for w in (256, 1, 1)]
    assert average(trees)["params"]["w"] == jnp.bfloat16(86)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    def refused(message: str):
        return pytest.raises(BadInput, match=f"^{re.escape(message)}$")

    with refused("Expected the variables of at least one model to average, got none. Pass a list of them."):
        average([])
    with refused(
        "Expected `statistics` to be one of ('reestimate', 'average', 'copy'), got 'keep'. "
        "Take 'reestimate' and call tools.precise before evaluation."
    ):
        ema(TREES[0], TREES[1], 0.9, statistics="keep")
    with refused("Expected `decay`, the weight of the old average, to lie in [0, 1], got 1.5. Take 0.999."):
        ema(TREES[0], TREES[1], 1.5)
    with refused(
        "Expected the variables of one model, got (2,) and (3,) at `params/w`. Average models of one architecture."
    ):
        average([{"params": {"w": np.ones(2)}}, {"params": {"w": np.ones(3)}}])
    with refused(
        "Expected the variables of one model, got nothing and (3,) at `params/v`. Average models of one architecture."
    ):
        ema({"params": {}}, {"params": {"v": np.ones(3)}}, 0.9)


def test_checks_are_taken_off_by_name() -> None:
    found = average(TREES)
    assert averaging.without_check(found) is found.variables
    assert averaging.without_check(TREES[0]) is TREES[0]
    assert numbers(average([found, found]).variables) == numbers(found.variables)
