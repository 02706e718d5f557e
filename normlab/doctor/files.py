"""Files that appear whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from normlab.errors import BadInput

__all__ = ["check", "write"]


def check(path: Path, where: str) -> None:
    """Check that a file can be at a path.

    Args:
        path: The path.
        where: Words for the argument, for the message.

    Raises:
        BadInput: If there is a folder, or a parent that is no folder.
    """
    if path.is_dir():
        raise BadInput(f"Expected {where} to be a file, got the folder `{path}`. Write `{path / 'doctor'}` or so.")
    first = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not first.is_dir():
        raise BadInput(f"Expected {where} to be in a folder, got `{path}`, and `{first}` is a file. Give another path.")


def write(path: Path, content: str) -> Path:
    """Write a file and the folders that it needs; after a failure an old file is unchanged.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        temporary.write_text(content, "utf-8")
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return path
