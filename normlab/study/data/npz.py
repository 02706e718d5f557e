"""Arrays of `.npz` files, whose headers are checked before anything is allocated: they can declare any size."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from normlab.errors import one_line

_HEADER = 2**16
"""Largest size of a header in bytes; that of plain numbers has 128."""

_CGROUP = Path("/sys/fs/cgroup")
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # a password
    zipfile.BadZipFile,
    zlib.error,
)


class _Declared(NamedTuple):
    """An array, as its header declares it."""

    name: str
    dtype: np.dtype
    numbers: int
    begin: int

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return self.numbers * self.dtype.itemsize


def read(path: str, *choices: Sequence[str], copied: Callable[[np.dtype], int] = lambda dtype: 0) -> list[np.ndarray]:
    """Read the arrays of the first choice of names that are all in the file.

    Args:
        path: Path of the file.
        *choices: Names of arrays.
        copied: Bytes of a number of a dtype in the copy that is made of it later.

    Raises:
        ValueError: If no choice is complete, the file is damaged or contains Python objects, or memory is too small.
            The message gives the reason, to follow the name of the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name.removesuffix(".npy"): name for name in sorted(archive.namelist())}
            whole = {name for name, member in there.items() if member != name}
            names = next((choice for choice in choices if whole.issuperset(choice)), None)
            if names is None:
                raise ValueError(f"there is {', '.join(there) or 'nothing'} in it")
            declared = [_declared(archive, name) for name in names]
            _check_memory(declared, copied)
            return [_array(archive, name) for name in names]
    except MemoryError:
        raise ValueError("there is not enough memory for it; use fewer examples or a smaller type") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"this is no .npz archive, or a damaged one ({error})") from error
    except _UNREADABLE as error:
        raise ValueError(one_line(error).removesuffix(".")) from error


def _declared(archive: zipfile.ZipFile, name: str) -> _Declared:
    """Read the header of an array.

    Raises:
        ValueError: If it does not declare an array of numbers or text, or another size than the data have.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        head = io.BytesIO(file.read(_HEADER))
    version = npy.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"`{name}` has version {version[0]}.{version[1]} of the format, not 1.0 or 2.0")
    parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = parse(head)
    if dtype.hasobject:
        raise ValueError(f"`{name}` holds Python objects, which is how examples of different shapes are saved")
    if any(length < 0 for length in shape):
        raise ValueError(f"`{name}` has a shape with a negative length")
    declared = _Declared(name, dtype, math.prod(shape), head.tell())
    if declared.begin + declared.size != member.file_size:
        raise ValueError(
            f"the header of `{name}` declares {_words(declared.size)}, but there are "
            f"{_words(member.file_size - declared.begin)}; save it again"
        )
    return declared


def _check_memory(declared: Sequence[_Declared], copied: Callable[[np.dtype], int]) -> None:
    """Refuse arrays that would not fit into memory with their copies."""
    free = free_memory()
    needed = sum(array.size + array.numbers * copied(array.dtype) for array in declared)
    if free is not None and needed > free:
        names = " and ".join(f"`{array.name}`" for array in declared)
        raise ValueError(
            f"{names} take {_words(needed)} of memory, {_words(free)} are free; use fewer examples or a smaller type"
        )


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return npy.read_array(file, allow_pickle=False)


def free_memory() -> int | None:
    """Return the bytes that this process may still allocate on the machine and in its container; `None` if unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError, KeyError):  # the limit may be the text `max`
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        parts = dict(line.split(maxsplit=1) for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cached = sum(int(parts[f"{state}_file"]) for state in ("active", "inactive"))  # freed under pressure
        found.append(limit - used + cached)
    if not found:
        with suppress(AttributeError, OSError, ValueError):  # if free memory is unknown: all memory
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(found), 0) if found else None


def _words(size: int) -> str:
    """Format a number of bytes.

    >>> _words(24_000_000_000_000), _words(128)
    ('24 TB', '128 bytes')
    """
    if size >= 10**18:
        return "over 1,000,000 TB"
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB")):
        if size >= 10**power:
            return f"{size / 10**power:,.4g} {unit}"
    return f"{size:,} bytes"
