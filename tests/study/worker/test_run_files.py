"""Files of runs are read once as long as they are the same, and runs share what is equal."""

import json
import math
import os
import shutil
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from normlab.study.design.records import Record, content_key, run_key
from normlab.study.worker import run_files, run_index
from normlab.study.worker.run_files import RunFiles
from normlab.study.worker.store import Store
from tests.support.toys import a_record


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each file is read."""
    found, read = Counter[str](), run_files._content

    def counted(path: str) -> tuple[Any, bytes]:
        found[os.path.basename(path)] += 1
        return read(path)

    monkeypatch.setattr(run_files, "_content", counted)
    return found


def filled(folder: Path, seeds: int) -> Store:
    store, record = Store(folder), a_record()
    for seed in range(seeds):
        run = replace(record.run, seed=seed)
        store.add(replace(record, run=run, key=run_key(run, record.identity)))
    return store


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: Counter[str]) -> None:
    store = filled(tmp_path, 20)
    first = store.records()
    assert store.damaged() == []
    assert store.records() == first
    assert len(first) == len(reads) == reads.total() == 20


def test_new_replaced_and_edited_files_are_read_again(tmp_path: Path, reads: Counter[str]) -> None:
    store = filled(tmp_path, 3)
    before = store.records()
    store.add(a_record(status="ok", metrics={"validation": 0.25}))
    assert len(store.records()) == 4
    store.add(a_record(status="ok", metrics={"validation": 0.75}))
    assert 0.75 in [record.metrics["validation"] for record in store.records()]
    edited = tmp_path / "runs" / before[0].key[:2] / f"{before[0].key}.json"
    edited.write_text(edited.read_text().replace('"diverged"', '"ok"'))
    assert store.damaged() == [edited]
    edited.unlink()
    assert store.damaged() == []
    assert len(store.records()) == 3
    assert reads.total() == 3 + 2 + 1


def test_runs_share_configuration_and_identity(tmp_path: Path) -> None:
    records = filled(tmp_path, 5).records()
    assert len({id(record.run.configuration) for record in records}) == 1
    assert len({id(record.identity) for record in records}) == 1


def test_equal_is_not_enough_to_share(tmp_path: Path) -> None:
    """A run of `true` is not the run of 1 with another key."""
    store = filled(tmp_path, 1)
    (path,) = tmp_path.glob("runs/??/*.json")
    fields = json.loads(path.read_text())
    fields["run"]["cell"]["config"]["batch_size"] = True
    del fields["sha256"]
    other = path.with_name(path.name.replace(path.stem, "0" * 64))
    other.write_text(json.dumps({**fields, "sha256": content_key(fields)}))
    assert len(store.records()) == 1
    assert store.damaged() == [other]


def test_the_key_from_shared_texts_is_the_hash_of_run_and_identity() -> None:
    record = a_record()
    assert record.key == content_key(record.run, record.identity)


@pytest.mark.parametrize("slow", [0.0, math.inf], ids=["slow", "quick"])
def test_files_are_in_the_order_of_their_names_whatever_threads_do(
    slow: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "SLOW", slow)
    filled(tmp_path, 60)
    keys = [record.key for record in RunFiles(tmp_path / "runs").read()[0]]
    assert keys == sorted(keys)
    assert len(keys) == 60


def test_a_shared_file_is_read_in_one_folder_alone(tmp_path: Path, reads: Counter[str]) -> None:
    other, one = filled(tmp_path / "other", 5), Store(tmp_path / "one")
    records = other.records()
    for record in records:
        one.share(other, record.key)
    assert one.records() == records
    assert reads.total() == 5
    (tmp_path / "one" / "runs" / records[0].key[:2] / f"{records[0].key}.json").write_text("{}")
    assert one.records() == records[1:]


class TestIndex:
    """The index of many runs is used for files that are the same, and for no others."""

    @pytest.fixture(autouse=True)
    def few_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_files, "MANY", 5)
        monkeypatch.setattr(run_index, "SETTLED", 0)

    def indexed(self, folder: Path, seeds: int = 6) -> list[Record]:
        filled(folder, seeds)
        store = Store(folder)
        records = store.records()
        store.index()
        return records

    def test_runs_in_the_index_are_not_read(self, tmp_path: Path, reads: Counter[str]) -> None:
        records = self.indexed(tmp_path)
        reads.clear()
        again = Store(tmp_path)
        assert again.records() == records
        assert len({id(record.identity) for record in again.records()}) == 1
        again.index()
        assert not reads

    def test_few_runs_have_none(self, tmp_path: Path) -> None:
        self.indexed(tmp_path, 4)
        assert not (tmp_path / "runs" / "index").exists()

    def test_every_part_of_a_record_is_in_it(self, tmp_path: Path) -> None:
        store = filled(tmp_path, 5)
        one = a_record(
            status="ok", reason="é", metrics={"validation": None}, series={"s": [[1, None]]}, cost={"run": 2}
        )
        store.add(one)
        records = store.records()
        store.index()
        assert one in Store(tmp_path).records()
        assert repr(Store(tmp_path).records()) == repr(records)  # also where numbers are equal and types differ

    def test_changed_new_and_missing_files_are_as_they_are(self, tmp_path: Path, reads: Counter[str]) -> None:
        edited, deleted, *rest = self.indexed(tmp_path)
        (tmp_path / "runs" / edited.key[:2] / f"{edited.key}.json").write_text("{}")
        Store(tmp_path).remove(deleted.key)
        Store(tmp_path).add(new := a_record(metrics={"validation": 0.75}))
        reads.clear()
        records, damaged = Store(tmp_path).read()
        assert {one.key for one in records} == {new.key, *(one.key for one in rest)} - {edited.key, deleted.key}
        assert [path.stem for path in damaged] == [edited.key]
        assert set(reads) == {f"{one.key}.json" for one in (edited, new)}

    def test_a_copied_folder_has_files_of_its_own(self, tmp_path: Path, reads: Counter[str]) -> None:
        records = self.indexed(tmp_path / "one")
        shutil.copytree(tmp_path / "one", tmp_path / "other")
        reads.clear()
        assert Store(tmp_path / "other").records() == records
        assert reads.total() == len(records)

    @pytest.mark.parametrize(
        ("old", "new"),
        [(b'"version":1', b'"version":2'), (b'"tune"', b'"other"'), (b",[", b",{"), (b"\n", b""), (b"0.", b"NaN")],
    )
    @pytest.mark.parametrize("signed", [False, True])
    def test_a_damaged_one_is_none(
        self, old: bytes, new: bytes, signed: bool, tmp_path: Path, reads: Counter[str]
    ) -> None:
        records = self.indexed(tmp_path)
        index = tmp_path / "runs" / "index"
        content, _, digest = index.read_bytes().rpartition(b"\n")
        assert old in content
        content = content.replace(old, new)
        index.write_bytes(content + b"\n" + (sha256(content).hexdigest().encode() if signed else digest))
        reads.clear()
        assert Store(tmp_path).records() == records
        assert reads.total() == len(records)

    def test_files_that_changed_a_moment_ago_are_left_out(
        self, tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_index, "SETTLED", 3600 * 10**9)
        records = self.indexed(tmp_path)
        reads.clear()
        assert Store(tmp_path).records() == records
        assert reads.total() == len(records)
