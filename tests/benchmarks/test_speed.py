"""Test that the measurements of speed complete and refuse bad input; times are not asserted."""

import csv
import dataclasses
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.speed import norms as speed
from benchmarks.speed import scaling, variants
from normlab import norms
from tests.support.paths import ROOT

TINY = ("--shapes", "16x4x4x8", "--rounds", "2")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the module as users do, in a process of its own."""
    found = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **environment}
    command = [sys.executable, "-W", "error", "-m", speed.__name__, *arguments]
    return subprocess.run(command, env={**os.environ, **found}, cwd=ROOT, capture_output=True, text=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_one_device_is_measured_by_default(tmp_path: Path) -> None:
    done = run(*TINY, "--norms", "batch,instance", "--output", str(tmp_path / "speed"))
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(tmp_path / "speed.csv")
    assert [(row["norm"], row["what"]) for row in rows] == [
        (norm, what) for norm in ("batch", "instance") for what in (speed.FORWARD, speed.TRAINING)
    ]
    assert all(row["shape"] == "16x4x4x8" and row["rounds"] == "2" and float(row["ratio"]) > 0 for row in rows)
    page = (tmp_path / "speed.md").read_text()
    assert done.stdout.splitlines()[0].startswith(f"jax {version('jax')}, flax ")
    assert done.stdout.splitlines()[1] == speed.OneDevice.HEADING
    assert page.splitlines()[2].startswith("`python -m benchmarks.speed.norms --shapes 16x4x4x8 ")
    assert all(line in page for line in done.stdout.splitlines()[:-1])  # the last says where it is


@pytest.mark.slow
def test_norms_across_devices_are_measured_beside_their_peers(tmp_path: Path) -> None:
    done = run(*TINY, "--devices", "2", "--norms", "batch_renorm", "--output", str(tmp_path / "speed"))
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(tmp_path / "speed.csv")
    found = {(row["what"], row["way"], row["contender"]): int(row["collectives"]) for row in rows}
    assert list(found) == [
        (what, way, contender)
        for what in (speed.FORWARD, speed.TRAINING)
        for way in ("shard_map", "jit")
        for contender in ("ours", speed.LOCAL, "Flax", "Flax, two-pass")
    ]
    assert len(rows) == len(found)
    assert {(row["norm"], row["devices"], row["rounds"]) for row in rows} == {("batch_renorm", "2", "2")}
    assert found[speed.FORWARD, "shard_map", "ours"] == found[speed.FORWARD, "shard_map", "Flax"] == 1
    assert found[speed.TRAINING, "shard_map", "ours"] == 2
    assert found[speed.FORWARD, "shard_map", speed.LOCAL] == 0
    assert ", 2 x " in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == speed.AcrossDevices.HEADING


def test_other_norms_are_measured_beside_norms_of_the_same_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "variants")
    monkeypatch.setattr(sys, "argv", ["variants", *TINY, "--norms", "dyt,continual:group_size=4", "--output", output])
    variants.main()
    rows = rows_of(tmp_path / "variants.csv")
    assert [(row["norm"], row["beside"], row["what"]) for row in rows] == [
        (norm, other, what)
        for norm, other in (("dyt", "layer"), ("continual:group_size=4", "group, batch"))
        for what in (speed.FORWARD, speed.TRAINING)
    ]
    assert all(float(row["ratio"]) > 0 and float(row["norm_memory"]) >= 0 for row in rows)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == variants.Variant.HEADING and printed[-2].endswith("of 4 ratios at most 1.3.")
    assert [other.name for other in variants.beside(norms.get("instance"))] == ["instance"]
    assert "none" not in variants.default() and variants.REASONS.keys() <= {*variants.default()}
    page = (tmp_path / "variants.md").read_text()
    assert "The bar is 1.3 times the norm beside it, forward and with the backward pass; `!` marks" in page


def test_rows_above_the_bar_are_explained() -> None:
    row = variants.Variant(
        norm="whiten:group_size=4",
        beside="batch",
        shape="16x8",
        what=speed.FORWARD,
        copy_ms=1.0,
        beside_copies=1.0,
        norm_copies=2.0,
        ratio=2.0,
        ratio_low=2.0,
        ratio_high=2.0,
        beside_memory=0.0,
        norm_memory=0.0,
        rounds=1,
    )
    assert "2.00!" in str(row)
    text = variants.explained(
        [row, dataclasses.replace(row, norm="dyt"), dataclasses.replace(row, norm="l2", ratio=1.3)]
    )
    assert text.splitlines()[2:] == [
        "Why they are above it:",
        "",
        "- `whiten:group_size=4`: covariance and output are products of matrices, with as many multiplications an "
        "element as a group has rows.",
        "- `dyt`: not known.",
    ]
    assert "Why" not in variants.explained([dataclasses.replace(row, ratio=1.3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norms", "batsh"], "Expected a norm among none, batch.*Did you mean 'batch'"),
        (["--norms", "none"], "Expected a norm with a Flax peer among batch, .*got 'none'"),
        (["--norms", "layer", "--devices", "2"], "Expected a norm whose statistics cross examples among batch, .*"),
        (["--shapes", "huge"], "Expected a shape among transformer, .*or sizes as in 64x8x8x32, got 'huge'"),
        (["--rounds", "0"], "Expected `--rounds` to be at least 1, got 0"),
        (["--devices", "1"], "Expected `--devices` to be at least 2, got 1. Leave it out"),
        (["--devices", "0"], "Expected `--devices` to be at least 2, got 0"),
        (["--shapes", "1x8"], "Expected at least two elements of a feature on a device, got one of 1x8"),
        (["--devices", "3", "--shapes", "16x8"], "Expected a batch that 3 devices divide evenly, got 16 in 16x8"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["norms.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


def test_more_devices_than_there_are_is_one_clear_error() -> None:
    done = run(*TINY, "--devices", "4", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert done.returncode == 2
    assert "Expected `--devices` to be at most 2, the number of devices here (cpu), got 4." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_more_workers_are_measured_beside_one(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = ["--output", str(tmp_path / "scaling")]
    monkeypatch.setattr("sys.argv", ["scaling.py", "--rounds", "1", *output, "--", str(toy), "--no-extend"])
    scaling.main()
    rows = rows_of(tmp_path / "scaling.csv")
    assert sorted(row["jobs"] for row in rows) == ["1", "2"]
    for row in rows:
        assert sum(float(row[part]) for part in ("start", "work", "report")) == pytest.approx(float(row["wall"]))
    assert "2 workers are" in (tmp_path / "scaling.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "1"], "Expected `--jobs` to be at least 2, got 1"),
        (["--rounds", "0"], "Expected `--rounds` to be at least 1, got 0"),
        (["batch_sise"], "ended with exit code 2:\n.*Unknown comparison `batch_sise`"),
    ],
)
def test_scaling_refuses_bad_input(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["scaling.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        scaling.main()
    assert re.search(message, f"{ended.value.code}\n{capsys.readouterr().err}")


def test_norms_whose_statistics_cross_examples_are_those_across_devices() -> None:
    assert speed.default(8) == ["batch", "batch_renorm"]
    assert speed.default(None) == list(speed.PEERS)


def test_collectives_are_counted_with_what_they_bring() -> None:
    program = """
      %all-reduce.1 = (f32[2,64]{1,0}, bf16[3]{0}) all-reduce(%a, %b), channel_id=1
      %psum.30 = f32[] all-reduce-start(%c), channel_id=2
      %done = f32[] all-reduce-done(%psum.30)
      %sum = f32[64]{0} add(%all-reduce.1, %d), metadata={op_name="all-reduce(x)"}
    """
    assert speed.collectives(program) == (2, (2 * 64 * 4 + 3 * 2 + 4) / 1000)
