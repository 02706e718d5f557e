"""Networks of the studies by name."""

import jax
import numpy as np
import pytest

from experiments.claims import networks
from experiments.claims.images import Images, Part
from normlab.errors import BadInput

PART = Part(np.zeros((2, 8, 8, 3), np.float32), np.arange(2, dtype=np.int32))
DATA = Images(train=PART, validation=PART, test=PART, classes=7, name="nothing")


@pytest.mark.parametrize(
    ("name", "title", "dense", "norms"),
    [("mlp-6", "MLP 6 x 100", True, 6), ("conv", "ConvNet", False, 3), ("resnet-8", "ResNet-8", False, 7)],
)
def test_networks_have_their_depth_and_the_classes_of_the_images(
    name: str, title: str, dense: bool, norms: int
) -> None:
    net = networks.made(name, "batch", DATA)
    params, state = jax.eval_shape(net.init, np.uint32(0))
    assert (networks.title(name), networks.dense(name)) == (title, dense)
    assert len(jax.tree.leaves(state[0]["batch_stats"])) == 2 * norms
    assert jax.eval_shape(net.evaluate, params, state, PART.inputs).shape == (2, 7)


def test_dense_layers_start_by_he() -> None:
    kernel = networks.made("mlp-2", "none", DATA).init(0)[0]["dense_1"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 100), rel=0.05)


@pytest.mark.parametrize("name", ["mlp", "mlp-0", "conv-3", "resnet-9", "resnet-2", "vgg"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"got `{name}`"):
        networks.dense(name)
