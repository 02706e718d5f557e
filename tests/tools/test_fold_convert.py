"""Folding and converting commute at evaluation, in Linen and NNX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import normlab.linen
import normlab.nnx
from normlab.tools import convert, fold, sites
from tests.tools.nets import Net, NNXNet, start

X = jax.random.normal(jax.random.key(5), (6, 4))
NORMS: dict[str, tuple[Any, Any]] = {
    "flax": (nn.BatchNorm, nnx.BatchNorm),
    "normlab": (normlab.linen.BatchNorm, normlab.nnx.BatchNorm),
}
FORMS = ("flax", "normlab", "batch:axis_name=data", "batch:ghost_batch_size=2", "batch:frozen=True", "batch_renorm")
CASES = pytest.mark.parametrize("make", ["linen", "nnx"])
PATHS = {"linen": ("first", "second"), "nnx": ("norms/0", "norms/1")}
DRAWN = given(
    of=st.sampled_from(sorted(NORMS)), form=st.sampled_from(FORMS), seed=st.integers(0, 99), swapped=st.booleans()
)
FEW = settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])


def made(make: str, of: str, seed: int) -> tuple[Any, Any]:
    """Return a model whose variables are not those of the start, and its variables."""
    if make == "linen":
        model: Any = Net(NORMS[of][0])
        return model, varied(start(model, np.asarray(X)), seed)
    model = NNXNet(NORMS[of][1])
    nnx.update(model, varied(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)), seed))
    model.eval()
    return model, None


def varied(tree: Any, seed: int) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + jax.random.uniform(key, leaf.shape, leaf.dtype) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def folded(model: Any, variables: Any, where: str | None) -> tuple[Any, Any]:
    found = fold(model, variables, X, where=where, tolerance=1e-4)
    assert {row.how for row in found.report if where in (None, row.path)} <= {"identity", "bias"}
    return (found.model, None) if variables is None else (found.model, found.variables)


def converted(model: Any, variables: Any, to: str, where: str | None) -> tuple[Any, Any]:
    found = convert(model, variables, to, args=(X,), where=where)
    return found.model, found.variables


def outputs(model: Any, variables: Any) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model(X) if variables is None else model.apply(variables, X, train=False)


def leaves_of(model: Any, variables: Any) -> list[tuple[str, np.ndarray]]:
    tree = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)) if variables is None else variables
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in found]


def same(first: tuple[Any, Any], second: tuple[Any, Any]) -> bool:
    pairs = zip(leaves_of(*first), leaves_of(*second), strict=True)
    return all(a == b and np.allclose(x, y, rtol=1e-6, atol=1e-6) for (a, x), (b, y) in pairs)


@CASES
@FEW
@DRAWN
def test_of_two_norms_one_is_folded_and_the_other_converted(
    make: str, of: str, form: str, seed: int, swapped: bool
) -> None:
    model, (one, other) = made(make, of, seed), PATHS[make][:: -1 if swapped else 1]
    first = converted(*folded(*model, one), form, other)
    second = folded(*converted(*model, form, other), one)
    assert same(first, second)
    assert jnp.allclose(outputs(*first), outputs(*second), rtol=1e-6, atol=1e-6)
    assert jnp.allclose(outputs(*first), outputs(*model), rtol=1e-5, atol=1e-5)


@CASES
@FEW
@DRAWN
def test_the_fold_of_a_converted_norm_is_that_of_the_norm(
    make: str, of: str, form: str, seed: int, swapped: bool
) -> None:
    model = made(make, of, seed)
    where = PATHS[make][swapped]
    first, second = folded(*converted(*model, form, where), None), folded(*model, None)
    assert same(first, second)
    assert jnp.allclose(outputs(*first), outputs(*second), rtol=1e-6, atol=1e-6)


def test_a_folded_norm_is_no_norm_any_more_and_the_next_tool_knows_the_call() -> None:
    model, variables = folded(*made("linen", "flax", 1), "first")
    assert [site.path for site in sites(model, variables, X)] == ["second"]
    again = fold(model, variables, X)
    assert [(row.path, row.how) for row in again.report] == [("second", "identity")]
    assert jnp.allclose(again(X), model.apply(variables, X, train=False), atol=1e-5)
