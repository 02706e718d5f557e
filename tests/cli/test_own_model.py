"""The examples of the documentation, run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.documents import BLOCK, blocks, run
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def follow(document: str, section: str, folder: Path) -> str:
    """Write the files of a section, run its other code and its commands; budgets beyond smoke are only planned."""
    printed = ""
    for language, text in blocks(document, section):
        if named := re.match(r"# (\w+\.py)\n", text):
            (folder / named[1]).write_text(text)
        elif language == "python":
            printed += run(["-c", text], folder)
        else:
            for line in text.splitlines():
                _, *command = shlex.split(line, comments=True)
                printed += run(["-m", "normlab", *command, *([] if "smoke" in command else ["--dry-run"])], folder)
    return printed


@pytest.mark.parametrize(
    ("document", "section", "output"),
    [
        ("docs/how-to/own_model.md", "NNX", "results/diabetes-smoke/report.html"),
        ("docs/how-to/own_model.md", "From Python", "wine/report.html"),
        ("README.md", "Your own model", "results/wine-smoke/report.html"),
    ],
)
def test_the_example_does_what_it_says(tmp_path: Path, document: str, section: str, output: str) -> None:
    printed = follow(document, section, tmp_path)
    assert "compare nothing" in printed
    assert (tmp_path / output).is_file(), printed


def test_the_page_on_devices_does_what_it_says(tmp_path: Path) -> None:
    """Its blocks are one script, with asserts."""
    code = [
        text for language, text in BLOCK.findall((ROOT / "docs/how-to/devices.md").read_text()) if language == "python"
    ]
    assert len(code) == 5 and all("assert" in text for text in code[:4])
    run(["-c", "\n".join(code)], tmp_path)


def test_the_page_on_recurrent_cells_does_what_it_says(tmp_path: Path) -> None:
    """Its blocks are one script, with asserts."""
    code = [
        text
        for language, text in BLOCK.findall((ROOT / "docs/how-to/recurrent.md").read_text())
        if language == "python"
    ]
    assert len(code) == 2 and all("assert" in text for text in code)
    run(["-c", "\n".join(code)], tmp_path)


def test_the_page_on_state_does_what_it_says(tmp_path: Path) -> None:
    """Its blocks are one script, with asserts."""
    code = [text for language, text in BLOCK.findall((ROOT / "docs/state.md").read_text()) if language == "python"]
    assert len(code) == 4 and sum("assert" in text for text in code) == 4
    run(["-c", "\n".join(code)], tmp_path)


def test_the_page_on_streams_does_what_it_says(tmp_path: Path) -> None:
    """Its first blocks are one script; those of the live models run in their tests."""
    parts = (blocks("docs/how-to/online.md", section) for section in ("Norms for streams", "Compare them"))
    code = [text for part in parts for language, text in part if language == "python"]
    assert len(code) == 3 and all("assert" in text for text in code[:2])
    run(["-c", "\n".join(code)], tmp_path)
