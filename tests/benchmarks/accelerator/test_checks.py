"""Test that checks notice what is wrong on a device, and pass what is right."""

import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import cell_checks, correctness, norm_checks
from benchmarks.accelerator.checks import Check, distance, results, slope_errors
from benchmarks.accelerator.stage import Clock, Json
from normlab import norms


def square(x: Any) -> Any:
    return x * x


def of_square(**changes: Any) -> Check:
    """A check of the square of three numbers."""
    return dataclasses.replace(
        Check(
            columns={"norm": "square"},
            program=square,
            draws=[({"offset": 0.0}, (jnp.arange(3.0),)), ({"offset": 1.0}, (1 + jnp.arange(3.0),))],
            errors=lambda y, arguments: {"y": distance(y, np.asarray(arguments[0], np.float64) ** 2)},
            tolerance=1e-6,
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    """Threads in the place of processes."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_a_right_program_passes_on_each_input(workers: Executor) -> None:
    rows = list(results([of_square()], workers))
    assert [(row["norm"], row["offset"], row["ok"], row["errors"]) for row in rows] == [
        ("square", 0.0, True, {"y": 0.0}),
        ("square", 1.0, True, {"y": 0.0}),
    ]


def fails(x: Any) -> Any:
    raise ValueError("no such operation")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (lambda x: x * x + 1e-3, None),
        (lambda x: x * x + jnp.nan, None),
        (lambda x: (x * x)[:2], "ValueError: Expected the shape (3,), got (2,)."),
        (fails, "ValueError: no such operation"),
    ],
)
def test_a_wrong_program_fails_and_costs_no_other(
    program: Callable[..., Any], error: str | None, workers: Executor
) -> None:
    *wrong, first, second = results([of_square(program=program), of_square()], workers)
    assert [row["ok"] for row in wrong] == [False, False] and first["ok"] and second["ok"]
    assert {row.get("error") for row in wrong} == {error}
    json.dumps(wrong, allow_nan=False)


def test_slopes_notice_one_wrong_element() -> None:
    at = {"x": np.random.default_rng(0).normal(size=50), "y": np.ones(2)}

    def loss(at: Mapping[str, np.ndarray]) -> float:
        return float((at["x"] ** 2).sum() * at["y"].sum())

    right = 4 * at["x"]
    assert slope_errors({"x": right}, loss, at)["x"] < 1e-8
    wrong = np.where(np.arange(50) == 7, right + 0.1, right)
    assert slope_errors({"x": wrong}, loss, at)["x"] > 1e-4
    assert np.isnan(slope_errors({"x": right * np.nan}, loss, at)["x"])


@pytest.mark.slow
def test_the_stage_passes_on_a_cpu() -> None:
    plan, *rows = correctness.rows(Clock(60), tiny=True, skip=())
    assert plan["count"] == len(rows)
    assert [row for row in rows if not row["ok"]] == []
    cases: set[Json] = {row["case"] for row in rows}
    assert cases >= {"plain", "masked", "axis_name", "symbolic export", "simple, highest precision"}


def test_a_norm_and_a_cell_pass_on_a_cpu(workers: Executor) -> None:
    norm = norm_checks.Norm("layer", "float32", "masked").check()
    assert [row for row in results([norm, next(cell_checks.cell_checks(tiny=True))], workers) if not row["ok"]] == []


def test_a_comparison_travels_to_another_process_without_its_module() -> None:
    for check in (norm_checks.Norm("layer", "float32").check(), next(cell_checks.cell_checks(tiny=True))):
        size = len(pickle.dumps(check.errors))
        assert callable(pickle.loads(pickle.dumps(check.errors))) and size < 1000


def test_a_norm_that_loses_digits_at_an_offset_fails_there(workers: Executor) -> None:
    right, fast = (norm_checks.Norm(name, "float32") for name in ("batch", "batch:use_fast_variance=True"))
    at_zero, far = results([dataclasses.replace(right.check(), program=fast.program)], workers)
    assert at_zero["ok"] and not far["ok"]
    errors = far["errors"]
    assert isinstance(errors, dict)
    assert {name for name, error in errors.items() if float(str(error)) > norm_checks.TOLERANCE["float32"]} >= {
        "y",
        "var",
        "dx",
    }


def test_every_norm_and_every_cell_is_checked() -> None:
    checked = {(check.columns["norm"].partition(":")[0], check.columns["dtype"]) for check in norm_checks.norm_checks()}
    assert checked >= {(name, dtype) for name in norms.names() for dtype in ("float32", "bfloat16")}
    cells = {norms.get(name).name for name in cell_checks.NORMS}
    assert cells == set(norms.cell_names())
