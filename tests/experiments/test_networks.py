"""Networks of the studies by name."""

import importlib

import jax
import numpy as np
import pytest

from experiments.claims import networks
from experiments.claims.images import Images, Part
from normlab.errors import BadInput
from tests.support.paths import ROOT

PART = Part(np.zeros((2, 8, 8, 3), np.float32), np.arange(2, dtype=np.int32))
DATA = Images(train=PART, validation=PART, test=PART, classes=7, name="nothing")


@pytest.mark.parametrize(
    ("name", "title", "dense", "norms"),
    [
        ("mlp-6", "MLP 6 x 100", True, 6),
        ("mlp-2x16", "MLP 2 x 16", True, 2),
        ("conv", "ConvNet", False, 3),
        ("conv-32-64-64-128", "ConvNet 32-64-64-128", False, 4),
        ("vgg-11", "VGG-11", False, 8),
        ("resnet-8", "ResNet-8", False, 7),
    ],
)
def test_networks_have_their_depth_and_the_classes_of_the_images(
    name: str, title: str, dense: bool, norms: int
) -> None:
    net = networks.made(name, "batch", DATA)
    params, state = jax.eval_shape(net.init, np.uint32(0))
    assert (networks.title(name), networks.dense(name)) == (title, dense)
    assert len(jax.tree.leaves(state[0]["batch_stats"])) == 2 * norms
    assert jax.eval_shape(net.evaluate, params, state, PART.inputs).shape == (2, 7)


@pytest.mark.parametrize(("fields", "square"), [({}, 2), ({"kernel_scale": networks.LECUN}, 1)])
def test_dense_layers_start_by_he_unless_told_otherwise(fields: dict[str, float], square: float) -> None:
    kernel = networks.made("mlp-2", "none", DATA, **fields).init(0)[0]["dense_1"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(square / 100), rel=0.05)


def studies() -> list[str]:
    return sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "study = Study(" in path.read_text())


@pytest.mark.parametrize("name", studies())
def test_the_networks_of_a_study_are_in_the_table(name: str) -> None:
    for listed in importlib.import_module(f"experiments.{name}").study.networks:
        assert networks.title(listed)


@pytest.mark.parametrize("name", ["mlp", "mlp-0", "mlp-2x", "conv-3", "resnet-9", "resnet-2", "vgg", "vgg-12"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"got `{name}`"):
        networks.dense(name)
