"""What can be made again and is kept on disk: where it is, arrays that processes share, and how much of it stays."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from time import time
from uuid import uuid4

import numpy as np
from numpy.lib import format as npy

from normlab.study.data import data_hash

ARRAY_BYTES = 16 * 2**30
"""How large a folder of arrays may be."""

_WRITTEN_WITHIN = 3600
"""Seconds after which nobody is about to write into an empty file."""

_ALIGNED = 64
"""JAX uses arrays that begin at a multiple of this many bytes where they are, without a copy."""


def folder(name: str) -> Path:
    """Give a folder in the one that `NORMLAB_CACHE` names, else in `normlab` of the user's folder for caches.

    Raises:
        RuntimeError: For a user without a home.
    """
    own = os.environ.get("NORMLAB_CACHE")
    of_user = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return (Path(own) if own else Path(of_user) / "normlab") / name


def kept(kind: str, key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Give arrays that are kept on disk, and make them where they are not, or no longer what was written.

    They are mapped, not read: processes that use the same arrays share their memory. Several processes may make them at
    a time. Where nothing can be written, they are made every time.

    Args:
        kind: The folder, e.g. `streams`. What was not used for longest is deleted when it outgrows `ARRAY_BYTES`.
        key: Tells apart what is different.
        make: Gives the arrays by name.
    """
    try:
        path = folder(kind) / f"{key}.npy"
    except RuntimeError:
        return make()
    found = read(path)
    if found is None:
        made = make()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, made)
            prune(path.parent, ARRAY_BYTES)
        found = read(path) or made
    with suppress(OSError):
        os.utime(path)
    return found


def prune(folder: Path, limit: int) -> None:
    """Delete the files that were not used for longest beyond so many bytes, and empty ones whose writer was killed."""
    total = 0
    with suppress(FileNotFoundError):  # another process deletes too
        entries = [(entry.stat(), entry) for entry in folder.iterdir() if entry.is_file()]
        for status, entry in sorted(entries, key=lambda pair: pair[0].st_atime, reverse=True):
            total += status.st_size
            abandoned = not status.st_size and status.st_mtime < time() - _WRITTEN_WITHIN
            if total > limit or abandoned:
                entry.unlink(missing_ok=True)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the hash of arrays, their names and the arrays, one behind the other, so that nobody finds half of it.

    Raises:
        OSError: As the system says.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            for array in (np.array(data_hash(arrays)), np.array(list(arrays)), *arrays.values()):
                np.save(file, array)
                file.write(bytes(-file.tell() % _ALIGNED))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Map the arrays of a file; `None` where they are not what was written."""
    try:
        with path.open("rb") as file:
            told, names = _mapped(file), _mapped(file)
            arrays = {str(name): _mapped(file) for name in names}
        return arrays if told == data_hash(arrays) else None
    except Exception:  # damage can make anything of a header
        return None


def _mapped(file: BufferedReader) -> np.ndarray:
    """The next array of a file, read-only."""
    npy.read_magic(file)
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    if dtype.hasobject:  # its bytes would be taken for addresses
        raise ValueError("no numbers and no text")
    start = file.tell()
    array = np.asarray(np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C"))
    file.seek(start + array.nbytes + -(start + array.nbytes) % _ALIGNED)
    return array
