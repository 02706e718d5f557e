"""The networks as problems: each is trained on whatever data there are, with as many outputs as classes."""

from pathlib import Path

import jax
import numpy as np
import pytest

from normlab import norms
from normlab.study.design.problem import Problem
from normlab.study.problems import zoo
from normlab.study.training.loop import check

CLASSES = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "images.npz"
    inputs = random.integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(path, inputs=inputs, labels=np.arange(40) % CLASSES)
    return f"npz:{Path(path)}"


def problem(name: str) -> Problem:
    return zoo.problems(name)[0]


@pytest.mark.parametrize("name", sorted(zoo.MEMBERS.keys() - {"resnet56", "vgg16"}))  # deeper, of the same classes
def test_is_trained_on_the_data_that_are_chosen(name: str, images: str) -> None:
    config = {"batch_size": 8, "epochs": 1, "data": images}
    norm = "none" if name in ("resnet20-fixup", "resnet20-nf") else "group"
    options = problem(name).norm_options(norm, config)
    program = problem(name).build(norms.get(norm, **options), config)
    check(program)
    state = jax.eval_shape(lambda: program.init(0))
    sizes = [leaf.shape for leaf in jax.tree.leaves(state.params)]
    assert (CLASSES,) in sizes
    assert (10,) not in sizes or name in ("mlp", "mlp-sigmoid")


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_says_whether_there_are_positions(name: str, images: str) -> None:
    config = {"batch_size": 8, "epochs": 1, "data": images}

    def traced() -> None:
        check(problem(name).build(norms.get("instance"), config))

    if problem(name).spatial:
        traced()
    else:
        with pytest.raises(ValueError, match="positions"):
            traced()


def test_networks_without_norms_refuse_one(images: str) -> None:
    with pytest.raises(ValueError, match="Expected the norm 'none' in a network without norms, got 'batch'"):
        check(problem("resnet20-nf").build(norms.get("batch"), {"batch_size": 8, "epochs": 1, "data": images}))


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_norms_of_groups_have_groups_that_fit(name: str, images: str) -> None:
    config = {"batch_size": 8, "epochs": 1, "data": images}
    for norm in (*zoo.GROUPED, "whiten", "group_whiten"):
        if not norms.get(norm).needs_spatial or problem(name).spatial:
            check(problem(name).build(norms.get(norm, **problem(name).norm_options(norm, config)), config))


def test_digits_unless_chosen() -> None:
    program = problem("mlp").build(norms.get("none"), {"batch_size": 8, "epochs": 1})
    assert program.data["inputs"].shape == (1797, 8, 8, 1)
    assert "1,797" in program.description


@pytest.mark.parametrize(
    ("name", "inputs", "labels", "message"),
    [
        ("conv", (20, 8, 8), np.arange(20) % 2, r"images of shape .* for `conv`, got inputs of shape \(20, 8, 8\)"),
        ("mlp", (20, 8), np.ones((20, 2), int), r"one label for each example, got labels of shape \(20, 2\)"),
        ("mlp", (40, 8), np.ones(40), "`labels` to be classes, .* got float32"),
    ],
)
def test_unsuitable(name: str, inputs: tuple[int, ...], labels: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", inputs=np.ones(inputs, np.float32), labels=labels)
    with pytest.raises(ValueError, match=message):
        problem(name).build(norms.get("none"), {"batch_size": 8, "epochs": 1, "data": f"npz:{tmp_path / 'some.npz'}"})
