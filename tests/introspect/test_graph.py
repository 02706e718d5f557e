"""The walk over a jaxpr knows the primitives that only call or hand on, and JAX still has them by these names."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr

from normlab.introspect.graph import CALLS, SAME

MOVED = "jaxpr changed: update CALLS"
X = jax.ShapeDtypeStruct((4, 3), jnp.float32)


@jax.custom_jvp
def with_jvp(x):
    return x * 2


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0] * 2))


@jax.custom_vjp
def with_vjp(x):
    return x * 2


with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, gradient: (gradient * 2,))


def only_equation(function):
    (equation,) = jax.make_jaxpr(function)(X).eqns
    return equation


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.jit(lambda x: x * 2), "jit"),
        (jax.checkpoint(lambda x: x * 2), "remat2"),
        (with_jvp, "custom_jvp_call"),
        (with_vjp, "custom_vjp_call"),
    ],
)
def test_a_call_has_its_name_and_a_jaxpr_with_the_same_inputs_and_outputs(function, name):
    equation = only_equation(function)
    assert equation.primitive.name == name and name in CALLS, MOVED
    body = equation.params.get(CALLS[name])
    assert isinstance(body, Jaxpr | ClosedJaxpr), MOVED
    body = body.jaxpr if isinstance(body, ClosedJaxpr) else body
    assert (len(body.invars), len(body.outvars)) == (len(equation.invars), len(equation.outvars)), MOVED


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.astype(jnp.bfloat16),
        jnp.copy,
        jax.lax.optimization_barrier,
        lambda x: checkpoint_name(x, "x"),
        lambda x: jax.lax.with_sharding_constraint(x, jax.sharding.SingleDeviceSharding(jax.devices()[0])),
    ],
)
def test_an_operation_that_hands_a_value_on_has_its_name(function):
    equation = only_equation(function)
    assert equation.primitive.name in SAME, MOVED
    assert len(equation.invars) == len(equation.outvars) == 1, MOVED


@pytest.mark.parametrize(
    ("function", "name", "parameter"),
    [
        (lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, None, length=5)[0], "scan", "length"),
        (lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x * 2, x), "while", "body_jaxpr"),
    ],
)
def test_a_loop_has_its_name_and_a_body(function, name, parameter):
    equation = only_equation(function)
    assert equation.primitive.name == name and parameter in equation.params, MOVED
    assert name not in CALLS and name not in SAME


def test_the_name_of_a_marker_is_a_parameter():
    assert only_equation(lambda x: checkpoint_name(x, "marker")).params["name"] == "marker", MOVED


def test_a_mark_stays_under_every_transform():
    marked = lambda x: checkpoint_name(x, "marker")  # noqa: E731
    for function in (jax.vmap(marked), jax.jit(marked), jax.checkpoint(marked), lambda x: jax.lax.map(marked, x)):
        assert "name=marker" in str(jax.make_jaxpr(function)(X)), MOVED
