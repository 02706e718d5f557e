"""Tab completion, as a shell asks for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ENVIRONMENT


def completed(line: str, folder: Path, code: str = "") -> list[str]:
    """Complete a line in a process of its own."""
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    command = [sys.executable, "-c", f"{code}\nfrom normlab.cli.main import main\nmain([])"]
    finished = subprocess.run(command, env=ENVIRONMENT | asked, cwd=folder, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    return answer.read_text().split("\n") if answer.exists() else []


@pytest.mark.parametrize(
    ("line", "expected", "without"),
    [
        ("normlab ", "run report merge verify list fold convert doctor", ""),
        ("normlab fold net.py:build checkpoint --no", "--no-check --no-follow", "--where"),
        ("normlab convert net.py:build old --to group", "group", "batch"),
        ("normlab convert net.py:build old --to head=gro", "head=group", "group"),
        ("normlab convert net.py:build old --fresh ", "raise init", "batch"),
        ("normlab run batch_", "batch_size batch_composition", "online"),
        ("normlab run batch_size --batch", "--batch-sizes", "--seeds"),
        ("normlab run batch_size --norms batch r", "rms", "layer"),
        ("normlab run online --problems s", "sea split-digits", "mlp"),
        ("normlab run batch_size --tier ", "smoke quick standard paper", "batch"),
        ("normlab list tiers o", "online", "recurrent"),
        ("normlab doctor net.py:build --fail-on ", "error warning note never", "batch"),
        ("normlab doctor net.py:build --s", "--static", "--seeds"),
    ],
)
def test_names(line: str, expected: str, without: str, tmp_path: Path) -> None:
    found = completed(line, tmp_path)
    assert set(expected.split()) <= set(found)
    assert without not in found


def test_a_file_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('executed', 'w').close()\nprint('output')\nraise SystemExit(3)\n")
    assert "--norms" in completed("normlab run mine.py --no", tmp_path)
    assert "smoke" in completed("normlab run mine.py --tier ", tmp_path)
    assert not (tmp_path / "executed").exists()


def test_without_the_package_there_is_none(tmp_path: Path) -> None:
    assert completed("normlab ", tmp_path, "import sys; sys.modules['argcomplete'] = None") == []
