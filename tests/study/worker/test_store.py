"""The folder of a comparison: what is written comes back, and what is there is not done again."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration, Run
from normlab.study.driver import preflight
from normlab.study.driver.driver import OK, ExecutionOptions, Invocation, new_console
from normlab.study.driver.preflight import TraceDepth
from normlab.study.worker import run_files
from normlab.study.worker.store import Header, Store
from normlab.study.worker.strategy import Strategy
from tests.support.toys import TOY, a_record, settings_for


def header(comparison: str = "toy") -> Header:
    settings = settings_for("toy.py", comparison=comparison, values={"deployed": (2, 4), "isolated": ("a", "b")})
    fields: dict[str, Any] = {"identity": {"code": "x"}, "command": "normlab run toy.py", "wall_seconds": 1.5}
    return Header(settings=settings, shard="1/2", **fields)


class TestStore:
    def test_records_and_header_come_back_as_they_were(self, tmp_path: Path) -> None:
        store, record = Store(tmp_path / "new" / "folder"), a_record()
        store.write_header(header())
        store.add(record)
        assert store.records() == [record]
        assert store.records()[0].run.configuration in {record.run.configuration}
        assert store.header() == header()

    def test_the_same_run_again_replaces_its_record(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.add(a_record(status="error"))
        store.add(a_record(status="ok"))
        assert [record.status for record in store.records()] == ["ok"]

    @pytest.mark.parametrize(("old", "new"), [("0.1", "0.9"), ('"validation"', '"test"'), ("0.1", '"x"')])
    def test_an_edited_record_is_damaged(self, tmp_path: Path, old: str, new: str) -> None:
        store = Store(tmp_path)
        store.add(a_record(metrics={"validation": 0.1}))
        path = next(tmp_path.glob("runs/??/*.json"))
        path.write_text(path.read_text().replace(old, new))
        assert store.records() == []
        assert store.damaged() == [path]

    def test_a_folder_whose_header_is_deleted_can_be_gone_on_with(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.write_header(header())
        store.add(a_record())
        (tmp_path / "comparison.json").write_text("{")
        with pytest.raises(BadInput, match="delete the file"):
            store.check("toy")
        (tmp_path / "comparison.json").unlink()
        store.check("toy")
        assert len(store.records()) == 1

    def test_half_written_files_are_not_read(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.add(a_record())
        key = a_record().key
        (tmp_path / "runs" / key[:2] / f"{key}.json.17.tmp").write_text('{"key": "ab')
        assert len(store.records()) == 1
        assert store.damaged() == []

    def test_foreign_folders_are_refused(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "a")
        store.check("toy")
        store.write_header(header("other"))
        with pytest.raises(BadInput, match="contains the comparison `other`"):
            store.check("toy")
        store.check("other")
        (tmp_path / "b").mkdir()
        Store(tmp_path / "b").check("toy")
        with Store(tmp_path / "b").writing():  # and a kill before the header
            Store(tmp_path / "b").check("toy")
        (tmp_path / "b" / "thesis.tex").write_text("years of work")
        with pytest.raises(BadInput, match="contains other files"):
            Store(tmp_path / "b").check("toy")
        with pytest.raises(BadInput, match="Expected a folder"):
            Store(tmp_path / "b" / "thesis.tex").check("toy")

    @pytest.mark.parametrize("links", [True, False])
    def test_a_shared_run_is_that_of_the_other_folder(
        self, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError("another disk")

        one, other, record = Store(tmp_path / "one"), Store(tmp_path / "other"), a_record()
        other.add(record)
        if not links:
            monkeypatch.setattr("os.link", refuse)
        for _ in range(2):  # the second time both names are those of one file
            one.share(other, record.key)
            assert one.records() == [record]
        other.add(a_record(status="ok"))
        assert one.records() == [record]  # a file is replaced, never changed
        assert not list(tmp_path.glob("**/*.tmp"))


class TestResume:
    def invoke(self, toy: Path, output: Path, **changes: Any) -> dict[Run, Any]:
        """The costs of all runs in a folder, which tell one execution from another."""
        comparison, settings = discovery.load(str(toy)), settings_for(toy, **changes)
        Invocation(comparison, settings, output, "").complete(ExecutionOptions(strategy=Strategy(lanes=2)))
        return {record.run: record.cost for record in Store(output).records()}

    def test_more_seeds_keep_what_is_there(self, toy: Path, tmp_path: Path) -> None:
        before = self.invoke(toy, tmp_path / "out", seeds=2)
        after = self.invoke(toy, tmp_path / "out", seeds=4)
        assert len(after) == len(before) + 4
        assert all(after[run] == cost for run, cost in before.items())

    def test_changed_code_and_config_make_new_runs(self, toy: Path, tmp_path: Path) -> None:
        self.invoke(toy, tmp_path / "out")
        store = Store(tmp_path / "out")
        count = len(store.records())
        toy.write_text(TOY + "# changed\n")
        self.invoke(toy, tmp_path / "out")
        assert len(store.records()) == 2 * count
        self.invoke(toy, tmp_path / "out", epochs=4)
        assert len(store.records()) == 3 * count

    def test_a_file_as_it_is_now_has_no_report_of_runs_as_it_was(self, toy: Path, tmp_path: Path) -> None:
        self.invoke(toy, tmp_path / "out")
        held = Store(tmp_path / "out").header()
        assert held
        changed = dataclasses.replace(held.settings, epochs=4)
        with pytest.raises(BadInput, match=r"Expected runs of the last invocation in .* got 18 of earlier ones"):
            Invocation(discovery.load(str(toy)), changed, tmp_path / "out", "").report(held)

    def test_beyond_one_program_for_each_norm_only_those_with_runs_to_make_are_traced(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found, traced = dict[tuple[object, str], TraceDepth](), preflight.traced

        def noted(plan: Plan, configuration: Configuration, trace: TraceDepth = TraceDepth.WHOLE) -> Program:
            place = dict(configuration.config)["batch_size"], configuration.norm
            found[place] = max(trace, found.get(place, trace), key=lambda one: one.value)
            return traced(plan, configuration, trace)

        def beyond() -> set[tuple[object, str]]:
            assert {place for place, depth in found.items() if place[0] == 2 and depth is not TraceDepth.NOTHING} == {
                (2, "none"),
                (2, "batch"),
            }
            return {place for place, depth in found.items() if place[0] != 2 and depth is TraceDepth.FORWARD}

        monkeypatch.setattr(preflight, "traced", noted)
        few = {"learning_rates": (0.1,), "seeds": 1, "tuning_seeds": 1}
        columns = {"values": {"deployed": (2, 4, 6)}, **few}
        every = {(value, norm) for value in (4, 6) for norm in ("none", "batch")}
        self.invoke(toy, tmp_path / "out", **columns)
        assert beyond() == every
        found.clear()
        self.invoke(toy, tmp_path / "out", **columns)
        assert beyond() == set()
        store = Store(tmp_path / "out")
        one = next(r for r in store.records() if dict(r.run.configuration.config)["batch_size"] == 6)
        store.remove(one.key)
        found.clear()
        assert one.run in self.invoke(toy, tmp_path / "out", **columns)
        assert beyond() == {(6, one.run.configuration.norm)}
        toy.write_text(TOY + "# changed\n")
        found.clear()
        self.invoke(toy, tmp_path / "out", **columns)
        assert beyond() == every

    def test_a_fault_in_what_is_new_is_found_before_anything_is_written(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.invoke(toy, tmp_path / "out", seeds=1)
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        build = preflight.build

        def faulty(plan: Plan, configuration: Configuration) -> Program:
            program = build(plan, configuration)
            wrong = {"step": lambda *_: 1 / 0} if dict(configuration.config)["batch_size"] == 4 else {}
            return dataclasses.replace(program, **wrong)

        monkeypatch.setattr(preflight, "build", faulty)
        with pytest.raises(BadInput, match="batch_size 4: "):
            self.invoke(toy, tmp_path / "out", seeds=1, values={"deployed": (2, 4)})
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before

    def test_an_invocation_with_nothing_left_reads_each_file_once(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.invoke(toy, tmp_path / "out")
        reads, read = Counter[str](), run_files._content

        def counted(path: str) -> tuple[Any, bytes]:
            reads[Path(path).name] += 1
            return read(path)

        monkeypatch.setattr(run_files, "_content", counted)
        comparison, settings = discovery.load(str(toy)), settings_for(toy)
        invocation = Invocation(comparison, settings, tmp_path / "out", "", console=new_console(quiet=True))
        assert invocation.run(ExecutionOptions(strategy=Strategy(lanes=2))) == OK
        files = [path.name for path in tmp_path.glob("out/runs/??/*.json")]
        assert len(files) == 18
        assert {name: reads[name] for name in files} == dict.fromkeys(files, 1)
