"""Checks of every recurrent cell with every norm: outputs, last state, running statistics and gradients."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks.accelerator.checks import Check, distance, slope_errors
from normlab import functional as F
from normlab import linen, norms
from tests.support import reference

__all__ = ["cell_checks"]

TIME, INPUTS, WIDTH = 5, 16, 32
LENGTHS = np.array([5] * 9 + [4, 4, 3, 3, 2, 1, 0])
"""Steps of the sequences: statistics over the few that reach the last step would magnify the rounding of bfloat16."""

POSITIVE = {"scale": (0.1, 0.3), "var": (0.5, 1.5)}
"""Ranges of variables that are not normal; a larger scale inside a cell makes its gradients grow from step to step."""

CELLS = {"simple": linen.SimpleCell, "lstm": linen.LSTMCell, "gru": linen.GRUCell}
NORMS = (
    "layer",
    "batch_step:max_steps=4",
    "none",
    "rms",
    "layer_per_gate",
    "group:num_groups=4",
    "batch_shared",
    "batch_input",
)
PRECISIONS = (("float32", "highest", 1e-4), ("bfloat16", "default", 0.1), ("float32", "default", 0.05))
"""Dtypes, precisions of matrix products, and tolerances. Accelerators round factors to 8 or 11 bits by default."""


@dataclass(frozen=True)
class Cell:
    """A recurrent network with a norm in its cell, in training."""

    cell: str
    norm: str
    dtype: str
    precision: str

    @property
    def spec(self) -> norms.Norm:
        """The norm of the registry."""
        return norms.get(self.norm)

    @functools.cached_property
    def module(self) -> linen.RNN:
        """Its Linen module."""
        cell = CELLS[self.cell](WIDTH, norm=self.norm, use_running_average=False, dtype=jnp.dtype(self.dtype))
        return linen.RNN(cell, return_carry=True)

    @functools.cached_property
    def arguments(self) -> tuple[Any, ...]:
        """Variables, inputs with NaN past the end of each sequence, a state, and cotangents of outputs and state."""
        rng, dtype = np.random.default_rng(1), jnp.dtype(self.dtype)
        live = np.arange(TIME) < LENGTHS[:, None]
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), jnp.ones((2, 2, INPUTS), dtype))

        def draw(path: Any, leaf: Any) -> jax.Array:
            if path[-1].key in POSITIVE:
                return jnp.asarray(rng.uniform(*POSITIVE[path[-1].key], leaf.shape), leaf.dtype)
            spread = len(leaf.shape) == 2 and path[-1].key == "kernel"
            return jnp.asarray(rng.normal(size=leaf.shape) / (leaf.shape[0] ** 0.5 if spread else 1), leaf.dtype)

        x = np.where(live[..., None], rng.normal(size=(len(LENGTHS), TIME, INPUTS)), np.nan)
        parts = 2 if self.cell == "lstm" else 1
        states = rng.normal(size=(2, parts, len(LENGTHS), WIDTH))
        weights = rng.normal(size=(len(LENGTHS), TIME, WIDTH))
        x, state, dstate, dy = (jnp.asarray(a, dtype) for a in (x, *states, weights))
        return jax.tree_util.tree_map_with_path(draw, shapes), x, tuple(state), (dy, *dstate)

    def program(self, variables: Any, x: jax.Array, state: Any, weights: Any) -> Any:
        """Return outputs with the last state, running statistics, and gradients."""

        def loss(params: Any, x: jax.Array, state: Any) -> Any:
            (carry, y), after = self.module.apply(
                {**variables, "params": params},
                x,
                initial_carry=self.carry(state),
                seq_lengths=jnp.asarray(LENGTHS),
                mutable=["batch_stats"],
            )
            found = (y, *jax.tree.leaves(carry.carry if isinstance(carry, F.TimedCarry) else carry))
            wide = [(w.astype(jnp.float32), part.astype(jnp.float32)) for w, part in zip(weights, found, strict=True)]
            return sum((w * part).sum() for w, part in wide), (found, after)

        with jax.default_matmul_precision(self.precision):
            gradients, (found, after) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(variables["params"], x, state)
        return found, after, gradients

    def carry(self, state: tuple[jax.Array, ...]) -> Any:
        """Return a state as the cell takes it."""
        carry = state if len(state) == 2 else state[0]
        return F.TimedCarry(carry, jnp.zeros(len(LENGTHS), jnp.int32)) if self.spec.stateful else carry

    def expected(self, at: Mapping[str, np.ndarray]) -> tuple[tuple[np.ndarray, ...], reference.Variables]:
        """Compute outputs, last state and running statistics in float64."""
        state = [at[f"state {i}"] for i in range(2) if f"state {i}" in at]
        options: dict[str, Any] = self.spec.options
        return reference.recurrent(self.cell, self.spec.name, dict(at), at["x"], state, LENGTHS, **options)

    def errors(self, outputs: Any, arguments: Any) -> dict[str, float]:
        """Compare outputs of the program; of the parameters the worst."""
        (found, after, (of_params, of_x, of_state)) = outputs
        variables, x, state, weights = arguments
        at = {**by_path(variables), "x": np.nan_to_num(np.asarray(x, np.float64)), **numbered(state)}
        weights = [np.asarray(w, np.float64) for w in weights]
        right, statistics = self.expected(at)
        errors = {"y": distance(found[0], right[0])}
        errors["state"] = max(distance(a, b) for a, b in zip(found[1:], right[1:], strict=True))
        moved = [distance(value, statistics[name], 1.0) for name, value in by_path(after).items()]
        if moved:
            errors["statistics"] = max(moved)

        def loss(at: Mapping[str, np.ndarray]) -> float:
            return sum(float(np.vdot(w, part)) for w, part in zip(weights, self.expected(at)[0], strict=True))

        params = by_path({"params": of_params})
        slopes = slope_errors({"x": of_x, **numbered(of_state), **params}, loss, at)
        errors["dx"] = slopes["x"]
        errors["dstate"] = max(error for name, error in slopes.items() if name.startswith("state "))
        return errors | {"dparams": max(slopes[name] for name in params)}


def cell_checks(tiny: bool = False) -> Iterator[Check]:
    """Yield the checks, most valuable first; `tiny` keeps the simple cell with a norm, in float32 and bfloat16."""
    cells, chosen, precisions = (("simple",), NORMS[1:2], PRECISIONS[:2]) if tiny else (CELLS, NORMS, PRECISIONS)
    for (dtype, precision, tolerance), norm, cell in itertools.product(precisions, chosen, cells):
        case = Cell(cell, norm, dtype, precision)
        yield Check(
            columns={"norm": norm, "case": f"{cell}, {precision} precision", "dtype": dtype},
            program=case.program,
            draws=[({}, case.arguments)],
            errors=dataclasses.replace(case).errors,  # without what is cached, to travel to another process
            tolerance=tolerance,
        )


def numbered(state: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Return the parts of a state by name."""
    return {f"state {i}": np.asarray(part, np.float64) for i, part in enumerate(state)}


def by_path(variables: Any) -> dict[str, np.ndarray]:
    """Return variables by their paths within the cell, in float64."""
    return {"/".join(path[2:]): np.asarray(leaf, np.float64) for path, leaf in flatten_dict(dict(variables)).items()}
