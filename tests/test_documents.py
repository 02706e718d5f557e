"""The pages name files, folders and definitions that exist."""

import ast
import re

import pytest

from tests.support.paths import ROOT

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
ROWS = re.findall(r"^\| Where .*\| `(\S+)` \| (.*) \|$", ARCHITECTURE, re.MULTILINE)
LINKS = [
    (page.relative_to(ROOT).as_posix(), link)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
]


@pytest.mark.parametrize(("file", "definitions"), ROWS, ids=[file for file, _ in ROWS])
def test_answers_of_the_architecture_name_definitions_of_their_file(file: str, definitions: str) -> None:
    defined = {
        node.name
        for node in ast.parse((ROOT / "normlab" / file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert set(re.findall(r"`(\w+)`", definitions)) <= defined


def test_the_architecture_names_every_folder() -> None:
    for package in (ROOT / "normlab", ROOT / "normlab" / "study"):
        for folder in package.glob("*/__init__.py"):
            name = folder.parent.relative_to(ROOT if package.name == "normlab" else package)
            assert f"`{name}`" in ARCHITECTURE


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_between_pages_lead_to_files(page: str, link: str) -> None:
    assert (ROOT / page).parent.joinpath(link).exists()
