"""Test the trainer of the studies."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.images import Images, Part
from experiments.claims.trainer import Budget, Settings, logits, loss, new, train
from normlab.introspect.pure import network
from normlab.models import MLP
from normlab.norms import get

PART = Part(np.random.default_rng(0).normal(size=(12, 2, 2, 1)).astype(np.float32), np.arange(12, dtype=np.int32) % 3)
IMAGES = Images(train=PART, validation=PART, test=PART, classes=3, name="")


def test_updates_and_observations_are_those_of_a_loop() -> None:
    net = network(MLP, get("none"), PART.inputs[:2], hidden=(3,), classes=3)
    budget, settings = Budget(steps=4, batch=5, every=2, momentum=0.5), Settings([0, 1], [0.1, 0.2])
    runs = train(net, IMAGES, budget, settings, observe=lambda moment: (moment.t, moment.params, moment.batch.labels))
    steps, params, labels = runs.seen
    assert steps.tolist() == [[0, 2, 4]] * 2
    start = new(net, settings)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), params, start[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, -1], b), params, runs.params)
    assert not (labels[0] == labels[1]).all()  # seeds have batches of their own

    one, state = jax.tree.map(lambda a: a[1], start)
    momenta = jax.tree.map(jnp.zeros_like, one)
    draws = jax.random.fold_in(jax.random.key(1), 1)
    for t in range(4):
        drawn = jax.random.randint(jax.random.fold_in(draws, t), (5,), 0, 12)
        batch = Part(PART.inputs[drawn], PART.labels[drawn])
        objective = lambda outputs, batch=batch: (loss(outputs, batch.labels), None)  # noqa: E731
        _, gradients, state = net.gradients(objective, one, state, batch.inputs, t)
        momenta = jax.tree.map(lambda m, g: 0.5 * m + g, momenta, gradients)
        one = jax.tree.map(lambda p, m: p - 0.2 * m, one, momenta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-6), runs.params, one)


def test_networks_one_by_one_have_the_outputs_of_all_together() -> None:
    net = network(MLP, get("batch"), PART.inputs[:2], hidden=(3,), classes=3)
    params, state = new(net, Settings([0, 1], 0.1))
    together, single = (logits(net, params, state, PART, together=flag) for flag in (True, False))
    assert together.shape == (2, 12, 3)
    np.testing.assert_allclose(together, single, rtol=1e-5, atol=1e-6)
