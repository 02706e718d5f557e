"""Test what studies of networks on other images share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import images, shifted
from experiments.claims.images import Part
from experiments.claims.shifted import Runs
from normlab import norms, tools
from normlab.introspect.pure import Network, network
from normlab.models.mlp import MLP, ConvNet

IMAGES = images.small_digits().train.inputs[:96]


def made(model: type = MLP, runs: int = 2, **fields: object) -> tuple[Network, tuple]:
    """Make networks that are not trained."""
    net = network(model, norms.get("batch:momentum=0.9"), IMAGES[:2], **fields)
    return net, jax.jit(lambda seeds: jax.lax.map(net.init, seeds))(jnp.arange(runs, dtype=jnp.uint32))


@pytest.fixture(scope="module")
def dense() -> tuple[Network, tuple]:
    return made(hidden=(16, 16))


def single(trained: tuple, i: int) -> dict[str, object]:
    """Return the variables of one network."""
    params, (variables, _) = jax.tree.map(lambda leaf: leaf[i], trained)
    return {"params": params, **variables}


@pytest.mark.parametrize("name", list(shifted.AFFINE))
def test_adabn_undoes_a_change_that_is_the_same_for_all_pixels(dense: tuple, name: str) -> None:
    net, trained = dense
    changed = shifted.changes()[name](IMAGES)
    clean, after = (tools.adabn(net.module, single(trained, 0), [x]).variables for x in (IMAGES, changed))
    expected, seen = net.module.apply(clean, IMAGES, train=False), net.module.apply(after, changed, train=False)
    np.testing.assert_allclose(seen, expected, atol=5e-3)
    before = net.module.apply(clean, changed, train=False)
    assert np.abs(before - expected).max() > 0.3


def test_adabn_does_not_undo_contrast_behind_borders_of_zeros() -> None:
    net, trained = made(ConvNet, widths=(4,), strides=(1,), runs=1)
    changed = shifted.changes()["contrast"](IMAGES)
    clean, after = (tools.adabn(net.module, single(trained, 0), [x]).variables for x in (IMAGES, changed))
    expected, seen = net.module.apply(clean, IMAGES, train=False), net.module.apply(after, changed, train=False)
    assert np.abs(seen - expected).max() > 0.02


def test_tools_adapt_all_runs_as_they_adapt_each(dense: tuple) -> None:
    net, trained = dense
    runs = Runs.of(net, *trained)
    adabn = tools.Adapter(runs.module, runs.variables, "adabn")(IMAGES)
    tent = tools.Adapter(runs.module, runs.variables, "tent", optimizer=optax.adam(1e-2, eps=1e-8 / 2))
    learned = [tent(IMAGES[:48]), tent(IMAGES[48:])]
    variables = single(trained, 1)
    one = tools.Adapter(net.module, variables, "tent", optimizer=optax.adam(1e-2))
    np.testing.assert_allclose(learned[0][:, 1], one(IMAGES[:48]), atol=1e-4)
    np.testing.assert_allclose(learned[1][:, 1], one(IMAGES[48:]), atol=1e-3)
    np.testing.assert_allclose(adabn[:, 1], tools.Adapter(net.module, variables, "adabn")(IMAGES), atol=1e-4)
    assert np.abs(adabn[:, 1] - adabn[:, 0]).max() > 0.1  # of another network


def test_runs_are_counted_wherever_their_statistics_stand(dense: tuple) -> None:
    runs = Runs.of(dense[0], *dense[1])
    nested = {"batch_stats": {"model": {"block": {"norm": {"mean": np.zeros((3, 4))}}}}}
    assert runs.count == 2 and dataclasses.replace(runs, variables=nested).count == 3


def test_batches_with_their_own_statistics_are_those_of_prediction_time(dense: tuple) -> None:
    net, trained = dense
    part = images.small_digits().train.first(80)
    outputs = tools.prediction_time(net.module, single(trained, 1), list(part.inputs.reshape(5, 16, 8, 8, 1))).outputs
    expected = shifted.wrong(jnp.concatenate(outputs)[:, None], part.labels)
    assert Runs.of(net, *trained).errors_by_batch(part, 16)[1] == pytest.approx(expected[0])


def test_batches_cover_every_image_once_and_in_order() -> None:
    places = shifted.batches(10, 4)
    assert places.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]
    assert shifted.batches(3, 4).tolist() == [[0, 1, 2]]
    outputs = [10 * i + place[:, None] for i, place in enumerate(places)]
    assert shifted.joined(outputs, places).ravel().tolist() == [0, 1, 2, 3, 14, 15, 26, 27, 28, 29]


def test_changes_do_what_they_say() -> None:
    changes = shifted.changes()
    x = IMAGES[:8]
    np.testing.assert_allclose(changes["contrast"](x), 0.35 + 0.3 * x, atol=1e-6)
    np.testing.assert_allclose(changes["brightness"](x), x + 0.3, atol=1e-6)
    assert np.std(changes["noise"](x) - x) == pytest.approx(0.3, rel=0.1)
    moved = changes["one pixel right"](x)
    np.testing.assert_array_equal(moved[:, :, 1:], x[:, :, :-1])
    assert not moved[:, :, 0].any()
    point = np.zeros((1, 5, 5, 1), np.float32)
    point[0, 2, 2] = 1
    blurred = np.outer([1, 2, 1], [1, 2, 1]) / 16
    np.testing.assert_allclose(changes["blur"](point)[0, 1:4, 1:4, 0], blurred, atol=1e-6)
    written = changes["JPEG"](x)
    assert 0.005 < np.abs(written - x).mean() < 0.15
    colours = changes["JPEG"](np.repeat(x, 3, -1))
    assert colours.shape == (8, 8, 8, 3) and np.abs(colours - np.repeat(x, 3, -1)).mean() < 0.15


def test_noise_is_the_same_for_the_same_seed() -> None:
    a, b, c = (shifted.changes(seed)["noise"](IMAGES[:2]) for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).any()


def test_data_that_are_mnist_have_its_name() -> None:
    assert shifted.is_mnist("tfds:mnist") and shifted.is_mnist("npz:/data/mnist.npz")
    assert not any(map(shifted.is_mnist, ("digits", "tfds:fashion_mnist", "tfds:cifar10")))


def test_shuffled_images_keep_their_classes() -> None:
    part = Part(np.arange(50.0)[:, None], np.arange(50))
    mixed = shifted.shuffled(part)
    assert (mixed.inputs[:, 0] == mixed.labels).all() and (mixed.labels != part.labels).any()
