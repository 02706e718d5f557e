"""On-disk cache of derived arrays, shared between processes and pruned by size.

Folders and files are private to the user. Files that another user could have written are not read, but made again.
"""

import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from time import time
from uuid import uuid4

import numpy as np
from numpy.lib import format as npy

from normlab.study.design.provenance import data_hash

ARRAY_BYTES = 16 * 2**30
"""Limit of a folder of arrays, in bytes."""

_WRITTEN_WITHIN = 3600
"""Seconds after which an empty file counts as abandoned by its writer."""

ARRAYS, PROGRAMS = r"[0-9a-f]{64}\.npy(\.[0-9a-f]{32}\.tmp)?", r".+-[0-9a-f]{64}-(cache|atime)"
"""Names of the files with arrays, whole and half-written, and of those with compiled programs as JAX names them."""

_ALIGNED = 64
"""Alignment in bytes at which JAX uses arrays without a copy."""


def folder(name: str) -> Path:
    """Return the path of a folder in `NORMLAB_CACHE`, else in `normlab` of the user's folder for caches.

    Raises:
        RuntimeError: For a user without a home.
    """
    own = os.environ.get("NORMLAB_CACHE")
    of_user = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return (Path(own) if own else Path(of_user) / "normlab") / name


def own_folder(name: str) -> Path | None:
    """Return such a folder, and make it if it is missing; `None` if other users can write to it.

    Raises:
        RuntimeError: For a user without a home.
        OSError: If it cannot be made.
    """
    path = folder(name)
    _make(path)
    above, within = path.parent.stat(), path.stat()
    # In a folder like /tmp everybody can write, but nobody can replace the files of others.
    return path if _is_own(within) and (_is_own(above) or above.st_mode & stat.S_ISVTX) else None


def _make(path: Path) -> None:
    """Make a folder and its missing parents, private to the user whatever the umask is."""
    if not path.exists():
        _make(path.parent)
        with suppress(FileExistsError):  # another process makes it, too
            path.mkdir(0o700)
            path.chmod(0o700)


def _is_own(status: os.stat_result) -> bool:
    """Check that only this user or root can have written a file or folder."""
    if sys.platform == "win32":
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def kept(kind: str, key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return cached arrays, and make them if they are missing or damaged.

    Files are memory-mapped: processes that use the same arrays share their memory. Several processes may make the same
    arrays at a time. If nothing can be written, or other users could write, arrays are made every time.

    Args:
        kind: The folder, e.g. `streams`. The least recently used files are deleted when it outgrows `ARRAY_BYTES`.
        key: Identity of the arrays: a sha256 in hexadecimal.
        make: Makes the arrays by name.
    """
    own = None
    with suppress(OSError, RuntimeError):
        own = own_folder(kind)
    if own is None:
        return make()
    path = own / f"{key}.npy"
    found = read(path)
    if found is None:
        made = make()
        with suppress(OSError):
            write(path, made)
            prune(own, ARRAY_BYTES, ARRAYS)
        found = read(path) or made
    with suppress(OSError):
        os.utime(path)
    return found


def prune(folder: Path, limit: int, names: str) -> None:
    """Delete the least recently used files beyond a limit, and empty ones whose writer was killed.

    Args:
        folder: The folder; files that JAX wrote become private to the user.
        limit: Bytes that stay.
        names: A pattern; files of other names are not touched.
    """
    total = 0
    with suppress(FileNotFoundError):  # another process deletes, too
        ours = [path for path in folder.iterdir() if re.fullmatch(names, path.name)]
        entries = [(status, path) for path in ours if stat.S_ISREG((status := path.lstat()).st_mode)]
        for status, entry in sorted(entries, key=lambda pair: pair[0].st_atime, reverse=True):
            total += status.st_size
            abandoned = not status.st_size and status.st_mtime < time() - _WRITTEN_WITHIN
            if total > limit or abandoned:
                entry.unlink(missing_ok=True)
            elif status.st_mode & 0o077:  # JAX follows the umask
                entry.chmod(0o600)


_BINARY = getattr(os, "O_BINARY", 0)
"""Flag that Windows needs."""


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the hash of arrays, their names and the arrays to a file, atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600), "wb") as file:
            temporary.chmod(0o600)  # if the umask is stricter
            for array in (np.array(data_hash(arrays)), np.array(list(arrays)), *arrays.values()):
                np.save(file, array)
                file.write(bytes(-file.tell() % _ALIGNED))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Map the arrays of a file; `None` if it is damaged, or another user could have written it."""
    try:
        with path.open("rb") as file:
            if not _is_own(os.fstat(file.fileno())):
                return None
            recorded, names = _mapped(file), _mapped(file)
            arrays = {str(name): _mapped(file) for name in names}
        return arrays if recorded == data_hash(arrays) else None
    except Exception:  # a damaged header can raise anything
        return None


def _mapped(file: BufferedReader) -> np.ndarray:
    """Map the next array of a file, read-only."""
    npy.read_magic(file)
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    if dtype.hasobject:  # its bytes would be read as addresses
        raise ValueError("no numbers and no text")
    start = file.tell()
    array = np.asarray(np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C"))
    file.seek(start + array.nbytes + -(start + array.nbytes) % _ALIGNED)
    return array
