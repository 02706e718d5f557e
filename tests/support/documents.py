"""Extract the code of the documentation, and run it as a user would."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ENVIRONMENT, ROOT

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: str, section: str) -> list[tuple[str, str]]:
    """Return language and text of the code blocks of a section."""
    text = (ROOT / document).read_text()
    return BLOCK.findall(re.split(r"^## ", text.partition(f"\n## {section}\n")[2], flags=re.MULTILINE)[0])


def run(arguments: list[str], folder: Path) -> str:
    """Run Python in a folder, as a user would, and return its output."""
    environment = {**ENVIRONMENT, "NORMLAB_CACHE": str(folder / "cache"), "MPLBACKEND": "agg"}
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout
