"""Checks of a program on the device against float64 in NumPy."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.stage import Row, failed

__all__ = ["Check", "Draw", "distance", "results", "slope_errors"]

DIRECTIONS = 4
"""Random directions in which a gradient is compared."""

STEP = 1e-4
"""Step of a central difference, in standard deviations of what is moved."""

Draw = tuple[Row, Sequence[Any]]
"""Columns that name an input, and the arguments of the program."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A program, inputs of one shape, and the comparison.

    Attributes:
        columns: Names of the check in its rows.
        program: Function to compile; may trace for long, in a thread.
        draws: Inputs; each gives a row.
        errors: Maps outputs and arguments to relative errors by name; another process may call it.
        tolerance: Largest error of a row that is `ok`.
    """

    columns: Row
    program: Callable[..., Any]
    draws: Sequence[Draw]
    errors: Callable[[Any, Sequence[Any]], dict[str, float]]
    tolerance: float

    def compiled(self) -> Callable[..., Any]:
        """Compile the program.

        A GPU's compiler would measure several kernels for each product of matrices, of which cells have many.
        """
        options: dict[str, str | bool] | None = (
            {"xla_gpu_autotune_level": "0"} if jax.default_backend() == "gpu" else None
        )
        return jax.jit(self.program).lower(*self.draws[0][1]).compile(compiler_options=options)

    def compared(self, workers: Executor) -> list[Future[dict[str, float]]]:
        """Run the program on each input, and have workers compute the errors."""
        compiled, given = self.compiled(), [arguments for _, arguments in self.draws]
        return [workers.submit(self.errors, *jax.device_get((compiled(*each), each))) for each in given]

    def rows(self, compared: Callable[[], Sequence[Future[dict[str, float]]]]) -> Iterator[Row]:
        """Yield the errors on each input; `compared` returns them, or raises."""
        for i, (columns, _) in enumerate(self.draws):
            row: Row = {"kind": "check", **self.columns, **columns, "tolerance": self.tolerance}
            try:
                errors = compared()[i].result()
            except Exception as error:  # a device may fail anywhere: the row says how
                yield {**row, "ok": False, **failed(error)}
                continue
            ok = all(error <= self.tolerance for error in errors.values())  # NaN is not
            finite = {
                name: error if math.isfinite(error) else str(error) for name, error in errors.items()
            }  # as in JSON
            yield {**row, "ok": ok, "errors": dict(finite)}


def results(checks: Iterable[Check], workers: Executor) -> Iterator[Row]:
    """Yield the rows of checks in their order.

    Args:
        checks: Checks; threads compile and run their programs, as the compiler takes most of the time.
        workers: Computes references meanwhile.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for check, future in [(check, pool.submit(check.compared, workers)) for check in checks]:
            yield from check.rows(future.result)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def distance(found: Any, right: np.ndarray, scale: float = 0.0) -> float:
    """Return the largest error in units of the largest value, of `right` or `scale`."""
    if np.shape(found) != right.shape:
        raise ValueError(f"Expected the shape {right.shape}, got {np.shape(found)}.")
    if not right.size:
        return 0.0
    largest = max(float(np.abs(right).max()), scale, float(np.finfo(np.float32).tiny))
    return float(np.abs(np.asarray(found, np.float64) - right).max()) / largest


def slope_errors(
    gradients: Mapping[str, np.ndarray],
    loss: Callable[[Mapping[str, np.ndarray]], float],
    at: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Compare gradients with central differences of a loss in float64, along random directions.

    The error along a random normal direction has the size of the Euclidean norm of the error of the gradient.

    Args:
        gradients: Arrays that the device gave, by name.
        loss: Loss at named arrays.
        at: Where the gradients were taken; has more names than `gradients`, perhaps.

    Returns:
        The largest error over directions, in units of the Euclidean norm of the gradient, by name.
    """
    rng, errors = np.random.default_rng(3), {}
    for name, gradient in gradients.items():
        gradient, here = np.asarray(gradient, np.float64), np.asarray(at[name], np.float64)
        step, worst = STEP * (float(here.std()) or 1.0), 0.0
        for _ in range(DIRECTIONS):
            along = rng.normal(size=here.shape)
            ahead, behind = (loss({**at, name: here + h * along}) for h in (step, -step))
            error = abs(np.vdot(gradient, along) - (ahead - behind) / (2 * step))
            worst = float(np.maximum(worst, error))  # keeps NaN
        errors[name] = worst / max(float(np.linalg.norm(gradient)), float(np.finfo(np.float32).tiny))
    return errors
