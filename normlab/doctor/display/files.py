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
        raise BadInput(f"Expected {where} to be a file, got the folder `{path}`. Name a file in it.")
    first = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not first.is_dir():
        raise BadInput(f"Expected {where} to be in a folder, got `{path}`, and `{first}` is a file. Give another path.")


def write(path: Path, content: str) -> Path:
    """Write a file and the folders that it needs; after a failure an old file is unchanged.

    Raises:
        BadInput: If the file cannot be written.
    """
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = (error.strerror or type(error).__name__).lower()
        raise BadInput(f"Expected to write `{path}`, got the error `{reason}`. Give another path.") from error
    return path
