"""Test that the page of claims is made of the stored verdicts, and that the README repeats them."""

import json
import re

from experiments.claims import table
from tests.support.paths import ROOT

FOLDER = ROOT / "benchmarks/results/claims"
README = (ROOT / "README.md").read_text()


def seen(study: str, key: str) -> dict[str, float]:
    """Return the effect of a claim."""
    findings = json.loads((FOLDER / f"{study}.json").read_text())["findings"]
    (found,) = [finding["seen"] for finding in findings if finding["claim"]["key"] == key]
    return found


def test_the_page_is_that_of_the_stored_verdicts() -> None:
    documents = table.read(FOLDER)
    assert len(documents) >= 14
    readings = table.read_readings(FOLDER, documents)
    assert (FOLDER.with_suffix(".md")).read_text() == table.page(documents, FOLDER.name, readings)
    for document in documents:
        assert (FOLDER / f"{document['name']}.svg").is_file() and (FOLDER / f"{document['name']}.csv").is_file()
        assert not re.search(r"/tmp|/root|--output|--data-dir", document["about"]["command"])


def test_each_bar_that_is_not_met_has_a_reading() -> None:
    documents = table.read(FOLDER)
    readings = table.read_readings(FOLDER, documents)
    for document in documents:
        unmet = [bar["text"] for bar in document["bars"] if not bar["met"]]
        assert unmet == list(readings.get(document["name"], {})), document["name"]


def test_the_readme_repeats_the_effects() -> None:
    for study, key, text, sign in (
        ("placement", "dead_zone", "{:.2f} points [{:.2f}, {:.2f}]", -1),
        ("depth_at_init", "layer-norm", "{:.2f} [{:.3g}, {:.3g}] a layer", 1),
        ("steps_to_target", "faster", "{:.2f} times [{:.2f}, {:.2f}]", 1),
    ):
        effect = seen(study, key)
        ends = sorted(sign * effect[end] for end in ("low", "high"))
        assert effect["n"] == 10 and text.format(sign * effect["mean"], *ends) in README, (study, effect)
