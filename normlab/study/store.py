"""The folder of a comparison: `comparison.json`, and one JSON file a run under `runs/`, each whole or not there."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normlab.study.config import Cell, Record, Run, Settings
from normlab.study.errors import BadInput

_HEADER = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a folder holds.

    Attributes:
        settings: Of the last invocation.
        identity: Of the last invocation; runs of another identity stay in the folder, unused.
        command: Of the last invocation.
        wall_seconds: Spent so far, all invocations together.
    """

    settings: Settings
    identity: Mapping[str, Any]
    command: str
    wall_seconds: float = 0.0


class Store:
    """A folder with the runs of one comparison. One process writes; readers see only complete files."""

    def __init__(self, directory: Path) -> None:
        """Name a folder; nothing is read or written yet."""
        self.directory = Path(directory)

    def check(self, comparison: str) -> None:
        """Refuse a folder that is not ours to write to.

        Raises:
            BadInput: If the folder holds another comparison, or anything else.
        """
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise BadInput(f"Expected a folder, got the file `{self.directory}`. Choose another with `--output`.")
        held = self.header()
        if held is None and any(self.directory.iterdir()):
            raise BadInput(
                f"Expected an empty folder or one of `{comparison}`, got `{self.directory}`, which holds other things. "
                "Choose another with `--output`."
            )
        if held is not None and held.settings.comparison != comparison:
            raise BadInput(
                f"Expected a folder of `{comparison}`, got `{self.directory}`, which holds the comparison "
                f"`{held.settings.comparison}`. Choose another with `--output`."
            )

    def header(self) -> Header | None:
        """What the folder says it holds; `None` where it says nothing.

        Raises:
            BadInput: If `comparison.json` is not one of ours.
        """
        path = self.directory / _HEADER
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text("utf-8"))
            settings = {name: _tuple(value) for name, value in fields.pop("settings").items()}
            return Header(settings=Settings(**settings), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(f"Expected `{path}` to be ours, got something else. Choose another folder.") from error

    def write_header(self, header: Header) -> None:
        """Write `comparison.json`, making the folder if need be."""
        _write(self.directory / _HEADER, asdict(header))

    def add(self, record: Record) -> None:
        """Write the file of a run."""
        _write(self._path(record.key), asdict(record))

    def records(self) -> Iterator[Record]:
        """Read all runs, of whatever settings and identity, but nothing that a killed process left half-written.

        Raises:
            BadInput: If a file was changed into something else.
        """
        for path in sorted(self.directory.glob("runs/??/*.json")):
            try:
                yield _record(json.loads(path.read_text("utf-8")))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise BadInput(f"Expected a run in `{path}`, got something else. Delete it to run it again.") from error

    def _path(self, key: str) -> Path:
        return self.directory / "runs" / key[:2] / f"{key}.json"


def _record(fields: dict[str, Any]) -> Record:
    run = fields.pop("run")
    cell = Cell(**run.pop("cell"))
    return Record(run=Run(cell=cell, **run), **fields)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")
    os.replace(temporary, path)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
