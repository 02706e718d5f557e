"""Test that the rule decides in both directions, and that the page hides nothing."""

import csv
from pathlib import Path

import pytest

from benchmarks.accelerator import page as pages
from benchmarks.accelerator import results
from benchmarks.accelerator.cases import BOTH, FORWARD, OURS, SAVING
from benchmarks.accelerator.cases import PALLAS as KERNEL
from benchmarks.accelerator.decision import decisions
from benchmarks.accelerator.goals import goals
from benchmarks.accelerator.merge import merged
from benchmarks.accelerator.stage import Row, plan


def layer(
    contender: str, median: float, least: float, norm: str = "layer", shape: str = "8x8", what: str = BOTH
) -> Row:
    """A row of a contender's speed."""
    case: Row = {"norm": norm, "shape": shape, "dtype": "bfloat16", "contender": contender, "what": what}
    return {"stage": "layers", "kind": "layer", **case, "fraction": median, "fraction_least": least}


def decided(*rows: Row) -> list[str]:
    """The decisions as text."""
    return [str(decision) for decision in decisions(rows)]


@pytest.mark.parametrize(
    ("ours", "saving", "kernel", "expected"),
    [
        (0.80, 0.85, 0.99, "save what ours saves; no kernel, XLA is fast enough"),
        (0.70, 0.78, 0.99, "save only `x` everywhere; no kernel, XLA is fast enough"),
        (0.50, 0.54, 0.71, "save what ours saves; write a kernel everywhere"),
        (0.40, 0.60, 0.79, "save only `x` everywhere; write a kernel everywhere"),
        (
            0.40,
            0.60,
            0.77,
            "save only `x` everywhere; no kernel, XLA is slow everywhere but the kernel in Pallas is not",
        ),
        (0.50, 0.54, None, "save what ours saves; open, XLA is slow everywhere and no kernel was measured"),
        (0.80, None, 0.99, "open, as saving only `x` was not measured; no kernel, XLA is fast enough"),
    ],
)
def test_the_rule(ours: float, saving: float | None, kernel: float | None, expected: str) -> None:
    given = {OURS: ours, SAVING: saving, KERNEL: kernel}
    (found,) = decided(*(layer(name, value, value) for name, value in given.items() if value is not None))
    assert found.startswith(f"layer: {expected}")


def test_medians_and_minima_must_both_say_so() -> None:
    for slower in ((0.5, 0.79), (0.79, 0.5)):
        rows = layer(OURS, 0.5, 0.5), layer(SAVING, *slower), layer(KERNEL, 0.9, 0.9)
        (found,) = decided(*rows)
        assert "save what ours saves" in found


def test_a_rule_that_holds_at_some_shapes_names_them() -> None:
    rows = [layer(OURS, 0.5, 0.5, shape=shape) for shape in ("8x8", "9x9")]
    rows += [layer(SAVING, 0.6, 0.6, shape="8x8"), layer(SAVING, 0.5, 0.5, shape="9x9")]
    rows += [layer(KERNEL, 0.6, 0.6, shape="8x8"), layer(KERNEL, 0.7, 0.7, shape="9x9")]
    rows += [layer(OURS, 0.1, 0.1, what=FORWARD), layer(KERNEL, 0.9, 0.9, norm="rms")]
    assert decided(*rows) == ["layer: save only `x` at 8x8 bfloat16; write a kernel at 9x9 bfloat16."]


def test_goals_are_for_large_inputs_of_layer_and_rms_norm() -> None:
    large = "65536x1024"
    rows = [layer(OURS, 0.86, 0.5, shape=large, what=FORWARD), layer(OURS, 0.74, 0.9, shape=large)]
    rows += [layer(OURS, 0.76, 0.9, "rms", large), layer(OURS, 0.1, 0.1, "batch", large), layer(KERNEL, 0.1, 0.1)]
    assert list(goals([*rows, layer(OURS, 0.1, 0.1)])) == [
        "forward, 85%: kept at 1 of 1.",
        f"forward + backward, 75%: kept at 1 of 2; missed at layer {large} bfloat16.",
    ]


def check(ok: bool, error: float, case: str = "plain") -> Row:
    """A row of a check."""
    case_of: Row = {"norm": "batch", "case": case, "dtype": "float32", "tolerance": 1e-5}
    return {"stage": "correctness", "kind": "check", **case_of, "ok": ok, "errors": {"y": 1e-9, "dx": error}}


ROWS: list[Row] = [
    {"stage": "invocation", "kind": "invocation", "command": "python -m benchmarks.accelerator", "dry_run": False},
    {"stage": "environment", "kind": "device", "device": "NVIDIA H100", "count": 1, "memory_gb": 60.0},
    {"stage": "environment", "kind": "versions", "python": "3.12", "jax": "0.11.2", "tokamax": None},
    {"stage": "correctness", **plan(9, "checks", "norm", "case")},
    check(True, 2e-7),
    check(False, 0.25),
    {**check(False, 0.0, "axis_name"), "errors": {"dx": "nan", "y": 0.5}},
    {**check(False, 0.0), "case": "masked", "errors": None, "error": "XlaRuntimeError: a | b"},
    {"stage": "layers", "kind": "copy", "norm": "layer", "shape": "8x8", "dtype": "bfloat16", "contender": "jax",
     "gb_s": 2900.0, "gb_s_best": 3000.0},
    {"stage": "layers", "kind": "copy", "norm": "rms", "shape": "9x9", "dtype": "bfloat16", "contender": "jax",
     "gb_s": 2700.0, "gb_s_best": 3000.0},
    layer(OURS, 0.5, 0.625, what=FORWARD),
    layer(OURS, 0.5, 0.5),
    layer(KERNEL, 0.75, 0.75),
    {**layer("torch", 0.9, 0.9), "stage": "peers"},
    {"stage": "layers", "kind": "layer", "norm": "layer", "contender": "tokamax", "error": "No module"},
    {"stage": "layers", "kind": "layer", "norm": "rms", "contender": "tokamax", "error": "No module"},
    {"stage": "engine", "kind": "lanes", "lanes": 8, "models_per_minute": 1234.5},
    {"stage": "engine", "kind": "stage", "ended": "killed at its deadline", "seconds": 100.0, "share": 100.0,
     "done": 7, "planned": 9, "unit": "stacks"},
]  # fmt: skip


def test_the_page_has_every_failure_and_every_table(tmp_path: Path) -> None:
    errorless = [{name: value for name, value in row.items() if value is not None} for row in ROWS]
    results.write(tmp_path / "RESULT.json", errorless)
    pages.write(results.read(tmp_path / "RESULT.json"), tmp_path / "new" / "h100")
    text = (tmp_path / "new" / "h100.md").read_text()
    for line in (
        "# NVIDIA H100",
        "python 3.12, jax 0.11.2; devices 1, GB for JAX 60",
        "4 of 9 checks ran. 1 of 4 checks against float64 passed.",
        "| plain | float32 | 1 of 2 | 0.25 | 1e-05 |",
        "| axis_name | float32 | 0 of 1 | nan | 1e-05 |",
        "| batch | masked | float32 | 1e-05 | False |  | XlaRuntimeError: a \\| b |",
        "| norm | shape | dtype | ours | Pallas | torch | best in JAX |",
        "| layer | 8x8 | bfloat16 | 50% (62%) |  |  | ours |",
        "| layer | 8x8 | bfloat16 | 50% (50%) | 75% (75%) | 90% (90%) | Pallas |",
        "| layers | jax | 2 | 2700 | 2800 |",
        "| tokamax | No module | 2 |",
        "- layer: open, as saving only `x` was not measured; write a kernel everywhere.",
        "### Lanes\n\n| lanes | models_per_minute |\n| --- | --- |\n| 8 | 1234 |",
        "| engine | killed at its deadline | 7 of 9 stacks | 100 | 100 |",
    ):
        assert line in text, line
    assert "dry run" not in text
    with (tmp_path / "new" / "h100.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(ROWS) and table[4]["errors"] == '{"y": 1e-09, "dx": 2e-07}'


def test_a_dry_run_says_so_and_a_run_that_was_cut_has_a_page() -> None:
    assert "**A dry run on tiny shapes: nothing here is a measurement.**" in pages.page([{**ROWS[0], "dry_run": True}])
    assert pages.page(ROWS[:1]).startswith("# An accelerator\n")


def test_stages_with_sentences_have_them_before_their_tables() -> None:
    row: Row = {"stage": "engine", "kind": "choice", "network": "mlp", "chosen": 8}
    section = pages.page([ROWS[0], row]).partition("## Engine")[2].partition("\n## ")[0]
    assert section.index("the rule of `normlab run` chooses") < section.index("| network | chosen |")
    assert "| mlp | 8 |" in section


def measurement(day: int, *stages: str, name: str = "NVIDIA H100", jax: str = "0.11.2") -> list[Row]:
    """Rows of a measurement of some stages."""
    return [
        {
            "stage": "invocation",
            "kind": "invocation",
            "command": f"run {day}",
            "date": f"day {day}",
            "commit": f"c{day}",
        },
        {"stage": "environment", "kind": "device", "device": name},
        {"stage": "environment", "kind": "versions", "jax": jax},
        *({"stage": stage, "kind": "stage", "ended": "complete", "seconds": day, "share": 9} for stage in stages),
    ]


def test_a_later_measurement_replaces_whole_stages() -> None:
    first = [*measurement(1, "engine", "peers"), {"stage": "engine", "kind": "stack", "lanes": 7}]
    text = pages.page(merged([first, measurement(2, "engine", "training")]))
    assert "- `run 1`: day 1, commit c1" in text and "- `run 2`: day 2, commit c2" in text
    assert "lanes" not in text
    assert text.partition("## Stages")[2].split("\n")[2:] == [
        "| name | ended | done | seconds | share | date | commit | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| engine | complete |  | 2 | 9 | day 2 | c2 | run 2 |",
        "| peers | complete |  | 1 | 9 | day 1 | c1 | run 1 |",
        "| training | complete |  | 2 | 9 | day 2 | c2 | run 2 |",
        "",
    ]


def test_a_measurement_of_which_nothing_is_left_is_not_named() -> None:
    rows = merged([measurement(1, "peers"), measurement(2, "peers")])
    assert [row["command"] for row in rows if row["kind"] == "invocation"] == ["run 2"]


@pytest.mark.parametrize("other", [{"name": "NVIDIA A100"}, {"jax": "0.12.0"}])
def test_measurements_of_other_devices_or_versions_are_refused(
    other: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, rows in zip(paths, (measurement(1, "peers"), measurement(2, "engine", **other)), strict=True):
        results.write(path, rows)
    monkeypatch.setattr("sys.argv", ["page", *map(str, paths), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        pages.main()
    assert "Expected results of one device and one version of jax, got NVIDIA H100 with" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("content", [None, "a,b\n1,2\n", "[]", '{"rows": [1]}', '{"rows": [{"stage": "layers"}]}'])
def test_a_file_of_something_else_is_one_sentence(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "RESULT.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"Expected the RESULT.json of .*, got `.*RESULT.json`, which is none."):
        results.read(path)
