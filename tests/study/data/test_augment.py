"""Augmentation: what it makes of an image, and that the run's seed alone decides."""

from typing import Any

import jax
import numpy as np
import pytest

from normlab import norms, study
from normlab.models.mlp import ConvNet
from normlab.study.data.augment import PADDING, augment, crop, flip
from normlab.study.data.dataset import Data
from normlab.study.design.provenance import data_hash

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 6, 5, 3), np.uint8)


def test_crop_cuts_a_window() -> None:
    cut = np.asarray(crop(jax.random.key(0), IMAGES))
    assert (cut.shape, cut.dtype) == (IMAGES.shape, np.uint8)
    padded = np.pad(IMAGES, ((0, 0), *[(PADDING, PADDING)] * 2, (0, 0)))
    corners = [(i, j) for i in range(2 * PADDING + 1) for j in range(2 * PADDING + 1)]
    found = [
        [at for at in corners if (image[at[0] : at[0] + 6, at[1] : at[1] + 5] == one).all()]
        for image, one in zip(padded, cut, strict=True)
    ]
    assert all(found)
    rows, columns = np.array([places[0] for places in found if len(places) == 1]).T
    assert set(rows) == set(columns) == set(range(2 * PADDING + 1))


def test_flip_mirrors_about_half() -> None:
    flipped = np.asarray(flip(jax.random.key(0), IMAGES))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == IMAGES).all((1, 2, 3))).all()
    assert 16 < mirrored.sum() < 48


def test_one_after_another() -> None:
    both = augment(("crop", "flip"), jax.random.key(0), IMAGES)
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(both, flip(keys[1], crop(keys[0], IMAGES)))


def losses(seed: int = 0, **fields: object) -> list[float]:
    labels = np.arange(64) % 2
    data = Data(IMAGES, labels, **fields)  # pyright: ignore[reportArgumentType]
    problem = study.supervised(name="toy", model=lambda norm: ConvNet(norm, (4,), (1,), 2), data=data)
    program = problem.build(norms.get("layer"), {"batch_size": 8, "epochs": 2})
    state, step = jax.tree.map(jax.numpy.asarray, program.init(seed)), jax.jit(program.step)
    found = []
    for t in range(program.steps):
        state, loss = step(state, t, 0.1, program.data)
        found.append(float(loss))
    return [*found, float(program.evaluate(state, program.data)["validation"])]


def test_training() -> None:
    plain, changed = losses(), losses(augment=("crop", "flip"))
    assert changed == losses(augment=("crop", "flip"))
    assert changed[0] != plain[0]
    assert changed != losses(1, augment=("crop", "flip"))


def test_bytes_are_floats_to_the_model() -> None:
    as_floats = losses_of(IMAGES / np.float32(255))
    np.testing.assert_allclose(losses_of(IMAGES), as_floats, rtol=1e-5)
    standard = losses_of(IMAGES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    by_hand = (IMAGES / np.float32(255) - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.3, 0.4])
    np.testing.assert_allclose(standard, losses_of(by_hand), rtol=1e-4)


def losses_of(images: np.ndarray, **fields: object) -> list[float]:
    data = Data(images, np.arange(64) % 2, **fields)  # pyright: ignore[reportArgumentType]
    problem = study.supervised(name="toy", model=lambda norm: ConvNet(norm, (4,), (1,), 2), data=data)
    program = problem.build(norms.get("layer"), {"batch_size": 8, "epochs": 1})
    state, _ = jax.jit(program.step)(program.init(0), 0, 0.1, program.data)
    _, loss = jax.jit(program.step)(state, 1, 0.1, program.data)
    return [float(loss)]


def test_all_that_decides_is_in_the_hash() -> None:
    ways: list[dict[str, Any]] = [{"augment": ("crop",)}, {"augment": ("crop", "flip")}, {"augment": ("flip", "crop")}]
    others: list[dict[str, Any]] = [{}, {"drawn": (0.1, 0.2)}, {"mean": (0.5,)}, {"std": (0.5,)}, {"test": 5}]
    hashes = {data_hash(Data(IMAGES, np.arange(64), **fields).fingerprints) for fields in ways + others}
    assert len(hashes) == len(ways) + len(others)


@pytest.mark.parametrize(
    ("inputs", "fields", "message"),
    [
        (IMAGES, {"augment": ("spin",)}, "one of crop, flip"),
        (IMAGES[..., 0], {"augment": ("flip",)}, "for images"),
        (IMAGES, {"mean": (0.5, 0.5)}, "a number for each channel"),
    ],
)
def test_impossible(inputs: np.ndarray, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Data(inputs, np.arange(64), **fields)  # pyright: ignore[reportArgumentType]
