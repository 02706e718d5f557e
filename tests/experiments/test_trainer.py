"""Test the trainer of the studies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import trainer
from experiments.claims.images import Images, Part
from experiments.claims.trainer import Budget, Moment, Settings, logits, loss, new, train
from normlab.introspect.pure import network
from normlab.models import MLP
from normlab.norms import get

PART = Part(np.random.default_rng(0).normal(size=(12, 2, 2, 1)).astype(np.float32), np.arange(12, dtype=np.int32) % 3)
IMAGES = Images(train=PART, validation=PART, test=PART, classes=3, name="")
NET = network(MLP, get("batch:momentum=0.9"), PART.inputs[:2], hidden=(3,), classes=3)
BUDGET = Budget(steps=4, batch=5, every=2, momentum=0.5, cosine=True)


def test_updates_and_observations_are_those_of_a_loop_with_optax() -> None:
    settings = Settings([0, 1], [0.1, 0.2])
    runs = train(NET, IMAGES, BUDGET, settings, observe=lambda moment: (moment.t, moment.params, moment.batch.labels))
    steps, params, labels = runs.seen
    assert steps.tolist() == [[0, 2, 4]] * 2
    start = new(NET, settings)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), params, start[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, -1], b), params, runs.params)
    assert not (labels[0] == labels[1]).all()  # seeds have batches of their own

    one, state = jax.tree.map(lambda a: a[1], start)
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.2, 4), momentum=0.5)
    slots, draws = optimizer.init(one), jax.random.fold_in(jax.random.key(1), 1)
    for t in range(4):
        drawn = jax.random.randint(jax.random.fold_in(draws, t), (5,), 0, 12)
        batch = Part(PART.inputs[drawn], PART.labels[drawn])
        objective = lambda outputs, batch=batch: (loss(outputs, batch.labels), None)  # noqa: E731
        _, gradients, state = NET.gradients(objective, one, state, batch.inputs, t)
        updates, slots = optimizer.update(gradients, slots, one)
        one = optax.apply_updates(one, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), runs.params, one)


def test_runs_depend_on_their_own_settings_alone_and_have_the_same_outputs_one_by_one() -> None:
    def seen(moment: Moment) -> jax.Array:
        return jnp.concatenate([moment.batch.labels.astype(jnp.float32), moment.rate[None]])

    pair = train(NET, IMAGES, BUDGET, Settings([3, 4], [0.1, 0.2]), observe=seen)
    alone = train(NET, IMAGES, BUDGET, Settings(4, 0.2), observe=seen, together=False)
    assert np.array_equal(pair.seen[1], alone.seen[0]) and pair.seen.shape == (2, 3, 6)
    assert not np.array_equal(pair.seen[0], pair.seen[1])
    together = logits(NET, pair.params, pair.state, PART)
    single = logits(NET, alone.params, alone.state, PART, together=False)
    assert together.shape == (2, 12, 3) and single.shape == (1, 12, 3)
    np.testing.assert_allclose(together[1], single[0], rtol=1e-4, atol=1e-4)


def test_batches_come_from_the_first_examples() -> None:
    runs = train(NET, IMAGES, BUDGET, Settings(0, 0.1, examples=2), observe=lambda moment: moment.batch.labels)
    assert set(np.unique(runs.seen)) == {0, 1}


def test_the_scale_is_of_hidden_kernels_alone() -> None:
    small, large = (new(NET, Settings(0, 0.0, scale=c))[0] for c in (1.0, 3.0))
    np.testing.assert_allclose(large["dense_0"]["kernel"], 3 * small["dense_0"]["kernel"], rtol=1e-6)
    assert np.array_equal(large["head"]["kernel"], small["head"]["kernel"])


def test_an_uneven_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of `every`, got 10 and 3"):
        trainer.trainer(NET, IMAGES, Budget(steps=10, every=3))


def test_the_lowest_error_chooses_and_divergence_never_does() -> None:
    errors = np.array([[0.3, 0.3], [0.1, 0.2], [np.nan, 0.0]])
    assert trainer.best_rate(errors, (0.1, 0.2, 0.3)) == 0.2
    settings = trainer.grid([7, 8], (0.1, 0.2))
    assert list(settings.seed) == [7, 8, 7, 8] and np.allclose(settings.rate, [0.1, 0.1, 0.2, 0.2])
