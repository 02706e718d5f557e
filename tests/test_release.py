"""Test that the papers of a release agree with the package."""

import re
import tomllib

import normlab
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASE = (ROOT / "docs" / "release.md").read_text()


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    keys = set(re.findall(r"^([\w-]+):", citation, re.MULTILINE))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= keys
    assert f"\nversion: {normlab.__version__}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation


def test_supported_versions_of_python_are_those_of_the_package() -> None:
    classified = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert f"| Python | {', '.join(classified)} |" in RELEASE


def test_supported_versions_of_libraries_are_the_bounds_and_the_pins() -> None:
    pins = re.findall(r"^(\w+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for bound in PROJECT["dependencies"]:
        name, _, lowest = bound.partition(">=")
        full, part = (version for pinned, version in pins if pinned == name)
        row = f"| {lowest} and newer | {full} | {part} |".lower()
        assert re.search(rf"^\| {name} {re.escape(row)}$", RELEASE.lower(), re.MULTILINE)
