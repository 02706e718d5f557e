"""Test that a wheel contains the comparisons of `benchmarks/`, which run by name, but no measurements or results."""

import tomllib
from pathlib import Path

from normlab.study.design import discovery
from tests.support.paths import ROOT

BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_all_comparisons_are_in_the_wheel_and_nothing_else_is() -> None:
    comparisons = [path.name for path in (ROOT / "benchmarks").rglob("*.py") if discovery.defines_comparison(path)]
    shipped = {source: target for source, target in BUILD["force-include"].items() if source.startswith("benchmarks")}
    assert len(comparisons) == 13
    assert shipped == {f"benchmarks/{name}": f"normlab/_benchmarks/{name}" for name in comparisons}


def test_measurements_are_not_listed_as_comparisons() -> None:
    measured = {path.stem for path in (ROOT / "benchmarks/speed").glob("*.py")}
    assert {"norms", "scaling", "throughput"} <= measured
    assert {name for name, path in discovery.known().items() if Path(path).parent.name == "speed"} == set()
    assert set(discovery.known()) & {"norms", "scaling", "throughput", "error_rates"} == set()
