"""Folders of made-up runs count as current, and the page of their measurements marks what is above the bar."""

import dataclasses
import os
from pathlib import Path

import pytest

from benchmarks.speed import growth
from benchmarks.speed.growth import Row, Size
from normlab.study.driver.driver import Invocation, current

TINY = Size("wide", problems=1, values=2, norms=2, tuning_seeds=1, seeds=2)


def a_row(n: int, seconds: float, megabytes: float, **changes: object) -> Row:
    row = Row(
        section="folders", kind="wide", what="report", n=n, configurations=n // 100, seconds=seconds, cpu=1.0,
        megabytes=megabytes, page=0.5, load=0.25,
    )  # fmt: skip
    return dataclasses.replace(row, **changes)  # pyright: ignore[reportArgumentType]


def test_the_runs_of_a_folder_are_current_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_GROWTH", "1x2")
    (tmp_path / "growth.py").write_text(growth.COMPARISON)
    growth.write_folder(TINY, tmp_path / "growth.py", tmp_path / "folder")
    invocation, header = Invocation.of_folder(tmp_path / "folder")
    records = invocation.store.records()
    assert len(records) == TINY.runs == 4 * (5 + 2)
    assert len(current(invocation.plan, header.identity, records)) == TINY.runs
    assert invocation.plan.pending(records) == []


def test_halves_have_every_run_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("aa/1.json", "aa/2.json", "bb/3.json"):
        (folder / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "runs" / name).write_text(name)
    (folder / "comparison.json").write_text("{}")
    names = [path.name for half in growth.halved(folder) for path in half.glob("runs/??/*.json")]
    assert sorted(names) == ["1.json", "2.json", "3.json"]


def test_sizes_are_those_of_their_names() -> None:
    runs = {"wide": [100, 1_000, 10_000, 100_000], "deep": [100, 1_000, 10_000, 100_000]}
    assert {kind: [size.runs for size in growth.SIZES if size.kind == kind] for kind in runs} == runs


def test_rows_come_back_and_a_new_measurement_replaces_an_old_one(tmp_path: Path) -> None:
    rows = [a_row(100, 2.0, 250.0), a_row(2, 9.0, 500.0, section="seeds", kind="", what="run", configurations=0)]
    growth.write(tmp_path / "growth", "heading", rows)
    assert growth.read(tmp_path / "growth") == rows
    assert a_row(100, 3.0, 1.0).place == rows[0].place != rows[1].place
    assert "<svg" in (tmp_path / "growth.svg").read_text()
    assert str(rows[0]) in (tmp_path / "growth.md").read_text()


def test_the_summary_has_slopes_and_marks_what_is_above_the_bar() -> None:
    text = growth.summary([a_row(10_000, 4.0, 300.0), a_row(100_000, 31.0, 660.0), a_row(100, 2.0, 1.0, what="merge")])
    assert text == "- report, 100,000 runs, wide: 31! s, 0.3 s for each 1,000 more; 660 MB, 4 MB for each 1,000 more"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux alone has `/proc`")
def test_memory_includes_descendants() -> None:
    assert growth.resident(os.getpid()) > 10_000_000
    assert growth.resident(os.getppid()) >= growth.resident(os.getpid()) // 2


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["growth.py", "--sections", "folder"])
    with pytest.raises(SystemExit, match="2"):
        growth.main()
