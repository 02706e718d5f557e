"""The pages: their code runs, their commands and links are valid, and they name what exists."""

import ast
import csv
import importlib
import re
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from normlab.cli.main import main
from normlab.cli.parser import Parser
from normlab.study.design.request import Request
from tests.support import public
from tests.support.documents import (
    ENTRIES,
    GENERATED,
    LINK,
    PAGES,
    Block,
    anchors_of,
    blocks_of,
    commands_of,
    is_of_own_file,
    name_of,
    prose_of,
    run,
    write_files,
)
from tests.support.paths import ROOT

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
ROWS = re.findall(r"^\| Where .*\| `(\S+)` \| (.*) \|$", ARCHITECTURE, re.MULTILINE)
LINKS = [(page, link, anchor) for page in PAGES for link, anchor in LINK.findall(prose_of(page))]
LANGUAGES = {"python", "sh", "text", "toml", "json"}
MOST_NOT_RUN = 10


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


def test_links_lead_to_files_and_headings() -> None:
    assert len(LINKS) > 50
    for page, link, anchor in LINKS:
        target = (page.parent / link).resolve() if link else page
        where = f"{name_of(page)}: {link}#{anchor}"
        if target.is_relative_to(ROOT) and target.relative_to(ROOT).as_posix() in GENERATED:
            continue
        assert target.exists(), where
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), where


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]))
    assert {name_of(page).removeprefix("docs/") for page in PAGES if page.is_relative_to(ROOT / "docs")} <= listed


def test_blocks_have_a_language_and_few_do_not_run() -> None:
    blocks = [(name_of(page), block) for page in PAGES for block in blocks_of(page)]
    assert [(name, block.line, block.language) for name, block in blocks if block.language not in LANGUAGES] == []
    assert [(name, block.line, block.info) for name, block in blocks if block.info and not block.reason] == []
    assert len([block for _, block in blocks if block.reason]) <= MOST_NOT_RUN


class Accepted(Exception):
    """A command is valid, and would now be carried out."""


def accept(*_: object) -> None:
    raise Accepted


def check_normlab(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command line parse a command, without carrying it out; a reader's own data are there."""
    for word in words:
        if Path(word).suffix == ".csv":
            Path(word).touch()
    parse: Callable[..., object] = Parser.parse

    def parsed(*given: object) -> object:
        found = parse(*given)
        return found if words[0] == "run" else accept()

    monkeypatch.setattr(Parser, "parse", parsed)
    monkeypatch.setattr(Request, "output", accept)
    with pytest.raises((Accepted, SystemExit)):
        code = main(words)
        assert code == 0
        raise Accepted


def check(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a command of a page names what exists."""
    program, *rest = words
    if program == "normlab" or program.endswith("/normlab"):
        check_normlab(rest, monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "pip" or rest[:2] == ["-m", "pip"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        assert {name for names in extras for name in names.split(",")} <= known.keys()
    elif "-m" in rest:
        assert find_spec(rest[rest.index("-m") + 1])
    elif "-c" in rest:
        compile(rest[rest.index("-c") + 1], "command", "exec")
    elif program in ("python", "python3") or program.endswith("/python"):
        assert (ROOT / rest[0]).is_file() or (folder / rest[0]).is_file()
    else:
        assert program in ("cd", "export", "git", "source", "ruff", "pyright", "lint-imports", "pytest", "tfds")


COMMANDS = [
    (page, block)
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "sh" and not block.reason and block.text.strip()
]


@pytest.mark.parametrize(("page", "block"), COMMANDS, ids=[f"{name_of(page)}:{block.line}" for page, block in COMMANDS])
def test_commands_are_valid(page: Path, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    commands = list(commands_of(block.text))
    assert commands
    for words in (words for words in commands if not is_of_own_file(words)):
        with monkeypatch.context() as patch:
            check(words, tmp_path, patch)


def test_a_command_that_is_not_valid_is_noticed(tmp_path: Path) -> None:
    for command in ("normlab run batch_sizes", "normlab run batch_size --seed 3", "make everything", "rm results"):
        with pytest.raises(AssertionError), pytest.MonkeyPatch.context() as patch:
            check(command.split(), tmp_path, patch)


SCRIPTS = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", SCRIPTS, ids=map(name_of, SCRIPTS))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(["-W", "error", "-m", "tests.support.documents", str(page)], tmp_path)


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    listed = {name: public.names(importlib.import_module(name)) for name in public.MODULES if name != "normlab"}
    public_names = {f"{module}.{name}" for module, found in (listed | public.SINGLE).items() for name in found}
    of_functions = {name for name in ENTRIES if name.split(".")[-1] != name.split(".")[-2]}
    of_functions |= {name.rpartition(".")[0] for name in set(ENTRIES) - of_functions}  # named as their modules are
    assert public_names - of_functions == set()
    assert len(set(ENTRIES)) == len(ENTRIES)


RECORDS = re.findall(r"^::: (\S+)\.(\w+)", (ROOT / "docs/reference/records.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), RECORDS)
def test_every_field_of_a_file_is_described(module: str, name: str) -> None:
    cls = getattr(importlib.import_module(module), name)
    described = re.findall(r"^ {8}(\w+): ", cls.__doc__.partition("Attributes:\n")[2], re.MULTILINE)
    assert set(described) == set(cls.__annotations__)


def test_the_gallery_links_to_every_report() -> None:
    archives = {path.name.removesuffix(".tar.xz") for path in (ROOT / "docs" / "gallery").glob("*.tar.xz")}
    found = re.findall(r"\(gallery/([\w-]+)/report.html\)", (ROOT / "docs" / "gallery.md").read_text())
    assert archives == set(found) and len(found) == len(archives)


@pytest.mark.parametrize("table", ["cells.csv", "runs.csv"])
def test_columns_of_tables_are_described(table: str) -> None:
    page = (ROOT / "docs" / "reference" / "records.md").read_text()
    described = set(re.findall(r"`(\w+)`", page.partition(f"\n## tables/{table}\n")[2].partition("\n## ")[0]))
    with (ROOT / "tests" / "golden" / table).open() as file:
        columns = next(csv.reader(file))
    assert [name for name in columns if name not in described and not name.startswith("config_")] == []
