"""The file of results, complete after every row, and rows as text."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator.stage import Json, Row

__all__ = ["line", "read", "write"]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the file; a reader sees the rows before or after, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    os.replace(part, path)


def read(path: Path) -> list[Row]:
    """Return the rows of a file.

    Raises:
        ValueError: If it is no file of rows.
    """
    try:
        rows = json.loads(path.read_text())["rows"]
        if all(isinstance(row["stage"], str) and isinstance(row["kind"], str) for row in rows):
            return rows
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"Expected the RESULT.json of `python -m benchmarks.accelerator`, got `{path}`, which is none.")


def line(row: Row) -> str:
    """Return a row as a line of text."""
    columns = {name: value for name, value in row.items() if name not in ("stage", "kind")}
    return f"{row['stage']}, {row['kind']}: " + ", ".join(f"{name} {text(value)}" for name, value in columns.items())


def text(value: Json) -> str:
    """Return a value as text, floats with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + " ".join(map(text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {text(each)}" for name, each in value.items()) + "}"
    return str(value)
