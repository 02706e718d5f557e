"""Compare random cases of every norm and cell with float64: `python -m tests.support.fuzz --cases 5000`.

Shapes of rank 0 to 6 with axes of size 0 and 1, axes in any order, masks with NaN underneath, whole numbers, float16,
bfloat16, float32 and float64, offsets up to 1e6 and magnitudes from 1e-30 to 1e30. A case is right where the output is
that of float64 to 4e-6 of the largest output (of batch renorm: or of the range of `x` in running deviations; and its
own rounding in half precision), where running statistics are to 1e-5, and where an element that a mask leaves out is
never read. It is refused where a `ValueError` or a `TypeError` of ours says so, and loud where squares beyond the range
of float32 give NaN. Anything else is wrong; prints how many there were of each, and exits with 1 if any was wrong.
"""

import argparse
import collections
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normlab import functional as F
from normlab import norms
from normlab.notation import parse
from normlab.study.training.compilation_cache import use_cache
from tests.support import reference, references

FLOATS = ("float32", "bfloat16", "float16", "float64")
LARGEST = {"float16": 3e4, "float32": 1e30, "bfloat16": 1e30, "float64": 1e30}
OVERFLOWS = 1e17
"""Size from which squares of differences, or their sums, may leave float32."""
VALUES = 8
"""Inputs of each program: XLA's compiling is most of the time."""


@dataclass(frozen=True)
class Case:
    """Norm, its input and options, and the function that compares it."""

    norm: str
    shape: tuple[int, ...]
    dtype: str
    mask: tuple[int, ...] | None

    def __str__(self) -> str:
        return f"{self.norm} on {self.dtype}{list(self.shape)}, mask {self.mask}"


def some(rng: np.random.Generator, axes: range) -> tuple[int, ...]:
    """Draw some of the axes, at least one, in any order and counted from either end."""
    chosen = rng.permutation(axes)[: rng.integers(1, len(axes) + 1)]
    return tuple(int(a) - (len(axes) if rng.random() < 0.3 and axes.start == 0 else 0) for a in chosen)


def norm_of(rng: np.random.Generator, shape: tuple[int, ...]) -> str:
    """Draw a norm with random options, which need not fit the shape."""
    name = str(rng.choice(norms.names()))
    all_axes = range(max(1, len(shape)))
    epsilon = f"epsilon={rng.choice([1e-3, 1e-5])}"
    features = shape[-1] if shape else 1
    groups = int(rng.choice([d for d in range(1, max(features, 1) + 1) if features % d == 0] + [3]))
    options = {
        "batch": [f"axis={some(rng, all_axes)}", "axis=-1", "momentum=None", "ghost_batch_size=2", "momentum=0.9"],
        "batch_renorm": [f"axis={some(rng, all_axes)}", "axis=-1", "r_max=1.5,d_max=0.5"],
        "layer": [f"reduction_axes={some(rng, all_axes)},feature_axes={some(rng, all_axes)}", "epsilon=1e-3"],
        "rms": [f"reduction_axes={some(rng, all_axes)},feature_axes={some(rng, all_axes)}", "epsilon=1e-3"],
        "group": [f"num_groups={groups},{epsilon}", f"group_size={groups},{epsilon}"],
        "instance": [f"feature_axes={some(rng, all_axes)}", epsilon],
        "continual": [f"num_groups={groups},{epsilon}"],
        "online": ["guard=None", "guard='clamp'", "momentum=0.9"],
        "streaming": ["mix=(0,1)", "mix=(0.2,0.5,0.3)", "momentum=0.5"],
    }.get(name, [""])
    chosen = str(rng.choice(options))
    return f"{name}:{chosen}" if chosen else name


def case_of(rng: np.random.Generator) -> Case:
    """Draw a random case."""
    rank = int(rng.choice(7, p=[0.03, 0.07, 0.3, 0.25, 0.2, 0.1, 0.05]))
    sizes = [1, 2, 3, 4, 5, 8, 17] if rank > 3 else [1, 2, 3, 5, 8, 16, 33, 64]
    shape = tuple(0 if rng.random() < 0.03 else int(rng.choice(sizes[: 5 if rank > 4 else None])) for _ in range(rank))
    mask = None
    if rng.random() < 0.4:
        mask = tuple(n if rng.random() < 0.5 else 1 for n in shape)[int(rng.integers(0, rank + 1)) :]
    dtype = str(rng.choice([*FLOATS, "int32"], p=[0.5, 0.18, 0.15, 0.12, 0.05]))
    return Case(norm_of(rng, shape), shape, dtype, mask)


def input_of(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Draw a random input in float64, already rounded to its dtype."""
    if case.dtype == "int32":
        return rng.integers(-1000, 1000, case.shape).astype(np.float64)
    kind = rng.choice(["size", "offset", "constant", "spike", "steps"], p=[0.4, 0.3, 0.1, 0.1, 0.1])
    size = 10.0 ** rng.uniform(-30, np.log10(LARGEST[case.dtype])) if kind == "size" else 10.0 ** rng.uniform(-2, 2)
    x = size * rng.normal(size=case.shape)
    if kind == "offset":
        x = x + 10.0 ** rng.uniform(0, 4 if case.dtype == "float16" else 6) * rng.choice([-1, 1])
    elif kind == "constant":
        x = np.full(case.shape, x.flat[0] if x.size else 0.0)
    elif kind == "spike" and x.size:
        x.flat[rng.integers(x.size)] *= 1e3
    elif kind == "steps":
        x = np.round(x)
    return np.asarray(np.clip(x, -LARGEST[case.dtype], LARGEST[case.dtype]).astype(jnp.dtype(case.dtype)), np.float64)


def variables_of(module: Any, x: jax.Array) -> Any:
    """Draw parameters and state, all different from their initial values."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(3 if whole else rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), x))


def expected(case: Case, x: np.ndarray, variables: Any, where: np.ndarray | None) -> reference.Result:
    """Compute output and state in float64."""
    spec = norms.get(case.norm)
    flat = {k: np.asarray(v, np.float64) for part in variables.values() for k, v in part.items()}
    options = {k: v for k, v in spec.options.items() if k not in ("use_scale", "use_bias")}
    seen = x if where is None else np.where(np.broadcast_to(where, x.shape), x, 0)
    with np.errstate(all="ignore"):
        return references.NORMS[spec.name](seen, flat, where, **options)


def largest_term(case: Case, x: np.ndarray, variables: Any) -> float:
    """Return the largest term of an output: batch renorm divides distances within `x` by the running deviation."""
    renorm = norms.get(case.norm).name == "batch_renorm"
    return float(np.ptp(x) / np.min(variables["batch_stats"]["std"])) if renorm else 0.0


def verdict(found: np.ndarray, right: np.ndarray, x: np.ndarray, case: Case, tolerance: float, term: float) -> str:
    """Return `right`, `loud` or the error; `term` is the largest term of an output."""
    if found.shape != right.shape:
        return f"shape {found.shape}, expected {right.shape}"
    if not right.size:
        return "right"
    scale = np.abs(right).max()
    loud = case.dtype != "float64" and np.abs(x).max(initial=0) > OVERFLOWS and not np.isfinite(found).all()
    if loud:  # finite outputs must still be right
        found, right = (np.where(np.isfinite(found), a, 0) for a in (found, right))
    kind = jnp.finfo(case.dtype if case.dtype in FLOATS else "float32")
    if scale > float(kind.max):
        return "right" if not np.isfinite(found).all() else "an output that its dtype cannot have"
    own = 0.0 if case.dtype == "float32" else float(kind.eps) / 2
    error = np.abs(found - right) - own * np.abs(right) - float(kind.smallest_subnormal)
    if case.dtype == "float64":  # the reference itself loses digits to an offset
        tolerance = 1e-11 + 1e-13 * float(np.abs(x).max(initial=0)) if np.abs(x).max(initial=0) < OVERFLOWS else 1e-9
    if np.isnan(error).any() or error.max(initial=0) > tolerance * max(1.0, scale, term):
        return f"off by {error.max():.2g} of {scale:.2g} ({np.isnan(error).sum()} NaN)"
    return "loud" if loud else "right"


def of_state(found: np.ndarray, right: np.ndarray, x: np.ndarray) -> str:
    """Return `right`, `loud` or the error of a running statistic, which is stored in float32."""
    if not x.size:  # without features nothing is counted, and a step may count as one
        return "right"
    if np.abs(x).max(initial=0) > OVERFLOWS and not np.isfinite(found).all():
        return "loud"
    scale = max(np.abs(right).max(initial=1), np.abs(x).max(initial=0))  # a mean may be small beside its numbers
    error = np.abs(found - right)
    return "right" if (error <= 1e-5 * scale).all() else f"off by {error.max():.2g} of {scale:.2g}"


def results(case: Case, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Return the verdict on each part of a case."""
    module = norms.get(case.norm).linen(train=True)
    with jax.enable_x64(case.dtype == "float64"):
        placeholder = jax.ShapeDtypeStruct(case.shape, jnp.dtype(case.dtype))
        try:
            variables = variables_of(module, placeholder)
            run = jax.jit(lambda v, x, mask: module.apply(v, x, mask=mask, mutable=["batch_stats"]))
            for _ in range(VALUES):
                x = input_of(rng, case)
                where = None if case.mask is None else rng.random(case.mask) < 0.7
                given = x if where is None or case.dtype == "int32" else np.where(where, x, np.nan)
                mask = None if where is None else jnp.asarray(where)
                y, state = run(variables, jnp.asarray(given, case.dtype), mask)
                if not x.size:
                    yield "right" if y.shape == x.shape else f"shape {y.shape}", f"{case}: an empty array"
                    continue
                right, after = expected(case, x, variables, where)
                hidden = np.zeros(x.shape, bool) if where is None else ~np.broadcast_to(where, x.shape)
                found = np.where(hidden, 0, np.asarray(y, np.float64))
                said = verdict(found, np.where(hidden, 0, right), x, case, 4e-6, largest_term(case, x, variables))
                yield said, f"{case}, |x| up to {np.abs(x).max(initial=0):.3g}: {said}"
                for name, value in state.get("batch_stats", {}).items():
                    told = of_state(np.asarray(value, np.float64), np.asarray(after[name]), x)
                    if told not in ("right", "loud"):
                        yield told, f"{case}, |x| up to {np.abs(x).max(initial=0):.3g}, {name}: {told}"
        except (ValueError, TypeError) as error:
            ours = str(error).startswith(("Expected", "No ", "Unknown"))
            yield "refused" if ours else "raw", f"{case}: {type(error).__name__}: {str(error)[:200]}"
        except Exception as error:
            yield "raw", f"{case}: {''.join(traceback.format_exception_only(error))[:300]}"


CELLS = {"simple": "SimpleCell", "lstm": "LSTMCell", "gru": "GRUCell"}
CELL_NORMS = (
    "none",
    "layer",
    "layer_per_gate",
    "rms",
    "group",
    "batch_step:max_steps=3",
    "batch_shared",
    "batch_input",
)


def cell_results(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Compare a cell with a norm on a random batch of sequences."""
    from flax.traverse_util import flatten_dict

    from normlab import linen

    cell, norm = str(rng.choice(list(CELLS))), str(rng.choice(CELL_NORMS))
    batch, time, inputs, width = (int(rng.integers(low, high)) for low, high in ((2, 6), (1, 5), (1, 4), (1, 4)))
    width *= 4
    label = f"{cell} with {norm} over [{batch}, {time}, {inputs}], width {width}"
    rnn = linen.RNN(getattr(linen, CELLS[cell])(width, norm=norm, use_running_average=False))
    name, options = parse(norm)
    variables = variables_of(rnn, jax.ShapeDtypeStruct((batch, time, inputs), jnp.float32))
    run = jax.jit(lambda v, x: rnn.apply(v, x, mutable=["batch_stats"]))
    for _ in range(VALUES):
        x = np.asarray(10.0 ** rng.uniform(-3, 1) * rng.normal(size=(batch, time, inputs)), np.float32)
        y, _ = run(variables, x)
        flat = {
            "/".join(path[2:]): np.asarray(leaf, np.float64) for path, leaf in flatten_dict(dict(variables)).items()
        }
        carry = [np.zeros((batch, width))] * (2 if cell == "lstm" else 1)

        def right(x: np.ndarray, flat: Any = flat, carry: Any = carry) -> Any:
            return reference.recurrent(cell, name, flat, x, carry, **options)[0][0]

        try:
            reference.assert_rounds_to(np.asarray(y), right, x)
            yield "right", label
        except AssertionError as error:
            yield "wrong", f"{label}: {str(error).splitlines()[0]}"


def main() -> int:
    """Run the cases; return 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="how many inputs (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="of all of them (default: 0)")
    given = parser.parse_args()
    use_cache()
    rng = np.random.default_rng(given.seed)
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    with F.one_element():
        while sum(counts.values()) < given.cases:
            made = cell_results(rng) if rng.random() < 0.05 else results(case_of(rng), rng)
            for said, text in made:
                key = said if said in ("right", "loud", "refused") else "wrong"
                counts[key] += 1
                if key == "wrong":
                    wrong.append(text)
                    print(text, flush=True)
    print(f"{sum(counts.values())} cases with seed {given.seed}: " + ", ".join(f"{n} {k}" for k, n in counts.items()))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
