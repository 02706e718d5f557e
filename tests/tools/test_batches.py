"""The arguments of a model are found in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab.errors import BadInput
from normlab.tools.batches import default_call

X = np.ones((2, 3))
SHAPE = jax.ShapeDtypeStruct((2, 3), jnp.float32)


@pytest.mark.parametrize("x", [X, jnp.ones((2, 3)), SHAPE], ids=["numpy", "jax", "shape"])
def test_the_inputs_are_the_batch_or_its_first_part_or_are_named(x):
    for batch in (x, (x, "labels"), [x, "labels"], {"labels": 0, "image": x}, {"x": x}, {"inputs": x, "x": 0}):
        (given,), kwargs = default_call(batch)
        assert given is x and kwargs == {}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"labels": 0, "pixels": X},
            "Expected a batch with one of 'inputs', 'image', 'x', got `labels, pixels`. "
            "Give `call=lambda batch: ((batch[...],), {})`, the arguments of the model.",
        ),
        (
            "abc",
            "Expected a batch of arrays, a tuple or a dict, got `abc`. "
            "Give `call=lambda batch: ((batch[...],), {})`, the arguments of the model.",
        ),
        (
            jax.ShapeDtypeStruct((), jnp.float32),
            "Expected a batch of arrays, a tuple or a dict, got a value of type `ShapeDtypeStruct`. "
            "Give `call=lambda batch: ((batch[...],), {})`, the arguments of the model.",
        ),
    ],
)
def test_a_batch_in_which_the_inputs_are_not_known_is_refused(batch, message):
    with pytest.raises(BadInput) as error:
        default_call(batch)
    assert str(error.value) == message
