"""Test the study of gradients in recurrence, and the measurement of speed; times are not asserted."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import recurrent as speed
from experiments import recurrent_gradients as study

PLAN = study.Plan(seeds=3, scales=(0.1, 1.0), lengths=(4, 8), trained_length=8)


def found(shared_error: Sequence[float] = (0.8, 0.9), trap: float = 0.5) -> study.Found:
    """Make results in which every quantity differs between scales, seeds and time steps."""

    def profile(length: int) -> study.Profile:
        grown = np.random.default_rng(0).lognormal(size=(2, 3, length), sigma=0.1)
        return study.Profile(grown, grown, grown, np.array([[1.0, 1.1, 1.2], [20.0, 22.1, 23.9]]))

    def trained(errors: Sequence[float]) -> study.Trained:
        return study.Trained(profile(8), np.asarray(errors)[:, None] * np.array([0.99, 1.0, 1.01]))

    return study.Found(
        initial={(arm, length): profile(length) for arm in study.ARMS for length in PLAN.lengths},
        trained={arm: trained(shared_error if arm == study.SHARED else (0.2, 0.4)) for arm in study.ARMS},
        shift=study.Shift(profile(8).gradient, profile(8).gradient),
        trap={norm: (trap * np.array([[0.99], [1.0], [1.01]])) ** np.arange(8.0)[::-1] for norm in study.TRAP},
    )


def line(found: study.Found, start: str) -> str:
    """Return the only sentence with this beginning."""
    (one,) = [line for line in study.sentences(PLAN, found) if line.startswith(start)]
    return one


def test_sentences_say_what_was_measured() -> None:
    text = line(found(), "The same trained networks, scale 0.1,")
    assert "error higher, difference +60.0 (" in text
    assert "n = 3) points, from 20.0 (" in text
    assert "gradient of the parameters at scale 1 is 20 (19.8 to 20.2, n = 3) times that at scale 0.1." in line(
        found(), "At initialization, 8 steps, per step"
    )


def test_sentences_report_an_effect_that_was_not_seen() -> None:
    results = found(shared_error=(0.15, 0.4))
    assert "error lower, difference -5.0" in line(results, "The same trained networks, scale 0.1,")
    equal = results.trained[study.PER_STEP].error + np.array([-0.05, 0.0, 0.05])
    trained = {**results.trained, study.SHARED: results.trained[study.SHARED]._replace(error=equal)}
    assert "error not distinguishable" in line(results._replace(trained=trained), "The same trained networks, scale 1,")


@pytest.mark.parametrize(("factor", "words"), [(0.5, "shrinks, by 0.5 ("), (2.0, "grows, by 2 (")])
def test_the_trap_is_described_by_the_growth_of_the_gradient(factor: float, words: str) -> None:
    text = line(found(trap=factor), "Zeros from a zero state, `layer`")
    assert words in text
    assert text.endswith("over 7 steps it is finite.")


def test_the_trap_says_where_the_gradient_is_no_longer_finite() -> None:
    gradient = np.ones((2, 6)) * [[1.0], [2.0]]
    gradient[1, :3] = np.inf
    assert study.trap_line("layer", gradient).endswith("3 steps back it is no longer finite.")


def test_figures_and_text_are_written(tmp_path: Path) -> None:
    study.write(tmp_path, "what was seen", study.draw(PLAN, found()))
    names = {"time", "scales", "trap"}
    assert {path.name for path in tmp_path.iterdir()} == {"seen.txt"} | {
        f"{n}.{e}" for n in names for e in ("svg", "png")
    }
    assert (tmp_path / "time.svg").read_text().startswith("<?xml")


def test_a_permutation_keeps_all_pixels_and_longer_sequences_start_over() -> None:
    x = study.sequences(128)
    assert sorted(x[0, :64, 0]) == sorted(study.digits().inputs[0].ravel())
    np.testing.assert_array_equal(x[:, :64], x[:, 64:])


def test_the_gradient_at_the_last_step_is_that_of_the_classifier() -> None:
    plan = replace(PLAN, seeds=1)
    draw, x = study.draws(plan), jnp.asarray(study.sequences(3))
    params = study.with_norm(study.new_nets(plan), "none", [1.0])
    batch, key = draw.train[0, 0], draw.key[0]
    one: Any = jax.tree.map(lambda a: a[0], params)
    net: Any = study.Net("none").apply({"params": one}, x[batch], key)
    logits, hidden = net
    labels = jax.nn.one_hot(study.digits().labels[batch], study.CLASSES)
    expected = (jax.nn.softmax(logits) - labels) / len(batch) @ one["head"]["kernel"].T
    seen = study.profile("none", params, draw, x)
    np.testing.assert_allclose(seen.gradient[0, -1], jnp.linalg.norm(expected), rtol=1e-5)
    np.testing.assert_allclose(seen.activation[0], jnp.sqrt(jnp.square(hidden).mean((0, 2))), rtol=1e-5)


def test_shared_statistics_are_the_average_over_steps() -> None:
    rows = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (2, 5, 3)))
    statistics = {"lstm": {"norm_h": {"mean": jnp.zeros_like(rows), "var": rows}}}
    pooled = study.shared(statistics)["lstm"]["norm_h"]["var"]
    np.testing.assert_allclose(pooled[:, 0], rows.mean(1), rtol=1e-6)
    same = study.shift({"lstm": {"norm_h": {"mean": jnp.ones((1, 5, 3)), "var": jnp.ones((1, 5, 3))}}})
    np.testing.assert_array_equal(same.mean, 0)
    np.testing.assert_allclose(same.spread, 1)


def test_one_seed_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["recurrent_gradients.py", "--seeds", "1"])
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert "Expected `--seeds` to be at least 2" in capsys.readouterr().err


@pytest.mark.slow
def test_speed_is_measured_beside_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    given = ["--cell", "simple", "--norms", "batch_step", "--shapes", "4x2x4", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["recurrent.py", *given, "--output", str(tmp_path / "speed")])
    speed.main()
    with (tmp_path / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [("none", "Flax SimpleCell"), ("batch_step", "none")]
    assert [(row["what"], row["ours"], row["other"]) for row in rows] == [
        (what, *pair) for what in (speed.FORWARD, speed.TRAINING) for pair in pairs
    ]
    assert all(float(row["ratio"]) > 0 and row["shape"] == "4x2x4" for row in rows)
    assert speed.Row.HEADING in (tmp_path / "speed.md").read_text()


@pytest.mark.parametrize(
    ("ours", "other", "ratio", "kept"),
    [
        ("none", "Flax LSTMCell", 1.1, False),
        ("layer:epsilon=0.001", "none", 1.2, True),
        ("batch_step", "none", 1.6, False),
        ("group", "none", 9.0, None),
    ],
)
def test_bars_are_those_of_an_lstm(ours: str, other: str, ratio: float, kept: bool | None) -> None:
    row = speed.Row(
        cell="lstm", shape="2x2x2", what=speed.FORWARD, ours=ours, other=other, ours_ms=1, other_ms=1, ours_mib=None,
        other_mib=1, ratio=ratio, ratio_low=1, ratio_high=2, rounds=1,
    )  # fmt: skip
    assert row.within_bar is kept
    assert ("!" in str(row)) is (kept is False)
    assert replace(row, cell="gru").within_bar is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "64x64"], "Expected a shape as in 64x64x128 .batch x time x features., got '64x64'"),
        (["--shapes", "1x8x8"], "Expected a batch of at least 2, .* got '1x8x8'"),
        (["--rounds", "0"], "Expected `--rounds` to be at least 1, got 0"),
        (["--norms", "batch"], "Expected a norm of recurrent cells among .*got 'batch'"),
        (["--norms", "none"], "Expected norms, got 'none'. The plain cell is always measured"),
    ],
)
def test_speed_refuses_bad_input(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["recurrent.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
