"""Read the code and the links of the documentation, and run its code as a user would.

`python -m tests.support.documents docs/PAGE.md` runs the code of a page in the working directory.
"""

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from normlab.cli.main import main as cli
from normlab.study.training.compilation_cache import use_cache
from tests.support.paths import ENVIRONMENT, ROOT

PAGES = (
    *(path for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (path := ROOT / name).is_file()),
    *sorted((ROOT / "docs").rglob("*.md")),
)
GENERATED = (
    "docs/reference/cli.md",
    *(f"docs/gallery/{p.name[:-7]}/report.html" for p in ROOT.glob("docs/*/*.tar.xz")),
)
"""Files that only the built site has."""

ENTRIES = tuple(
    found
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for found in re.findall(r"^(?:::: |\[\]\(\)\{#)([\w.]+)", page.read_text(), re.MULTILINE)
)
"""Objects with an entry in the reference, by the names of their anchors."""

LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)``` *$",
    re.DOTALL | re.MULTILINE,
)
_NO_RUN = re.compile(r'^no_run="(.+)"$')
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Attributes:
        language: The first word of its fence.
        info: The rest of the line.
        text: Its lines.
        line: Number of its first line in the page.
    """

    language: str
    info: str
    text: str
    line: int

    @property
    def reason(self) -> str:
        """The reason why it does not run, as in `no_run="takes an hour"`; empty where it does."""
        found = _NO_RUN.match(self.info)
        return found[1] if found else ""

    @property
    def file(self) -> str | None:
        """The name of the file that it shows, as in `# mine.py`; `None` where it is a script."""
        found = _FILE.match(self.text) if self.language == "python" else None
        return found[1] if found else None


def name_of(page: Path) -> str:
    """Return the name of a page, from the top level."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Return all blocks of a page."""
    content = page.read_text()
    return [
        Block(
            found["language"],
            found["info"].strip(),
            textwrap.dedent(found["text"]),
            content.count("\n", 0, found.start()) + 2,
        )
        for found in _FENCE.finditer(content)
    ]


def prose_of(page: Path) -> str:
    """Return a page without its code."""
    return re.sub(r"`[^`\n]+`", "``", _FENCE.sub("", page.read_text()))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page as the site makes them: of headings, of objects of the reference, and explicit."""
    text = _FENCE.sub("", page.read_text())
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", found) for found in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)", text, re.MULTILINE)) | set(re.findall(r"\{ ?#([\w.-]+)", text))


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words, without comments, redirections and variables in front."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        command: list[str] = []
        for word in (*words, ";"):
            if word and set(word) <= set("&|;"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"[A-Z_]+=", word):
                command.append(word)


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows."""
    for block in blocks_of(page):
        if block.file:
            (folder / block.file).write_text(block.text)


def is_of_own_file(command: list[str]) -> bool:
    """Check whether a command runs a comparison from a file, which has to be there."""
    return command[:2] == ["normlab", "run"] and command[2].endswith(".py")


def is_on_checkpoint(command: list[str]) -> bool:
    """Check whether a command writes a new checkpoint of a model whose file the page shows."""
    return command[:2] in (["normlab", "fold"], ["normlab", "convert"]) and Path(command[2].partition(":")[0]).exists()


def run_on_checkpoint(command: list[str], shown: str) -> None:
    """Run a command that writes a checkpoint, and compare its output with that of the page."""
    done = subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, text=True)
    alike = (re.sub(r"differ by \S+", "differ by ...", text) for text in (done.stdout, shown))
    assert next(alike) == next(alike)


def run_page(page: Path) -> None:
    """Run the code of a page in the working directory.

    Scripts share a namespace. Among the commands, those of files that the page shows are run; budgets beyond smoke are
    only planned, and each plan once, in this process. Those that write a checkpoint print the next block.
    """
    main = sys.modules["__main__"] = ModuleType("__main__")
    write_files(page, Path())
    planned: list[list[str]] = []
    blocks = blocks_of(page)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.reason or block.file:
            continue
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, main.__dict__)
        elif block.language == "sh":
            for command in filter(is_on_checkpoint, commands_of(block.text)):
                run_on_checkpoint(command, following.text if following else "")
            for command in filter(is_of_own_file, commands_of(block.text)):
                if "smoke" in command:
                    subprocess.run([sys.executable, "-m", *command], check=True)
                elif (arguments := [word for word in command[1:] if word != "--dry-run"]) not in planned:
                    planned.append(arguments)
                    assert cli([*arguments, "--dry-run"]) == 0, command


def run(arguments: list[str], folder: Path) -> str:
    """Run Python in a folder, as a user would, and return its output."""
    environment = {**ENVIRONMENT, "MPLBACKEND": "agg"}
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


if __name__ == "__main__":
    use_cache()  # most of the time is XLA's
    run_page(Path(sys.argv[1]).resolve())
