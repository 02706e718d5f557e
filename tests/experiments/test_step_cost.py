"""Test the verdicts on the cost of a step on made-up times; times themselves are not asserted."""

import numpy as np
import pytest

from experiments import step_cost as study

PLAN = study.Extent(seeds=4, batches=(("MLP 3 x 512", (16, 64)), ("conv net", (8, 32))))
JITTER = np.array([0.999, 1.0, 1.001, 1.0])[:, None] * np.ones(3)


def found_of(shares: tuple[float, float, float, float], folded: float = 0.0) -> study.Found:
    """Make times with these shares of batch norm in an update, by cell."""

    def times(part: float) -> dict[tuple[str, str], np.ndarray]:
        return {
            (study.WITH, study.UPDATE): JITTER / (1 - part),
            (study.WITHOUT, study.UPDATE): np.ones_like(JITTER),
            (study.WITH, study.FORWARD): JITTER * 0.5,
            (study.WITHOUT, study.FORWARD): np.full_like(JITTER, 0.4),
            (study.WITH, study.EVALUATION): JITTER * 0.5,
            (study.WITHOUT, study.EVALUATION): np.full_like(JITTER, 0.4),
            (study.FOLDED, study.EVALUATION): JITTER * 0.4 / (1 - folded),
        }

    return {cell: times(part) for cell, part in zip(PLAN.cells(), shares, strict=True)}


def verdicts(found: study.Found) -> list[str]:
    return [finding.verdict for finding in study.judge(PLAN, found).findings]


def test_small_shares_refute_a_quarter() -> None:
    judgement = study.judge(PLAN, found_of((0.05, 0.04, 0.12, 0.1)))
    assert [finding.verdict for finding in judgement.findings] == ["does not hold", "does not hold", "holds"]
    assert judgement.findings[0].seen.mean == pytest.approx(0.12, abs=1e-3)
    assert all(bar.met for bar in judgement.bars)
    assert "batch norm takes 0.12 (" in judgement.sentences[2] and "0.20 (" in judgement.sentences[2]


def test_large_shares_bear_it_out() -> None:
    assert verdicts(found_of((0.3, 0.4, 0.3, 0.4), folded=0.2)) == ["holds", "holds", "does not hold"]
    judgement = study.judge(PLAN, found_of((0.05, 0.1, 0.1, 0.4)))
    assert judgement.findings[0].verdict == "holds when" and judgement.findings[0].when == "conv net at batch 32"
    assert [bar.met for bar in judgement.bars] == [True, False, False, True]


def test_growth_of_one_network_is_named() -> None:
    finding = study.judge(PLAN, found_of((0.05, 0.1, 0.1, 0.05))).findings[1]
    assert finding.verdict == "holds when" and finding.when == "the network is MLP 3 x 512; it falls in conv net"
    assert finding.seen.mean == pytest.approx(0.05, abs=1e-3)


def test_noise_decides_nothing() -> None:
    found = found_of((0.1, 0.1, 0.1, 0.1))
    noisy = {
        cell: {key: value * np.array([0.7, 1.3, 1.0, 0.8])[:, None] if key[0] != study.WITHOUT else value
               for key, value in times.items()}
        for cell, times in found.items()
    }  # fmt: skip
    assert verdicts(noisy) == ["not visible here"] * 3


@pytest.mark.slow
def test_passes_of_a_network_run() -> None:
    found = study.passes("conv net", 2)
    assert {arm for arm, what in found if what == study.EVALUATION} == {study.WITH, study.WITHOUT, study.FOLDED}
    outputs = {key: run() for key, run in found.items()}
    np.testing.assert_allclose(
        outputs[study.WITH, study.EVALUATION], outputs[study.FOLDED, study.EVALUATION], rtol=1e-4, atol=1e-5
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        with study._on_one_thread():
            assert study.os.environ["XLA_FLAGS"] == study.ONE_THREAD
        assert "XLA_FLAGS" not in study.os.environ
