"""Norms are chosen by path, and a path that means none is an error with the one that is meant."""

import jax
import pytest
from flax import linen as nn

from normlab.errors import BadInput
from normlab.tools import select, sites
from tests.support import normed


@pytest.fixture(scope="module")
def found():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(name="norm_0")(nn.Dense(4, name="conv_0")(x))
            return nn.RMSNorm(name="norm_1")(nn.relu(nn.Dense(4, name="conv_1")(x)))

    model = nn.Sequential([Pair(), Pair(), nn.Dense(2)])
    return sites(model, jax.eval_shape(model.init, jax.random.key(0), normed.inputs()), normed.inputs())


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        (None, ["layers_0/norm_0", "layers_0/norm_1", "layers_1/norm_0", "layers_1/norm_1"]),
        ("*", ["layers_0/norm_0", "layers_0/norm_1", "layers_1/norm_0", "layers_1/norm_1"]),
        ("*/norm_0", ["layers_0/norm_0", "layers_1/norm_0"]),
        ("layers_1/norm_[01]", ["layers_1/norm_0", "layers_1/norm_1"]),
        (["layers_1/*", "layers_0/norm_0"], ["layers_0/norm_0", "layers_1/norm_0", "layers_1/norm_1"]),
        (("layers_0/norm_1", "layers_0/norm_?"), ["layers_0/norm_0", "layers_0/norm_1"]),
        (lambda site: site.kind == "rms", ["layers_0/norm_1", "layers_1/norm_1"]),
        (lambda site: False, []),
        ([], []),
    ],
)
def test_norms_are_chosen_in_the_order_of_the_model(found, where, paths):
    assert [site.path for site in select(found, where)] == paths


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "layers_0/norm_2",
            "Expected a glob that matches the path of a norm, got `layers_0/norm_2`. Did you mean `layers_0/norm_1`?",
        ),
        (
            ["layers_0/*", "stem"],
            "Expected a glob that matches the path of a norm, got `stem`. Known: layers_0/norm_0, layers_0/norm_1, "
            "layers_1/norm_0, layers_1/norm_1.",
        ),
        (
            "layers_1/conv_0",
            "Expected the path of a norm, got `layers_1/conv_0`. `layers_1/conv_0` is no norm; its norm is "
            "`layers_1/norm_0`.",
        ),
        (
            "layers_1",
            "Expected the path of a norm, got `layers_1`. `layers_1` is no norm. Did you mean `layers_1/norm_1`?",
        ),
        (3, "Expected `where` to be a glob, a list of globs, or a function of a site, got 3. Write one of them."),
        ([3], "Expected `where` to be a glob, a list of globs, or a function of a site, got [3]. Write one of them."),
    ],
)
def test_a_choice_of_no_norm_is_refused(found, where, message):
    with pytest.raises(BadInput) as raised:
        select(found, where)
    assert str(raised.value) == message
