"""How many arrays as large as the input reverse mode keeps of each norm, the input among them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from normlab import norms

SHAPE = (4, 3, 2, 64)
KEPT = {
    "batch": 1,  # for comparison, as the next three
    "layer": 2,
    "rms": 2,
    "group": 1,
    "derf": 3,
    "seednorm": 1,
    "bhyt": 1,
    "l2": 3,
    "local_response": 2,
    "frn": 3,
    "evonorm_b0": 3,
    "evonorm_b1": 2,
    "evonorm_b2": 3,
    "evonorm_s0": 2,
    "evonorm_s1": 2,
    "evonorm_s2": 1,
    "grn": 2,
    "mean_only_batch": 0,
    "batch_channel": 2,
    "representative": 2,
    "switchable": 2,
    "domain_batch:splits=2": 2,
    "whiten:group_size=8": 1,
    "group_whiten:num_groups=4": 2,
    "power": 2,
    "mabn": 1,
}
"""Arrays kept. Without a rule of its own a norm keeps each array that autodiff multiplies by."""


def kept(norm: str, shape: tuple[int, ...]) -> int:
    """Count distinct arrays that the backward pass of a norm in training reads, of the size of the input."""
    module = norms.get(norm).linen(train=True)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.ones(shape))

    def residuals(variables: Any, x: jax.Array) -> Any:
        params = variables.get("params", {})
        state = {kind: part for kind, part in variables.items() if kind != "params"}
        return jax.vjp(lambda p, x: module.apply({"params": p, **state}, x, mutable=list(state))[0], params, x)[1]

    jaxpr = jax.make_jaxpr(residuals)(variables, jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
    return len({var for var in jaxpr.outvars if math.prod(var.aval.shape) >= math.prod(shape)})


WITHOUT_POSITIONS = {"grn": 1, "switchable": 1, "domain_batch:splits=2": 1, "representative": 3, "mabn": 1}
"""Arrays kept where statistics of an example are as large as it is."""


@pytest.mark.parametrize("norm", WITHOUT_POSITIONS)
def test_reverse_mode_keeps_no_more_without_positions(norm: str) -> None:
    assert kept(norm, (24, 64)) == WITHOUT_POSITIONS[norm]


@pytest.mark.parametrize("norm", KEPT)
def test_reverse_mode_keeps_no_more_than_these_arrays(norm: str) -> None:
    assert kept(norm, SHAPE) == KEPT[norm]
