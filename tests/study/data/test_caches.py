"""Caches are for their user alone: whatever the umask says, and nothing is read that another could have written."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from normlab.cli.main import main
from normlab.study.data import cache
from normlab.study.training.checkpoints import Checkpoint, Progress
from normlab.study.training.compilation_cache import use_cache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")

KEY = "0" * 64
ONE, TWO = ({"x": np.array([number])} for number in (1.0, 2.0))


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of caches, and the umask as it was afterwards."""
    before = os.umask(0o022)
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "above" / "caches"))
    yield tmp_path / "above" / "caches"
    os.umask(before)


@pytest.fixture
def cache_of_jax() -> Iterator[None]:
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def modes(folder: Path) -> set[tuple[str, int]]:
    found = [folder, *folder.rglob("*")]
    return {("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode)) for path in found}


def number() -> float:
    """The cached array, made as `TWO` where it is not read."""
    return float(cache.kept("data", KEY, lambda: dict(TWO))["x"][0])


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_modes_do_not_depend_on_the_umask(umask: int, own: Path) -> None:
    os.umask(umask)
    cache.kept("data", KEY, lambda: dict(ONE))
    Checkpoint("a run").save(Progress(state={"w": np.ones(2)}, losses=np.zeros(3), windows=1, seconds=0.5))
    assert len(list(own.rglob("*.npy"))) == 2
    assert modes(own.parent) == {("folder", 0o700), ("file", 0o600)}


def test_nor_do_those_of_compiled_programs(own: Path, toy: Path, tmp_path: Path) -> None:
    os.umask(0o000)
    few = ["--norms", "none", "--curves", "deployed", "--batch-sizes", "2", "--jobs", "1", "--seeds", "1"]
    assert main(["run", str(toy), *few, "--no-extend", "--output", str(tmp_path / "out")]) == 0
    assert list(own.rglob("*-cache"))
    assert modes(own.parent) == {("folder", 0o700), ("file", 0o600)}
    assert stat.S_IMODE((tmp_path / "out/report.html").stat().st_mode) == 0o666  # what users asked for is as they say


@pytest.mark.usefixtures("cache_of_jax")
def test_programs_that_were_written_otherwise_become_private(own: Path) -> None:
    folder = use_cache()
    assert folder
    program = folder / f"jit_f-{KEY}-cache"
    program.write_bytes(b"x")
    program.chmod(0o644)
    assert use_cache() == folder
    assert modes(own) == {("folder", 0o700), ("file", 0o600)}


class TestOthers:
    """What another user could have written."""

    @pytest.fixture(autouse=True)
    def file(self, own: Path) -> Path:
        cache.kept("data", KEY, lambda: dict(ONE))
        assert number() == 1.0
        return own / "data" / f"{KEY}.npy"

    @pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
    def test_files_are_made_again(self, mode: int, file: Path) -> None:
        file.chmod(mode)
        assert number() == 2.0
        assert number() == 2.0
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    @pytest.mark.usefixtures("cache_of_jax")
    @pytest.mark.parametrize("level", [0, 1])
    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
    def test_folders_are_not_used(self, mode: int, level: int, file: Path) -> None:
        file.parents[level].chmod(mode)
        assert number() == 2.0
        file.parents[level].chmod(0o700)
        assert number() == 1.0

    def test_a_folder_like_tmp_may_hold_one(self, file: Path) -> None:
        file.parents[1].chmod(0o1777)
        assert number() == 1.0
        file.parents[0].chmod(0o1777)
        assert number() == 2.0

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
    @pytest.mark.parametrize("level", ["file", "folder", "above"])
    def test_what_is_another_users_is_not_read(self, level: str, file: Path) -> None:
        path = {"file": file, "folder": file.parent, "above": file.parents[1]}[level]
        os.chown(path, 65534, -1)
        assert number() == 2.0

    @pytest.mark.usefixtures("cache_of_jax")
    @pytest.mark.parametrize("level", [0, 1])
    def test_neither_are_programs_and_checkpoints(self, level: int, own: Path) -> None:
        progress = Progress(state={"w": np.ones(2)}, losses=np.zeros(3), windows=1, seconds=0.5)
        Checkpoint("a run").save(progress)
        folder = use_cache()
        assert folder
        (own if level else folder).chmod(0o777)
        assert use_cache() is None
        (own if level else own / "checkpoints").chmod(0o777)
        start = Progress(state={"w": np.zeros(2)}, losses=np.zeros(0), windows=0, seconds=0.0)
        assert Checkpoint("a run").load(start) is start
        (own if level else own / "checkpoints").chmod(0o700)
        assert Checkpoint("a run").load(start).windows == 1
