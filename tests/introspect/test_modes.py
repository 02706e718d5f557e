"""How a model is told to train is read from the signature of its call."""

from inspect import Parameter, Signature

import pytest
from flax import linen as nn
from flax import nnx

from normlab.introspect.modes import modes, told, unknown_mode


def model_with(name, **fields):
    """Return a model whose call has an argument of a name."""

    def call(self, x, **options):
        return x

    parameters = [Parameter("self", Parameter.POSITIONAL_ONLY), Parameter(name, Parameter.KEYWORD_ONLY)]
    call.__signature__ = Signature(parameters)
    annotations = dict.fromkeys(fields, bool)
    return type("Net", (nn.Module,), {"__annotations__": annotations, **fields, "__call__": call})()


@pytest.mark.parametrize("name", ["train", "training", "is_training", "is_train"])
def test_arguments_that_are_true_in_training(name):
    found = modes(model_with(name))
    assert (found.train, found.evaluate, found.known) == ({name: True}, {name: False}, True)
    assert found.of(True) == found.train and found.of(False) == found.evaluate


@pytest.mark.parametrize("name", ["deterministic", "eval", "use_running_average"])
def test_arguments_that_are_true_at_evaluation(name):
    found = modes(model_with(name))
    assert (found.train, found.evaluate, found.known) == ({name: False}, {name: True}, True)


def test_a_call_without_such_an_argument_is_not_known():
    found = modes(model_with("mask"))
    assert (found.train, found.evaluate, found.known) == ({}, {}, False)
    given = modes(model_with("mask"), train={"mode": "train"}, evaluate={"mode": "test"})
    assert (given.train, given.evaluate, given.known) == ({"mode": "train"}, {"mode": "test"}, True)
    assert not modes(model_with("mask"), train={"mode": "train"}).known


def test_given_keywords_stand_in_place_of_those_of_the_signature():
    found = modes(model_with("train"), train={"train": True, "epoch": 3})
    assert (found.train, found.evaluate) == ({"train": True, "epoch": 3}, {"train": False})


def test_what_a_field_says_is_not_said_again():
    assert modes(model_with("train", train=True)).train == {}
    assert modes(model_with("deterministic", deterministic=None)).train == {"deterministic": False}


def test_models_of_nnx_have_modes_of_their_own():
    assert modes(nnx.Linear(2, 2, rngs=nnx.Rngs(0))).known
    assert modes(nnx.Dropout(0.5, rngs=nnx.Rngs(0))).evaluate == {"deterministic": True}


def test_the_signature_is_that_of_the_method():
    class Two(nn.Module):
        def __call__(self, x, train):
            return x

        def encode(self, x, deterministic):
            return x

    assert modes(Two()).train == {"train": True}
    for method in ("encode", Two.encode, Two().encode):
        assert modes(Two(), method).train == {"deterministic": False}


@pytest.mark.parametrize(
    ("args", "kwargs", "train", "expected"),
    [
        ((0,), {}, None, {"train": False, "deterministic": True}),
        ((0,), {}, True, {"train": True, "deterministic": False}),
        ((0, True), {}, None, {}),
        ((0,), {"deterministic": False}, None, {}),
        ((0, True), {}, False, {"deterministic": True}),
        ((0,), {"deterministic": False}, True, {"train": True}),
    ],
)
def test_a_call_is_told_what_its_arguments_do_not_say(args, kwargs, train, expected):
    class Two(nn.Module):
        def __call__(self, x, train, deterministic):
            return x

    assert told(Two(), None, args, kwargs, train) == expected


def test_the_error_for_unknown_modes_says_what_to_give():
    assert str(unknown_mode()) == (
        "Expected to know how the model is told to train, got a call without an argument such as `train`. Give "
        "`train={...}` and `evaluate={...}`, the keywords of the call in either mode."
    )
