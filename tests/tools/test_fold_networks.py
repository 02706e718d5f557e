"""Folding of the networks of this package, in Linen and NNX."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab import norms
from normlab.models import nnx as in_nnx
from normlab.models.resnet import ResNet
from normlab.models.vgg import VGG
from normlab.tools import Folded, Shift, fold
from tests.support.shaken import drawn, fingerprint, shake

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("net", "options", "count"),
    [
        (ResNet(norms.get("batch")), {}, (19, 19)),
        (ResNet(norms.get("batch"), placement="pre"), {"follow": False}, (10, 19)),
        (ResNet(norms.get("batch_renorm"), depth=8), {}, (7, 7)),
        (VGG(norms.get("batch"), depth=11), {}, (8, 8)),
    ],
)
def test_networks(net: nn.Module, options: dict[str, Any], count: tuple[int, int]) -> None:
    variables = drawn(net, IMAGES, train=False)
    before = fingerprint(variables)
    result = fold(net, variables, IMAGES, **options)
    assert (result.report.folded, len(result.report)) == count
    assert fingerprint(variables) == before
    assert result.difference is not None and 0 < result.difference <= 1e-5 * largest(result)
    assert set(result.variables) == {"params"}
    assert {row.how for row in result.report} <= {"identity", "bias", "affine"}
    assert "rsqrt" not in str(jax.make_jaxpr(result)(IMAGES))


def test_a_network_called_by_its_user() -> None:
    net = ResNet(norms.get("batch"), depth=8)
    variables = drawn(net, IMAGES, train=False)
    result = fold(net, variables, IMAGES)
    expected = jax.jit(lambda x: net.apply(variables, x, train=False))(IMAGES)
    bound = 1e-5 * largest(result)
    np.testing.assert_allclose(jax.jit(result)(IMAGES), expected, rtol=0, atol=bound)
    np.testing.assert_allclose(result.apply(result.variables, IMAGES, train=False), expected, rtol=0, atol=bound)


def largest(result: Folded) -> float:
    return max(1.0, float(np.abs(jax.jit(result)(IMAGES)).max()))


@pytest.mark.parametrize(("name", "depth", "count"), [("batch", 20, 19), ("batch_renorm", 8, 7)])
def test_networks_of_nnx(name: str, depth: int, count: int) -> None:
    net = in_nnx.ResNet(norms.get(name), depth, rngs=nnx.Rngs(0))
    shake(net)
    before = fingerprint(nnx.state(net))
    result = fold(net, None, IMAGES)
    assert fingerprint(nnx.state(net)) == before
    assert (result.report.folded, len(result.report)) == (count, count)
    assert {row.how for row in result.report} == {"bias"}
    model: Any = result.model
    assert isinstance(model.block_2.norm_1, Shift)
    assert model.block_2.norm_1.scale is None
    assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert "rsqrt" not in str(jax.make_jaxpr(result)(IMAGES))
    assert result.difference is not None and 0 < result.difference <= 1e-5 * largest(result)
