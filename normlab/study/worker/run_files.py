"""The files of runs in a folder: each is read once as long as it is the same, and runs share what is equal."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Generic, TypeVar

from normlab.study.design import schema
from normlab.study.design.records import Record, Run, canonical_json, cell_text, content_key, key_from_texts
from normlab.study.design.schema import Check, Malformed
from normlab.study.worker import run_index, run_schema
from normlab.study.worker.run_index import Stamp

__all__ = ["INDEX", "RECORD_BYTES", "RunFiles"]

RECORD_BYTES = 16 * 2**20
"""The largest size of the file of a run."""

INDEX = "index"
"""Name of the index in the folder of runs; see `run_index`."""

INDEX_BYTES = 2**30
"""The largest size of an index."""

MANY = 2000
"""Files that are read one by one, above which the next time is worth an index."""

SLOW = 2e-4
"""Seconds for a file above which threads read ahead: a cold disk or a network takes more, memory a tenth of it, and
there threads would wait for each other."""

THREADS = 16
"""Number of folders that are read at a time."""

_Read = dict[str, tuple[Stamp | None, Record | None]]
"""The run in each file by its path, with the stamp of what was read."""
_File = tuple[str, Stamp | None, bytes | None]
"""Path, stamp and content of a file; no content where the stamp is that of the last call."""
_Made = TypeVar("_Made")


class RunFiles:
    """Reads the files `??/KEY.json` of a folder."""

    def __init__(self, folder: Path) -> None:
        """Store the path of the folder, which may be missing."""
        self._folder = folder
        self._read: _Read = {}
        self._unindexed = 0
        run = schema.fields(
            {
                "cell": _Shared(run_schema.configuration, cell_text),
                "stage": run_schema.STAGE,
                "learning_rate": run_schema.LEARNING_RATE,
                "seed": run_schema.SEED,
            }
        )
        self._check = schema.fields(
            {
                "key": run_schema.KEY,
                "run": run,
                "identity": _Shared(run_schema.identity, canonical_json),
                "status": run_schema.STATUS,
                "reason": run_schema.REASON,
                "metrics": run_schema.METRICS,
                "series": run_schema.SERIES,
                "cost": run_schema.COST,
                "sha256": run_schema.KEY,
            }
        )

    def read(self) -> tuple[list[Record], list[Path]]:
        """Read the folder.

        Returns:
            The valid runs, sorted by the names of their files.
            The files without a valid run: truncated, changed, or with the run of another file.
        """
        there = self._all()
        return [one for one in there.values() if one], [Path(path) for path, one in there.items() if not one]

    def index(self) -> bytes | None:
        """Write the index of what has been read; `None` where it would save little time."""
        if self._unindexed < MANY:
            return None
        self._unindexed = 0
        return run_index.encode((stamp, record) for stamp, record in self._read.values() if stamp and record)

    def record(self, path: Path) -> Record | None:
        """Read the run in a file; `None` where the content is damaged or does not match the name."""
        return self._record(path.stem, _content(str(path))[1])

    def adopt(self, path: Path, other: "RunFiles", theirs: Path) -> None:
        """Take over the record of a file that has a second name here, so that the file is not read again."""
        before, record = other._read.get(str(theirs), (None, None))
        now = _stamp(str(path))
        if before and now and before[:-1] == now[:-1]:  # the second name changes the last part
            self._read[str(path)] = now, record

    def _record(self, name: str, content: bytes) -> Record | None:
        try:
            fields = schema.parse_json(content)
            checked = self._check(fields)
        except Malformed:
            return None
        if fields.pop("sha256") != content_key(fields):
            return None
        run = checked["run"]
        (of_cell, configuration), (of_identity, identity) = run.pop("cell"), checked["identity"]
        checked |= {"run": Run(configuration=configuration, **run), "identity": identity, "series": fields["series"]}
        del checked["sha256"]
        record = Record(**checked)
        return record if name == record.key == key_from_texts(record.run, of_cell, of_identity) else None

    def _all(self) -> dict[str, Record | None]:
        """Read the files that are new or have changed since the last call, or since the index was written."""
        known, self._read = self._read or self._indexed(), {}
        for path, stamp, content in self._contents(known):
            if content is None:
                self._read[path] = known[path]
            else:
                name = os.path.basename(path).removesuffix(".json")
                self._read[path] = stamp, self._record(name, content)
                self._unindexed += 1
        return {path: record for path, (_, record) in self._read.items()}

    def _indexed(self) -> _Read:
        """Read the index, if there is one."""
        try:
            content = schema.read_bytes(self._folder / INDEX, INDEX_BYTES)
        except (OSError, Malformed):
            return {}
        there = run_index.decode(content)
        return {f"{self._folder}{os.sep}{key[:2]}{os.sep}{key}.json": found for key, found in there.items()}

    def _contents(self, known: _Read) -> Iterator[_File]:
        """Yield all files in order, read ahead by threads once a disk turns out to be slow."""
        folders = deque(sorted(self._folder.glob("??")))
        quick = True
        while folders and quick:
            begin = perf_counter()
            files = _files(folders.popleft(), known)
            quick = perf_counter() - begin < SLOW * max(1, len(files))
            yield from files
        if folders:
            yield from _read_ahead(folders, known)


def _read_ahead(folders: Iterable[Path], known: _Read) -> Iterator[_File]:
    """Yield the files of folders in order, while threads read the next ones."""
    ahead = deque[Future[list[_File]]]()
    with ThreadPoolExecutor(THREADS) as threads:
        for folder in folders:
            ahead.append(threads.submit(_files, folder, known))
            if len(ahead) > THREADS:
                yield from ahead.popleft().result()
        for files in ahead:
            yield from files.result()


def _files(folder: Path, known: _Read) -> list[_File]:
    """List the files of a folder in order, each with its content unless the file is known and has not changed."""
    found: list[_File] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for path in sorted(entry.path for entry in entries if entry.name.endswith(".json")):
            stamp = _stamp(path) if path in known else None
            unchanged = stamp is not None and known[path][0] == stamp
            found.append((path, stamp, None) if unchanged else (path, *_content(path)))
    return found


def _content(path: str) -> tuple[Stamp | None, bytes]:
    """Read a file of a run, with its stamp; nothing where the file cannot be read or is too large."""
    with suppress(OSError), open(path, "rb", buffering=0, opener=_at_once) as file:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size <= RECORD_BYTES:
            return _stamp_of(status), file.readall()
    return None, b""


def _at_once(path: str, flags: int) -> int:
    """Open a file without waiting, as for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _stamp(path: str) -> Stamp | None:
    """Return what identifies the content of a file without reading it; `None` where the file cannot be found."""
    try:
        return _stamp_of(os.stat(path))
    except OSError:
        return None


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Shared(Generic[_Made]):
    """A check that makes one value, with its canonical JSON, for all equal objects."""

    def __init__(self, make: Check[_Made], text: Callable[[_Made], str]) -> None:
        self._make, self._text = make, text
        self._known: dict[str, tuple[str, _Made]] = {}

    def __call__(self, value: object) -> tuple[str, _Made]:
        exact = repr(value)  # unlike equality, distinguishes 1 from 1.0 and from true
        if exact not in self._known:
            made = self._make(value)
            self._known[exact] = self._text(made), made
        return self._known[exact]
