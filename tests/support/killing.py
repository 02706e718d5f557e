"""Kill reports and merges while they write, and check the folder after each kill.

The script is a process of its own, so that victims can be forked from it after everything is imported.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from normlab.cli.main import main
from normlab.study.analysis.results import Analysis
from normlab.study.report import html
from normlab.study.worker.store import Store


@contextmanager
def moments(last: int | None = None) -> Iterator[list[None]]:
    """Count the moments of writing: before a file, when half of it is there, and when it has its name.

    Args:
        last: The moment at which this process is killed.
    """
    seen: list[None] = []
    write, replace = Path.write_bytes, os.replace

    def pass_one() -> None:
        if len(seen) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(None)

    def write_bytes(path: Path, content: bytes) -> int:
        pass_one()
        write(path, content[: len(content) // 2])
        pass_one()
        return write(path, content)

    def replace_then_pass(*paths: Any) -> None:
        replace(*paths)
        pass_one()

    patched: Any = (write_bytes, replace_then_pass)
    Path.write_bytes, os.replace = patched
    try:
        yield seen
    finally:
        Path.write_bytes, os.replace = write, replace


def draw_once() -> None:
    """Cache figures, which take most of the time, for reports of equally many runs."""
    drawn: dict[int, Any] = {}
    draw = html.figure_files

    def figure_files(analysis: Analysis) -> Any:
        done = analysis.counts["done"]
        if done not in drawn:
            drawn[done] = draw(analysis)
        return drawn[done]

    html.figure_files = figure_files


def work(command: str, root: Path, folder: Path) -> None:
    """Run the command to be killed."""
    arguments = {
        "report": ["report", str(folder)],
        "merge": ["merge", str(root / "rest"), str(root / "old"), "--output", str(folder)],
    }
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        code = main(arguments[command])
    assert code == 0, code


def started(command: str, root: Path) -> Path:
    """Make a folder with an old report and new records."""
    folder = root / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "old", folder)
    if command == "report":
        for record in Store(root / "rest").records():
            Store(folder).add(record)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Read all files except runs and the header, which contains the command and the time."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in ("", ".lock")]
    kept = [path for path in found if path.name != "comparison.json" and "runs" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def killed(act: Callable[[], None], moment: int) -> None:
    """Run a function in a child, and kill the child at a moment."""
    child = os.fork()
    if not child:
        with moments(moment):
            act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def check(folder: Path, old: dict[str, bytes], new: dict[str, bytes], least: int) -> None:
    """Check that each file is the old or the new one, and that nothing is damaged."""
    store = Store(folder)
    assert store.header()
    assert store.damaged() == []
    assert len(store.records()) >= least
    for name, content in files(folder).items():
        assert name.endswith(".tmp") or content in (old.get(name), new[name]), name
    if (folder / "report.html").read_bytes() == new["report.html"]:  # the page comes last
        assert {name: content for name, content in files(folder).items() if not name.endswith(".tmp")} == new


def kill_and_check(command: str, root: Path, kills: int) -> None:
    """Kill a command at moments spread over all its writing."""
    draw_once()
    work("report", root, root / "old")
    old, least = files(root / "old"), len(Store(root / "old").records())
    folder = started(command, root)
    with moments() as all_moments:
        work(command, root, folder)
    new, runs = files(folder), len(Store(folder).records())
    assert runs > least
    assert old["report.html"] != new["report.html"]
    assert len(all_moments) >= kills
    for kill in range(kills):
        folder = started(command, root)
        killed(partial(work, command, root, folder), kill * len(all_moments) // kills)
        check(folder, old, new, least)
        if kill % 5 == 4:  # each would take too long
            work(command, root, folder)
            assert files(folder) == new
            assert len(Store(folder).records()) == runs
            assert not list(folder.rglob("*.tmp"))
    print(f"{kills} kills")


if __name__ == "__main__":
    kill_and_check(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
