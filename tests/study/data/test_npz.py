"""Arrays in archives that lie: what a header declares is checked before anything is allocated."""

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normlab.errors import BadInput
from normlab.study.data import npz
from normlab.study.data.dataset import load
from normlab.study.streams.recorded import from_file

NAMES = ("inputs", "labels")
DAY = (1980, 1, 1, 0, 0, 0)


def header(dtype: Any, shape: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    """As NumPy writes it, whatever the shape."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def archive(path: Path, members: Mapping[str, bytes], sizes: Mapping[str, int] | None = None) -> Path:
    """Write an archive whose index declares other sizes than its members have."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name, DAY), content, zipfile.ZIP_DEFLATED)
        for info in file.infolist():
            info.file_size = (sizes or {}).get(info.filename, info.file_size)
    return path


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


LABELS = npy(np.arange(3))
TERA = header("<f8", (10**12, 3))
LIES: dict[str, tuple[bytes, int | None, str]] = {
    "24 TB in a header alone": (TERA, None, "declares 24 TB, but there are 0 bytes; save it again"),
    "24 TB in header and index": (
        TERA,
        len(TERA) + 24 * 10**12,
        r"take (24|36) TB of memory, .* are free; use fewer examples",
    ),
    "more than there is": (header("<f8", (4, 1)) + bytes(24), None, "declares 32 bytes, but there are 24 bytes"),
    "less than there is": (header("<f8", (2, 1)) + bytes(24), None, "declares 16 bytes, but there are 24 bytes"),
    "an index that lies": (header("<f8", (9, 1)) + bytes(24), len(header("<f8", (9, 1))) + 72, ""),
    "a negative length": (header("<f8", (-3, 1)) + bytes(24), None, "`inputs` has a shape with a negative length"),
    "lengths that cancel": (header("<f8", (-3, -1)) + bytes(24), None, "`inputs` has a shape with a negative length"),
    "lengths of many digits": (header("<f8", (10**4000,)), None, "declares over 1,000,000 TB, but"),
    "objects": (header("|O", (3, 1)) + bytes(24), None, "`inputs` holds Python objects, which is how examples"),
    "objects in a pickle": (npy(np.array([None, {}], object)), None, "`inputs` holds Python objects"),
    "a header without end": (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 10**6, None, ""),
    "another version": (header("<f8", (3, 1), (3, 0)) + bytes(24), None, "version 3.0 of the format, not 1.0 or 2.0"),
    "no array": (b"text", None, ""),
    "nothing": (b"", None, ""),
    "a header that is no literal": (header("<f8", (3, 1)).replace(b"(3, 1)", b"exit()"), None, ""),
    "a type that is none": (header("spam", (3, 1)), None, ""),
}


@pytest.mark.parametrize("how", LIES)
def test_a_header_that_lies_is_one_line(how: str, tmp_path: Path) -> None:
    content, size, message = LIES[how]
    sizes = {} if size is None else {"inputs.npy": size}
    path = archive(tmp_path / "mine.npz", {"inputs.npy": content, "labels.npy": LABELS}, sizes)
    tracemalloc.start()
    try:
        for read in (lambda: load(path), lambda: from_file(path)(0)):
            with pytest.raises(ValueError, match=rf"Expected an \.npz file with .*mine\.npz`: .*{message}") as caught:
                read()
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_what_unpacks_to_more_than_is_free_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, inputs=np.zeros((2**14, 2**10), np.float16), labels=np.zeros(2**14, np.int32))
    assert path.stat().st_size < 2**16
    needed = 2**24 * (2 + 4) + 2**14 * 4  # as they are and as float32
    monkeypatch.setattr(npz, "free_memory", lambda: needed - 1)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"`inputs` and `labels` take 100\.7 MB of memory, 100\.7 MB are free"):
            load(path)
        with pytest.raises(BadInput, match="MB of memory, 100"):
            from_file(path)(0)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(npz, "free_memory", lambda: needed)
    assert load(path).inputs.shape == (2**14, 2**10)
    monkeypatch.setattr(npz, "free_memory", lambda: None)  # where nobody knows
    assert len(load(path).labels) == 2**14


def test_memory_that_runs_out_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mine.npz", inputs=np.ones((3, 1)), labels=np.arange(3))

    def none_left(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(npz.npy, "read_array", none_left)
    with pytest.raises(ValueError, match="there is not enough memory for it; use fewer examples"):
        load(tmp_path / "mine.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_what_numpy_writes_is_read(order: str, version: tuple[int, int], tmp_path: Path) -> None:
    arrays = {
        "inputs": np.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), order=order),  # pyright: ignore[reportArgumentType, reportCallIssue]
        "labels": np.array(["a", "bcd", ""]),
    }
    for compressed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "mine.npz", "w", compressed) as file:
            for name, array in arrays.items():
                with file.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, version)
        for found, expected in zip(npz.read(str(tmp_path / "mine.npz"), NAMES), arrays.values(), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"inputs": npy(np.ones((3, 1))), "labels": LABELS}, "there is inputs, labels in it"),
        ({"inputs.npy": npy(np.ones((3, 1)))}, "there is inputs in it"),
    ],
)
def test_members_that_are_no_arrays(members: Mapping[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        npz.read(str(archive(tmp_path / "mine.npz", members)), NAMES)


@pytest.mark.parametrize("at", ["stored", "flags", "method"])
def test_damage(at: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", inputs=np.ones((3, 1)), labels=np.arange(3))
    content = bytearray((tmp_path / "mine.npz").read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    if at == "stored":
        content[content.index(b"\x93NUMPY") + 130] ^= 1  # a number
    elif at == "flags":
        content[local + 6] |= 1  # a password
        content[central + 8] |= 1
    else:
        content[local + 8] = content[central + 10] = 99  # an unknown compression
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected an \.npz file with .*mine\.npz`: .{10,}\.$"):
        load(tmp_path / "mine.npz")


def test_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = npz.free_memory()
    assert whole is None or whole > 2**20
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 1500\nactive_file 300\ninactive_file 100\n")
    monkeypatch.setattr(npz, "_CGROUP", tmp_path)
    assert npz.free_memory() == 3400
    (tmp_path / "memory.current").write_text("6000\n")
    assert npz.free_memory() == 0
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = npz.free_memory()
    assert unlimited is None or unlimited > 2**20
