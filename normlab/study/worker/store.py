"""The folder of a comparison: `comparison.json`, and one JSON file a run under `runs/`, each whole or not there."""

import errno
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol
from uuid import uuid4

from normlab.errors import BadInput, Fault
from normlab.study.design import schema
from normlab.study.design.comparison import Settings
from normlab.study.design.plan import TUNING_SEEDS_FROM
from normlab.study.design.recorded import DESCRIBED, RecordedPlan
from normlab.study.design.records import Record, RunIdentity, as_stored, content_key
from normlab.study.design.schema import Malformed
from normlab.study.worker.run_files import INDEX, RECORD_BYTES, RunFiles
from normlab.study.worker.run_schema import CODE

_HEADER = "comparison.json"
_RUN_LOCK, _REPORT_LOCK = ".run.lock", ".report.lock"
JOBS = "submitit"
"""Folder of the logs and inputs of cluster jobs."""

HEADER_BYTES = 64 * 2**20
"""The largest size of `comparison.json`."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description of a folder.

    Attributes:
        settings: Settings of the last invocation.
        identity: RunIdentity of the last invocation; runs of another identity stay in the folder, unused.
        command: Command of the last invocation.
        wall_seconds: Seconds spent by all invocations.
        shard: The part of the last invocation, `i/n`; empty for the whole.
        about: Descriptions of the data by problem.
        described: Description of the comparison for reports (see `recorded.describe`); empty in folders of earlier
            versions.
    """

    settings: Settings
    identity: RunIdentity
    command: str
    wall_seconds: float = 0.0
    shard: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)


class RunStore(Protocol):
    """Storage of the runs of an invocation."""

    def check(self, comparison: str) -> None:
        """Check that the store is empty or contains runs of a comparison.

        Raises:
            BadInput: If it contains anything else.
        """
        ...

    def header(self) -> Header | None:
        """Read the header; `None` where there is none.

        Raises:
            BadInput: If the header is invalid.
        """
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Exclude other writers.

        Raises:
            BadInput: If another process writes, or nothing can be written.
        """
        ...

    def write_header(self, header: Header) -> None:
        """Store the header of an invocation.

        Raises:
            BadInput: If the header could not be read again.
            Fault: If it cannot be written.
        """
        ...

    def add(self, record: Record) -> None:
        """Store a record, replacing an older one of the same key.

        Raises:
            Fault: If it cannot be written.
        """
        ...

    def records(self) -> list[Record]:
        """Return all records, of any settings and identity."""
        ...

    def repaired(self) -> tuple[list[Record], list[tuple[Path, Path]]]:
        """Return all records, and rename damaged files so that their runs are repeated; return old and new names."""
        ...


class Store:
    """A folder with the runs of one comparison. Readers see complete files only.

    One process writes, together with its cluster jobs.
    """

    def __init__(self, directory: Path) -> None:
        """Store the path of the folder, without reading or writing."""
        self.directory = Path(directory)
        self._runs = RunFiles(self.directory / "runs")

    def check(self, comparison: str) -> None:
        """Check that the folder is new, empty, or of a comparison.

        Raises:
            BadInput: If the folder contains another comparison, or anything else.
        """
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise BadInput(f"Expected a folder, got the file `{self.directory}`. Choose another with `--output`.")
        header = self.header()
        if header is None and any(not _is_ours(path) for path in self.directory.iterdir()):
            raise BadInput(
                f"Expected an empty folder or one of `{comparison}`, got `{self.directory}`, which contains other "
                "files. Choose another with `--output`."
            )
        if header is not None and header.settings.comparison != comparison:
            raise BadInput(
                f"Expected a folder of `{comparison}`, got `{self.directory}`, which contains the comparison "
                f"`{header.settings.comparison}`. Choose another with `--output`."
            )

    def header(self) -> Header | None:
        """Read `comparison.json`; `None` where there is none.

        Raises:
            BadInput: If this version of normlab cannot read the file.
        """
        path = self.directory / _HEADER
        if not path.is_file():
            return None
        try:
            content = schema.read_json(path, HEADER_BYTES)
            fields = {**_HEADER_FIELDS(content), "identity": content["identity"]}
            settings = Settings(**fields.pop("settings"))
            _check_settings(settings)
            if fields.get("described"):
                RecordedPlan(settings, fields["described"])
            return Header(settings=settings, **fields)
        except (Malformed, OSError) as error:
            raise BadInput(
                f"Expected `{path}` to be what this version of normlab writes, got something else ({error}). Choose "
                "another folder; or delete the file, and the command that made the folder resumes from the runs in it."
            ) from error

    def recorded(self) -> tuple[Header, RecordedPlan]:
        """Read the header and the plan of its comparison, without running code of the comparison.

        Raises:
            BadInput: If there is no header, or it is invalid or of an earlier version.
        """
        header = self.header()
        if header is None:
            raise BadInput(f"Expected a folder that `normlab run` wrote, got `{self.directory}`.")
        if not header.described or "data" not in header.identity:
            raise BadInput(
                f"Expected `{self.directory / _HEADER}` to describe its comparison, got one of an earlier version of "
                "normlab. Run the command that made the folder again, or use the version that wrote it."
            )
        return header, RecordedPlan(header.settings, header.described)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder, and remove half-written files of killed processes.

        Raises:
            BadInput: If the folder cannot be written to, or another process has locked it.
        """
        lock = self.directory / _RUN_LOCK
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            locked = _locked(lock, wait=False)
        except BlockingIOError as error:
            raise BadInput(
                f"Expected to be alone in `{self.directory}`, where {lock.read_text('utf-8').strip() or 'another'} is "
                "at work. Wait for it, or choose another folder with `--output`."
            ) from error
        except OSError as error:
            reason = f"Cannot write to `{self.directory}`: {error.strerror}. Choose another with `--output`."
            raise BadInput(reason) from error
        with locked:
            with suppress(OSError):  # for messages; the next record reports a full disk
                locked.truncate(0)
                print(f"process {os.getpid()} on {platform.node()}", file=locked, flush=True)
            _remove_leftovers(self.directory, _HEADER_NAME)
            for folder in self.directory.glob("runs/??"):
                _remove_leftovers(folder, _RUN_NAME)
            yield

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Lock the report, so that one process at a time reads the runs and writes it.

        Raises:
            Fault: If the folder cannot be written to.
        """
        locked = None
        with suppress(OSError):  # a folder that cannot be written to can still be read
            locked = _locked(self.directory / _REPORT_LOCK, wait=True)
        try:
            with locked or nullcontext():
                if locked:
                    for folder in (self.directory, self.directory / "tables", self.directory / "figures"):
                        _remove_leftovers(folder, _REPORT_NAME)
                    _remove_leftovers(self.directory / "runs", re.escape(INDEX))
                yield
        except OSError as error:
            raise Fault(
                f"Cannot write the report to `{self.directory}`: {error.strerror}. The runs are kept."
            ) from error

    def write_header(self, header: Header) -> None:
        """Write `comparison.json`.

        Raises:
            BadInput: If the header could not be read again.
            Fault: If it cannot be written.
        """
        fields = asdict(header)
        try:
            checked = _HEADER_FIELDS(fields)
            if header.described:
                RecordedPlan(header.settings, checked["described"])
        except Malformed as error:
            raise BadInput(
                f"Expected names, texts and numbers that the folder of a comparison can contain, got something else "
                f"({error}). Change them in the comparison."
            ) from error
        self._write(self.directory / _HEADER, _as_text(fields))

    def add(self, record: Record) -> None:
        """Write the file of a run.

        Raises:
            Fault: If it cannot be written; an older file is unchanged.
        """
        fields = {**asdict(record), "run": as_stored(record.run)}
        fields["run"]["cell"]["config"] = dict(record.run.configuration.config)
        self._write(self._path(record.key), _as_text({**fields, "sha256": content_key(fields)}))

    def share(self, other: "Store", key: str) -> None:
        """Link to the file of a run in another folder, or copy the file where the two cannot share it.

        Raises:
            Fault: If it cannot be read or written; an older file is unchanged.
        """
        source, path = other._path(key), self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _link_whole(source, path)
            self._runs.adopt(path, other._runs, source)
        except OSError:
            try:
                content = schema.read_bytes(source, RECORD_BYTES)
            except (Malformed, OSError) as error:
                raise Fault(f"Cannot read `{source}`: {error}. Run the same command again.") from error
            self._write(path, content)

    def record(self, key: str) -> Record | None:
        """Read the record of a key; `None` where it is missing or damaged."""
        return self._runs.record(self._path(key))

    def remove(self, key: str) -> None:
        """Delete the file of a run that is repeated."""
        self._path(key).unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """Read all records, of any settings and identity, without damaged files."""
        return self.read()[0]

    def damaged(self) -> list[Path]:
        """List the files without a valid run: truncated, changed, or with the run of another file."""
        return self.read()[1]

    def read(self) -> tuple[list[Record], list[Path]]:
        """Return `records` and `damaged` from one look at the folder."""
        return self._runs.read()

    def index(self) -> None:
        """Write an index of the runs that have been read, where there are many; without it they are read again."""
        if content := self._runs.index():
            with suppress(OSError):
                write_whole(self.directory / "runs" / INDEX, content)

    def repaired(self) -> tuple[list[Record], list[tuple[Path, Path]]]:
        """Return all records, and rename damaged files so that their runs are repeated; return old and new names."""
        records, damaged = self.read()
        renamed = [(path, path.with_name(f"{path.name}.corrupt")) for path in damaged]
        for path, aside in renamed:
            os.replace(path, aside)
        return records, renamed

    def _path(self, key: str) -> Path:
        return self.directory / "runs" / key[:2] / f"{key}.json"

    def _write(self, path: Path, content: str | bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise Fault(
                f"Cannot write to `{self.directory}`: {error.strerror}. Finished runs are kept; once that is fixed, "
                "the same command resumes from there."
            ) from error


class MemoryStore:
    """The runs of one comparison in the memory of this process."""

    def __init__(self) -> None:
        """Start empty."""
        self._header: Header | None = None
        self._records: dict[str, Record] = {}

    def check(self, comparison: str) -> None:
        """Check that the store is empty or of a comparison.

        Raises:
            BadInput: If it contains another comparison.
        """
        if self._header and self._header.settings.comparison != comparison:
            raise BadInput(f"Expected runs of `{comparison}`, got those of `{self._header.settings.comparison}`.")

    def header(self) -> Header | None:
        """Return the header; `None` before the first invocation."""
        return self._header

    def writing(self) -> AbstractContextManager[None]:
        """Do nothing: no other process can write."""
        return nullcontext()

    def write_header(self, header: Header) -> None:
        """Store the header of an invocation."""
        self._header = header

    def add(self, record: Record) -> None:
        """Store a record, replacing an older one of the same key."""
        self._records[record.key] = record

    def records(self) -> list[Record]:
        """Return all records, of any settings and identity."""
        return list(self._records.values())

    def repaired(self) -> tuple[list[Record], list[tuple[Path, Path]]]:
        """Return all records; those in memory cannot be damaged."""
        return self.records(), []


def _link_whole(source: Path, path: Path) -> None:
    """Give a file a second name atomically, in place of another file of that name.

    Raises:
        OSError: If the file system cannot do that.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    os.link(source, temporary)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # stays where both names are those of one file


def _as_text(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file atomically; after a failure the old file is unchanged.

    Raises:
        OSError: If the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")  # process ids are unique on one machine only
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return path


_NAME, _LINE = schema.text(), schema.text(2000)
_POSITIVE = schema.number(positive=True)

_SETTINGS_FIELDS = schema.fields(
    {
        "comparison": _LINE,
        "source": schema.text(10_000),
        "tier": _NAME,
        **dict.fromkeys(("problems", "norms", "curves"), schema.listed(_LINE, 1000, least=1, once=True)),
        "values": schema.table(
            schema.listed(schema.any_of(schema.number(), _NAME), 1000, least=1, once=True), keys=_LINE
        ),
        "learning_rates": schema.listed(_POSITIVE, 1000, least=1, once=True),
        "epochs": schema.whole(1, 10**12),
        "tuning_seeds": schema.whole(1, 10**6),
        "seeds": schema.whole(1, TUNING_SEEDS_FROM),
    },
    {
        "extend": schema.flag,
        "default_learning_rate": schema.optional(_POSITIVE),
        "devices": schema.whole(1, 10**6),
        "options": schema.table(schema.plain(2)),
    },
)
_HEADER_FIELDS = schema.fields(
    {
        "settings": _SETTINGS_FIELDS,
        "identity": schema.fields(
            {}, {"data": schema.table(_NAME, keys=_LINE), "code": CODE}, any_other=schema.plain(4)
        ),
        "command": schema.text(1_000_000),
    },
    {
        "wall_seconds": schema.number(low=0),
        "shard": _NAME,
        "about": schema.table(schema.text(20_000), keys=_LINE),
        "described": schema.any_of(schema.fields({}), DESCRIBED),
    },
)


def _check_settings(settings: Settings) -> None:
    if missing := set(settings.curves) - settings.values.keys():
        raise Malformed(f"expected those of `{min(missing)}`, got none", "settings", "values")


_LEFTOVER = r"\.[0-9a-f]{32}\.tmp"
"""End of the name of a half-written file; see `write_whole`."""

_HEADER_NAME, _RUN_NAME = re.escape(_HEADER), r"[0-9a-f]{64}\.json"
_REPORT_NAME = r"[A-Za-z0-9._-]+\.(html|json|csv|toml|tex|svg|pdf)"


def _is_ours(path: Path) -> bool:
    """Check whether a path may belong to a comparison whose header is missing."""
    ours = (_RUN_LOCK, _REPORT_LOCK, "runs", "report.html", "analysis.json", "tables", "figures", JOBS)
    return path.name in ours or _is_leftover(path, _HEADER_NAME)


def _is_leftover(path: Path, name: str) -> bool:
    """Check whether a file is the half-written part of a name, left by a killed writer."""
    return bool(re.fullmatch(name + _LEFTOVER, path.name)) and path.is_file() and not path.is_symlink()


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove half-written files of a name, and nothing else."""
    for path in folder.glob("*.tmp"):
        if _is_leftover(path, name):
            path.unlink(missing_ok=True)


def _locked(path: Path, *, wait: bool) -> IO[str]:
    """Lock a file until it is closed or this process ends.

    Raises:
        BlockingIOError: If another process has the lock and `wait` is false.
        OSError: If the file cannot be opened.
    """
    file = path.open("a+", encoding="utf-8")
    try:
        _lock(file, wait=wait)
    except BlockingIOError:
        file.close()
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
    return file


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of network file systems without locks, where a single user needs none."""

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str], *, wait: bool) -> None:
        file.seek(1 << 30)  # Windows cannot read locked bytes, so the lock lies behind the process id
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error

else:
    import fcntl

    def _lock(file: IO[str], *, wait: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
