"""Keys have all that decides a number: our modules, the user's files however they are imported, and versions."""

import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import normlab
from normlab.errors import BadInput
from normlab.norms import get
from normlab.study import api
from normlab.study.design import discovery, imports
from normlab.study.design.provenance import EXCUSED, code_hash, deciding, is_excused, modules, versions
from normlab.study.design.records import EVALUATE, Configuration, Record, Run, of_problem, run_key
from normlab.study.design.request import Request, from_python
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.executors.local import Local
from normlab.study.worker import identity
from normlab.study.worker.identity import describe, differences, outdated
from normlab.study.worker.store import Store
from normlab.study.worker.strategy import Strategy
from tests.support.toys import TOY

PACKAGE = Path(normlab.__file__).parent
ALONE = ExecutionOptions(strategy=Strategy(alone=True))
FEW: dict[str, Any] = {"norms": ("none",), "curves": ("deployed",), "batch_sizes": (2,), "extend": False}

CONFIGURATION = Configuration(problem="scalar", norm="none", config=(("batch_size", 2), ("norm", "none")))
RUN = Run(configuration=CONFIGURATION, stage=EVALUATE, learning_rate=0.1, seed=0)


def invocation_of(source: Path, output: Path | None = None, **options: Any) -> Invocation:
    comparison = discovery.load(str(source))
    settings = Request(comparison, from_python({**FEW, **options}, comparison)).settings(str(source))
    return Invocation(comparison, settings, output, "normlab run")


class TestModules:
    """All of this package is in the key, but for what is excused."""

    def test_every_module_is_in_the_key_or_excused_with_a_reason(self) -> None:
        files = {
            file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] not in imports.COMPARISONS
        }
        excused = {file for name, file in modules(PACKAGE).items() if is_excused(name)}
        assert set(deciding(PACKAGE).values()) == files - excused
        for name in EXCUSED:  # no excuse is left over from a module that is gone
            assert name in modules(PACKAGE)
        assert all(len(reason) > 10 for reason in EXCUSED.values())

    def test_what_trains_on_streams_and_plans_counts(self) -> None:
        folders = ("training", "streams", "data", "data.tfds", "problems", "design")
        names = {f"normlab.study.{name}" for name in folders} | {"normlab.norms", "normlab", "normlab.study"}
        names |= {f"normlab.{name}" for name in ("functional", "linen", "nnx", "models", "introspect")}
        names |= {
            f"normlab.study.training.{name}" for name in ("prequential", "supervised", "streaming", "checkpoints")
        }
        names |= {f"normlab.study.{name}" for name in ("design.plan", "design.budgets", "worker.runner", "data.cache")}
        assert names <= deciding(PACKAGE).keys()

    def test_an_edit_anywhere_makes_another_key_unless_it_is_excused(self, tmp_path: Path) -> None:
        copy = tmp_path / "normlab"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        before = code_hash(deciding(copy))
        for name, file in modules(copy).items():
            content = file.read_text()
            file.write_text(f"{content}#\n")
            assert (code_hash(deciding(copy)) == before) == is_excused(name), name
            file.write_text(content)
        assert code_hash(deciding(copy)) == before
        (copy / "study/parts/deep").mkdir(parents=True)
        (copy / "study/parts/deep/new.py").write_text("")
        assert "normlab.study.parts.deep.new" in deciding(copy)
        assert code_hash(deciding(copy)) != before

    def test_comparisons_that_a_wheel_brings_along_do_not_count(self, tmp_path: Path) -> None:
        for path in ("a.py", "_benchmarks/b.py"):
            (tmp_path / "normlab" / path).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / "normlab" / path).write_text("")
        assert list(modules(tmp_path / "normlab")) == ["normlab.a"]

    def test_what_decides_imports_what_is_excused_for_known_reasons_only(self) -> None:
        """An excuse holds as long as nothing that trains is made of the module."""
        found = set()
        for name, file in deciding(PACKAGE).items():
            package = name if file.stem == "__init__" else name.rpartition(".")[0]
            names = set(imports.mentioned_in(file, f"{package}.x"))
            found |= {(name.removeprefix("normlab.study."), used) for used in names & EXCUSED.keys()}
        allowed = {
            "api": {"normlab.study"},  # handed on to the user
            "normlab.river": {"normlab"},  # likewise
            "worker.identity": {"worker.runner"},  # keys
            "design.imports": {"worker.runner", "design.discovery", "design.provenance"},  # keys
        }
        messages = {(name, used) for name, used in found if used in ("normlab.errors", "normlab.suggestions")}
        assert found - messages == {
            (name, used if used == "normlab.river" else f"normlab.study.{used}")
            for used in allowed
            for name in allowed[used]
        }

    WRITES = """
import json, os, sys
from pathlib import Path

def write_modules():
    names = {name: getattr(sys.modules[name], "__file__", None) for name in list(sys.modules)}
    Path(__file__).with_suffix(".json").write_text(json.dumps([os.getpid(), names]))
"""
    STREAM = """
from dataclasses import replace
from normlab import study
from normlab.study import streams
from normlab.models.mlp import MLP
from write import write_modules

source = streams.synthetic("sea", n=200)

def make(seed):
    write_modules()
    return source.make(seed)

comparison = study.Comparison(
    name="toy",
    problems=(
        study.streaming(
            name="scalar",
            model=lambda norm, outputs: MLP(norm, hidden=(4,), classes=outputs),
            source=replace(source, make=make, content=None),
        ),
    ),
    norms=("none", "batch"),
    tiers=study.tiers(learning_rates=(0.1, 0.3)),
)
"""

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["toy", "stream"])
    def test_a_real_worker_imports_nothing_that_is_not_in_the_key_or_excused(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "write.py").write_text(self.WRITES)
        source = tmp_path / "toy.py"
        toy = TOY.replace("        time.sleep(PAUSE)", "        from write import write_modules; write_modules()")
        source.write_text(toy if kind == "toy" else self.STREAM)
        outcome = invocation_of(source, tmp_path / "out", tuning_seeds=1, seeds=2).complete(
            ExecutionOptions(executor=Local(1))
        )
        assert {record.status for record in outcome.records} <= {"ok", "collapsed"}
        process, found = json.loads((tmp_path / "write.json").read_text())
        assert process != os.getpid()
        ours = {name for name in found if name.partition(".")[0] == "normlab"}
        assert ours <= modules(PACKAGE).keys()
        files = {Path(file) for name, file in found.items() if file and Path(file).is_relative_to(PACKAGE)}
        assert files <= set(modules(PACKAGE).values())
        expected = {"worker.runner", "training.compilation", "training.loop", "design.comparison", "design.discovery"}
        if kind == "stream":
            expected |= {"training.prequential", "streams.generators", "problems.streaming", "streams.baselines"}
            expected |= {"data.cache", "data.tabular"}
        assert {f"normlab.study.{name}" for name in expected} <= ours & deciding(PACKAGE).keys()
        assert set(outcome.header.identity["code"]["comparison"]) == {"toy.py", "write.py"}


HELPERS = {
    "by name": ("helper.py", "import helper"),
    "by name in a function": ("helper.py", "def later():\n    import helper"),
    "by a literal name in a function": ("helper.py", "def later():\n    importlib.import_module('helper')"),
    "by a computed name": ("helper.py", "importlib.import_module('hel' + 'per')"),
    "by its path": (
        "helper.py",
        "spec = importlib.util.spec_from_file_location('any', HERE / 'helper.py')\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))",
    ),
    "by running it": ("helper.py", "import runpy\nrunpy.run_path(str(HERE / 'helper.py'))"),
    "by executing it": (
        "helper.py",
        "path = HERE / 'helper.py'\nexec(compile(path.read_text(), path, 'exec'), {})",
    ),
    "in a package": ("parts/deep.py", "import parts.deep"),
    "in a package, relatively": ("parts/deep.py", "importlib.import_module('par' + 'ts.first')"),
    "in a package of one part": ("space/deep.py", "from space import deep"),
    "elsewhere": ("../lib/elsewhere.py", "sys.path.append(str(HERE.parent / 'lib'))\nimport elsewhere"),
    "elsewhere, by its path": (
        "../lib/elsewhere.py",
        "spec = importlib.util.spec_from_file_location('any', HERE.parent / 'lib/elsewhere.py')\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))",
    ),
    **{
        f"within `{function}`": (
            "helper.py",
            f"    def {function}({arguments}):\n        importlib.import_module('hel' + 'per')",
        )
        for function, arguments in {
            "init": "seed",
            "step": "state, t, learning_rate, data",
            "evaluate": "state, data",
        }.items()
    },
    "within `build`": ("helper.py", "def build(norm, config):\n    importlib.import_module('hel' + 'per')"),
}


class TestFiles:
    """All of the user's files that are run to make a number are in its key."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Iterator[Path]:
        before = set(sys.modules), list(sys.path)
        for folder in ("own", "lib"):
            (tmp_path / folder).mkdir()
        yield tmp_path / "own/toy.py"
        for name in sys.modules.keys() - before[0]:
            if name.partition(".")[0] in ("helper", "parts", "space", "elsewhere", "late_one"):
                del sys.modules[name]
        sys.path[:] = before[1]

    def text(self, code: str) -> str:
        head = "import importlib.util\nimport sys\nfrom pathlib import Path\n\nHERE = Path(__file__).parent\n"
        if not code.lstrip().startswith("def ") or "later" in code:
            return f"{head}{code}\n{TOY}"
        first = code.splitlines()[0]
        assert first in TOY
        return head + TOY.replace(first, code)

    @pytest.mark.parametrize("way", HELPERS)
    def test_it_is_found_by_whatever_way_it_is_imported(self, way: str, source: Path) -> None:
        name, code = HELPERS[way]
        helper = source.parent / name
        helper.parent.mkdir(exist_ok=True)
        if name.startswith("parts/"):
            (helper.parent / "__init__.py").write_text("")
            (helper.parent / "first.py").write_text("from . import deep\n")
        helper.write_text("A = 1\n")
        source.write_text(self.text(code))

        def described() -> dict[str, Any]:
            return invocation_of(source).task(ALONE).identity

        first = described()
        names = first["code"]["comparison"].keys()
        label = next(iter(names & {name, "elsewhere", str(source.parents[1] / "lib/elsewhere.py")}))
        assert {path for path in names if not path.startswith("parts/")} == {"toy.py", label} - {"parts/deep.py"}
        assert described() == first
        helper.write_text("A = 2\n")
        changed = list(differences(first, described()))
        assert [what for what, _, _ in changed] == [f"code comparison {label}"]

    @pytest.mark.parametrize("way", ["by name", "within `build`", "within `init`"])
    def test_the_path_of_imports_is_left_as_it_was(self, way: str, source: Path) -> None:
        name, code = HELPERS[way]
        (source.parent / name).write_text("")
        source.write_text(self.text(code))
        before = list(sys.path)
        outcome = invocation_of(source, tuning_seeds=1, seeds=1).complete(ALONE)
        assert {record.status for record in outcome.records} == {"ok"}
        source.write_text("import helper\n1 / 0")
        with pytest.raises(BadInput, match="ZeroDivisionError"):
            discovery.load(str(source))
        assert sys.path == before

    def test_what_was_imported_before_by_others_counts_where_it_is_named(self, source: Path) -> None:
        (source.parents[1] / "lib/elsewhere.py").write_text("from helper import A\n")
        (source.parents[1] / "lib/helper.py").write_text("A = 1\n")
        sys.path.append(str(source.parents[1] / "lib"))
        importlib.import_module("elsewhere")
        source.write_text(self.text("import elsewhere"))
        found = invocation_of(source).task(ALONE).identity["code"]["comparison"]
        assert found.keys() == {"toy.py", "elsewhere", "helper"}

    def test_what_was_imported_before_counts_where_a_name_is_computed(self, source: Path) -> None:
        source.write_text(self.text("importlib.import_module('hel' + 'per')"))
        (source.parent / "helper.py").write_text("")
        sys.path.append(str(source.parent))
        importlib.import_module("helper")
        assert invocation_of(source).task(ALONE).identity["code"]["comparison"].keys() == {"toy.py", "helper.py"}

    def test_odd_modules_do_no_harm(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Raises(types.ModuleType):
            def __getattribute__(self, name: str) -> Any:
                raise RuntimeError(name)

        odd = {"made": types.ModuleType("made"), "none": None, "thing": object(), "raises": Raises("raises")}
        without = types.ModuleType("without")
        without.__file__ = None
        gone = types.ModuleType("gone")
        gone.__file__ = "/nowhere/gone.py"
        for name, module in {**odd, "without": without, "gone": gone}.items():
            monkeypatch.setitem(sys.modules, f"odd_{name}", module)
        lines = [f"import odd_{name}" for name in ("made", "thing", "raises", "without", "gone")]
        source.write_text(self.text("\n".join([*lines, "exec('A = 1')", "exec(compile('A = 1', 'no.py', 'exec'))"])))
        assert invocation_of(source).task(ALONE).identity["code"]["comparison"].keys() == {"toy.py"}

    LATE = "        if seed == 1:\n            importlib.import_module('late_' + 'one')\n        time.sleep(PAUSE)"

    @pytest.mark.parametrize("ways", [ExecutionOptions(executor=Local(1)), ALONE], ids=["worker", "alone"])
    def test_a_run_that_imports_what_no_key_has_is_refused(self, ways: ExecutionOptions, source: Path) -> None:
        source.write_text("import importlib\n" + TOY.replace("        time.sleep(PAUSE)", self.LATE))
        (source.parent / "late_one.py").write_text("")
        outcome = invocation_of(source, seeds=3).complete(ways)
        assert outcome.header.identity["code"]["comparison"].keys() == {"toy.py"}
        by_seed = {record.run.seed: record for record in outcome.records if record.run.stage == EVALUATE}
        assert [by_seed[seed].status for seed in range(3)] == ["ok", "error", "error"]
        assert "got `late_one.py`, imported during a run. Import it at the top" in by_seed[1].reason

    def test_a_run_of_a_file_that_has_changed_is_refused(self, source: Path) -> None:
        helper = source.parent / "late_one.py"
        helper.write_text("A = 1\n")
        changes = (  # after the key is made, before the file is imported
            "        if seed == 1000:\n            Path(__file__).with_name('late_one.py').write_text('A = 2')\n"
            "        if seed == 1:\n            import late_one\n"
        )
        source.write_text(TOY.replace("        time.sleep(PAUSE)\n", changes))
        outcome = invocation_of(source, seeds=2).complete(ALONE)
        by_seed = {record.run.seed: record for record in outcome.records if record.run.stage == EVALUATE}
        assert [by_seed[seed].status for seed in range(2)] == ["ok", "error"]
        assert "got `late_one.py`, which has changed since" in by_seed[1].reason

    def test_a_file_of_the_standard_library_of_normlab_or_installed_does_not_count(self, source: Path) -> None:
        source.write_text(self.text("import colorsys, wave, markupsafe\nfrom normlab.models import vit"))
        for name in ("colorsys", "wave"):
            sys.modules.pop(name, None)
        assert invocation_of(source).task(ALONE).identity["code"]["comparison"].keys() == {"toy.py"}

    def test_a_folder_that_is_moved_has_the_same_key(self, source: Path) -> None:
        source.write_text(self.text("import parts.deep"))
        (source.parent / "parts").mkdir()
        for name in ("__init__", "deep"):
            (source.parent / f"parts/{name}.py").write_text("")
        first = invocation_of(source).task(ALONE).identity
        moved = source.parent.rename(source.parents[1] / "moved")
        assert invocation_of(moved / "toy.py").task(ALONE).identity == first


class TestVersions:
    def test_are_in_the_key_of_those_that_use_them(self) -> None:
        libraries = {"digits": ("scikit-learn",), "sea": ("river", "scikit-learn")}
        data = {"digits": "a", "sea": "b", "own": "c"}
        described = describe({}, data, Strategy(alone=True), libraries)
        always = {"python", "jax", "jaxlib", "flax", "optax", "numpy"}
        of = {problem: of_problem(described, problem) for problem in data}
        assert of["own"]["versions"].keys() == always
        assert of["digits"]["versions"].keys() == always | {"scikit-learn"}
        assert of["sea"]["versions"].keys() == always | {"scikit-learn", "river"}
        assert all(of["sea"]["versions"].values())
        assert len({run_key(RUN, found) for found in of.values()}) == 3

    def test_a_missing_package_is_no_fault(self) -> None:
        assert versions(["no-such-package-anywhere"]) == {"no-such-package-anywhere": None}

    def test_each_problem_says_what_it_uses(self) -> None:
        for source, problem, libraries in (
            ("batch_size", "mlp", ("scikit-learn",)),
            ("recurrent", "rows", ("scikit-learn",)),
            ("recurrent", "adding", ()),
            ("online", "sea", ("river",)),
            ("online", "split-digits", ("scikit-learn", "river")),
        ):
            comparison = discovery.load(source)
            found = next(one for one in comparison.problems if one.name == problem)
            config = {"batch_size": 8, "epochs": 1, **({"depth": 1} if source == "recurrent" else {})}
            assert found.build(get("none"), config).libraries == libraries, problem


class TestOutdated:
    """Records of another identity are named, and in no number."""

    NOW: dict[str, Any] = {  # noqa: RUF012
        "code": {"normlab": "a", "comparison": {"toy.py": "b", "new.py": "n"}},
        "versions": {"jax": "0.10.2", "optax": None},
        "libraries": {"scalar": {"river": "0.25"}},
        "platform": {"device": "cpu", "x64": False},
        "data": {"scalar": "d", "other": "e"},
        "strategy": "sequential",
    }

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"code": {"normlab": "z", "comparison": {"toy.py": "b", "new.py": "n"}}}, "the code of normlab changed"),
            ({"code": {"normlab": "a", "comparison": {"toy.py": "z", "new.py": "n"}}}, "`toy.py` changed"),
            ({"code": {"normlab": "a", "comparison": {"toy.py": "b"}}}, "`new.py` is imported now"),
            (
                {"code": {"normlab": "a", "comparison": {"toy.py": "b", "new.py": "n", "old.py": "o"}}},
                "`old.py` is no longer imported",
            ),
            ({"code": "of an older form"}, "the code changed"),
            ({"versions": {"jax": "0.9.1", "optax": None, "river": "0.25"}}, "jax 0.9.1 instead of 0.10.2"),
            ({"versions": {"jax": "0.10.2", "optax": "1", "river": "0.25"}}, "optax 1 instead of none"),
            ({"versions": {"jax": "0.10.2", "optax": None}}, "river none instead of 0.25"),
            ({"platform": {"device": "gpu", "x64": True}}, "device gpu instead of cpu; x64 True instead of False"),
            ({"data": "z"}, "the data changed"),
            ({"strategy": "vmap of 16"}, "strategy `vmap of 16` instead of `sequential`"),
            (
                {"data": "z", "versions": {"jax": "0.9.1", "optax": None, "river": "0.25"}},
                "the data changed; jax 0.9.1 instead of 0.10.2",
            ),
        ],
    )
    def test_the_reason_is_said(self, change: dict[str, Any], why: str) -> None:
        of = of_problem(self.NOW, "scalar")
        assert outdated(self.NOW, [self.record(of), self.record(of, "else")]) == ""
        records = [self.record({**of, **change}), self.record(of)]
        assert outdated(self.NOW, records) == f"Set aside, and in none of the numbers: 1 record ({why})."

    def test_reasons_are_counted(self) -> None:
        of = of_problem(self.NOW, "scalar")
        records = [*[self.record({**of, "data": "z"})] * 3, self.record({**of, "code": "z"})]
        expected = "Set aside, and in none of the numbers: 3 records (the data changed), 1 record (the code changed)."
        assert outdated(self.NOW, records) == expected

    def record(self, of: dict[str, Any], problem: str = "scalar") -> Record:
        run = dataclasses.replace(RUN, configuration=dataclasses.replace(RUN.configuration, problem=problem))
        return Record(key="", run=run, identity=of, status="ok")

    def test_after_an_edit_no_report_has_numbers_of_both(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "out"
        assert invocation_of(toy, output, seeds=2).run(ALONE) == 0
        old = {record.key: record for record in Store(output).records()}
        assert "Set aside" not in capsys.readouterr().out + (output / "report.html").read_text()
        toy.write_text(toy.read_text().replace("error + 0.01", "error + 0.02"))
        monkeypatch.setattr(identity, "own_code", lambda: "edited")
        reasons = "`toy.py` changed; the code of normlab changed"
        why = f"Set aside, and in none of the numbers: {len(old)} records ({reasons})."
        invocation_of(toy, output, seeds=2).dry_run(ALONE)
        assert capsys.readouterr().out.count(why) == 1
        with pytest.raises(BadInput, match="Set aside, and in none"):
            main_report(toy, output)
        assert invocation_of(toy, output, seeds=2).run(ALONE) == 0
        assert capsys.readouterr().out.replace("\n", " ").count(why) == 2  # before the runs, and with the report
        assert why in html_text(output)
        assert json.loads((output / "tables/settings.json").read_text())["outdated"] == why
        new = [record for record in Store(output).records() if record.key not in old]
        assert len(new) == len(old)
        with (output / "tables/runs.csv").open() as file:
            shown = [float(row["test"]) for row in csv.DictReader(file) if row["test"]]
        expected = sorted(record.metrics["test"] or 0.0 for record in new if record.run.stage == EVALUATE)
        assert sorted(shown) == pytest.approx(expected, abs=1e-6)

    def test_a_result_in_python_knows(self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        comparison = discovery.load(str(toy))
        found = [
            api.run(comparison, output=tmp_path / "out", progress=False, **{**FEW, "seeds": 2})
            for comparison in (comparison, discovery.load(str(toy)))
        ]
        assert found[0].outdated == ""
        assert found[1].outdated.endswith(" records (the code changed).")
        assert found[1].outdated in html_text(found[1].report(tmp_path / "report").parent)


def html_text(folder: Path) -> str:
    import html

    page = (folder / "report.html").read_text()
    return html.unescape(page.replace("<code>", "`").replace("</code>", "`"))


def main_report(toy: Path, output: Path) -> None:
    """Report under today's identity what an older one made."""
    invocation = invocation_of(toy, output, seeds=2)
    header = Store(output).header()
    assert header is not None
    invocation.report(dataclasses.replace(header, identity=invocation.task(ALONE).identity))
