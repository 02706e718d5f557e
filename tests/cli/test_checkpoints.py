"""`normlab fold` and `normlab convert`: a new checkpoint, and the old one as it was."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from normlab.cli.main import main
from normlab.tools import FoldError, restore
from tests.support import checkpoints
from tests.support.checkpoints import digest, evaluated, save
from tests.support.paths import ENVIRONMENT

FOLD, CONVERT = ["fold", "net.py:build", "trained"], ["convert", "net.py:build", "trained"]
TO = ["--to", "batch_renorm", "--where", "norm_*"]
OUTPUT = ["--output", "new"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a user, and checkpoints of its models."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(checkpoints.NET)
    net = loaded(folder)
    save(folder / "trained", checkpoints.trained_state(net))
    save(folder / "layers", nnx.to_pure_dict(nnx.state(checkpoints.trained_layers(net))))
    return folder


def loaded(folder: Path, name: str = "net.py") -> ModuleType:
    net = ModuleType("net")
    exec((folder / name).read_text(), net.__dict__)
    return net


@pytest.fixture
def there(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, as the working directory; no test leaves anything behind in it but a new checkpoint."""
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = digest(work)
    yield work
    for name in ("new", "report.json"):
        remove(work / name)
    assert digest(work) == before


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def pasted(out: str, folder: Path) -> tuple[Any, Any]:
    """Run the lines that a command printed, and return the model and its variables."""
    lines = re.findall(r"^    (.+)$", out, re.MULTILINE)
    assert lines[0] == "from normlab.tools import restore"
    namespace = vars(loaded(folder))
    exec("\n".join(lines), namespace)
    return namespace["model"], namespace["variables"]


def before(net: ModuleType) -> tuple[Any, Any]:
    """Return the trained model and its variables."""
    model, _ = net.build()
    state = checkpoints.trained_state(net)
    return model, {"params": state.params, "batch_stats": state.batch_stats}


FOLDED = """\
path    into    how   reason
norm_0  conv_0  bias
norm_1  conv_1  bias
last            kept  `last` takes its statistics from its input (kind `layer`).
"""
RENORMED = """\
path    before  after         carried                 fresh  dropped
norm_0  batch   batch_renorm  scale, bias, mean, std  step   -
norm_1  batch   batch_renorm  scale, bias, mean, std  step   -
norm_0 and 1 more: Start with `r_max=1, d_max=0`, then let them grow, as `normlab.norms.Ramp` does.
Copied with it: `opt_state`, `step`.
"""


class TestProcesses:
    @pytest.mark.parametrize(("arguments", "table"), [(FOLD, FOLDED), ([*CONVERT, *TO], RENORMED)])
    def test_a_new_checkpoint_is_loaded_by_the_line_that_is_printed(
        self, arguments: list[str], table: str, there: Path
    ) -> None:
        old = digest(there / "trained")
        done = run(*arguments, *OUTPUT, "--json", "report.json", folder=there)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(table)
        assert max(map(len, done.stdout.splitlines())) <= 100
        assert done.stdout.endswith(
            "Wrote `new`. Load it, with `build` of `net.py`:\n"
            "    from normlab.tools import restore\n"
            '    model, variables = restore("new", *build())\n'
        )
        assert digest(there / "trained") == old
        net = loaded(there)
        model, variables = pasted(done.stdout, there)
        expected = evaluated(*before(net), net.x)
        assert jnp.allclose(evaluated(model, variables, net.x), expected, atol=1e-5)
        report = json.loads((there / "report.json").read_text())
        assert (report["source"], report["checkpoint"], report["output"]) == ("net.py:build", "trained", "new")
        assert [row["path"] for row in report["norms"]][:2] == ["norm_0", "norm_1"]


def run(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "normlab", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, cwd=folder, capture_output=True, text=True)


NOT_A_FILE = "Expected a Python file and its function, as in `net.py:build`, got `nowhere.py:build`."
BAD: dict[str, tuple[list[str], str]] = {
    "no such file": (
        ["fold", "nowhere.py:build", "trained", *OUTPUT],
        f"{NOT_A_FILE} There is no file `nowhere.py`.",
    ),
    "no such function": (
        ["fold", "net.py:built", "trained", *OUTPUT],
        "Expected `net.py` to define the function `built`, got none. Did you mean `build`?",
    ),
    "a function that raises": (
        ["fold", "net.py:raising", "trained", *OUTPUT],
        "Expected `net.py:raising` to return a model, got ZeroDivisionError: division by zero, from line 56 of "
        "`net.py`. `--traceback` shows the calls.",
    ),
    "no model": (
        ["fold", "net.py:number", "trained", *OUTPUT],
        "Expected `net.py:number` to return a Flax model, got 3. Return a model and the inputs of a call, as in "
        "`return model, x`, or a dict with `model`, `args` and others.",
    ),
    "no checkpoint": (
        ["fold", "net.py:build", "nowhere", *OUTPUT],
        "Expected the folder of a checkpoint, got `nowhere`. There is no such folder.",
    ),
    "the checkpoint of another model": (
        ["fold", "net.py:larger", "trained", *OUTPUT],
        "Expected `batch_stats/norm_0/mean` of shape (6,) in the checkpoint, as in the model, got (4,). Give the "
        "checkpoint of the same model.",
    ),
    "an output that exists": (
        ["fold", "net.py:build", "trained", "--output", "layers"],
        "Expected a new folder, got `layers`. It exists already; nothing is overwritten.",
    ),
    "an output inside the checkpoint": (
        ["fold", "net.py:build", "trained", "--output", "trained/new"],
        "Expected a new folder beside the checkpoint, got `trained/new`. It is inside the checkpoint that is read.",
    ),
    "a glob that matches nothing": (
        [*FOLD, "--where", "nrom_*", *OUTPUT],
        "Expected a glob that matches the path of a norm, got `nrom_*`. Did you mean `norm_1`?",
    ),
    "an unknown norm": (
        [*CONVERT, "--to", "bach", *OUTPUT],
        "Unknown norm `bach`. Did you mean `batch`?",
    ),
    "a checkpoint elsewhere": (
        ["fold", "net.py:build", "gs://bucket/trained", *OUTPUT],
        "Expected a folder of this machine, got `gs://bucket/trained`. Copy the checkpoint here, and name its folder.",
    ),
}
MORE_BAD: dict[str, tuple[list[str], str]] = {
    "no output": (FOLD, "Expected `--output NEW`, a new folder, got none. Give one, or `--dry-run`."),
    "no norm": ([*CONVERT, *OUTPUT], "Expected `--to`, got none. See `normlab convert --help`."),
    "an unknown option": ([*FOLD, "--wher", "a"], "Unknown option `--wher`. Did you mean `--where`?"),
    "a function that leaves": (
        ["fold", "net.py:leaving", "trained", *OUTPUT],
        "Expected `net.py:leaving` to return a model, got SystemExit, from line 60 of `net.py`. "
        "`--traceback` shows the calls.",
    ),
    "a keyword that is misspelt": (
        ["fold", "net.py:misspelt", "trained", *OUTPUT],
        "Expected keywords that the command knows from `net.py:misspelt`, got `arguments`. Known: args, evaluate, "
        "kwargs, method, model, rngs, variables.",
    ),
    "inputs that are no tuple": (
        ["fold", "net.py:single", "trained", *OUTPUT],
        "Expected `args` of `single()` to be a tuple, got `ArrayImpl` of float32, shape (2, 4, 4, 3). Write `(x,)` for "
        "a single input.",
    ),
    "keywords that are no dict": (
        ["fold", "net.py:listed", "trained", *OUTPUT],
        "Expected `kwargs` of `listed()` to be a dict, got [1]. Write keywords of the call by name.",
    ),
    "no inputs": (
        ["fold", "net.py:without_inputs", "trained", *OUTPUT],
        "Expected the inputs of a call of a Linen model, got none. Give them after the model.",
    ),
    "inputs of another shape": (
        ["fold", "net.py:wrong_inputs", "trained", *OUTPUT],
        "Expected a model that `init` can call with the inputs, got ",
    ),
    "no tolerance": (
        [*FOLD, "--tolerance", "small", *OUTPUT],
        "Expected `--tolerance` to be a positive number, got `small`. Give one such as 1e-4.",
    ),
    "a form that there is none of": (
        [*FOLD, "--form", "net", *OUTPUT],
        "Argument --form: invalid choice: 'net' (choose from 'model', 'variables'). See `normlab fold --help`.",
    ),
    "a report that exists": (
        [*FOLD, "--json", "net.py", *OUTPUT],
        "Expected `--json` to be a new file, got `net.py`. Nothing is overwritten; its folder has to exist, outside of "
        "the checkpoint.",
    ),
    "variables that start anew": (
        [*CONVERT, "--to", "group:num_groups=2", "--where", "norm_*", *OUTPUT],
        "Expected variables that `group:num_groups=2` takes over from `batch`, got none for scale, bias of `norm_0`. "
        "Pass `fresh='init'` to start anew; `keep=('affine', ...)` carries scale and bias.",
    ),
    "an unknown norm for some": (
        [*CONVERT, "--to", "norm_0=batch_renorm", "--to", "norm_*=bach", *OUTPUT],
        "Unknown norm `bach`. Did you mean `batch`?",
    ),
    "a glob of a norm that matches nothing": (
        [*CONVERT, "--to", "nrom_0=batch_renorm", "--to", "norm_1=batch", *OUTPUT],
        "Expected a glob that matches the path of a norm, got `nrom_0`. Did you mean `norm_0`?",
    ),
    "a glob twice": (
        [*CONVERT, "--to", "norm_*=batch", "--to", "norm_*=layer", *OUTPUT],
        "Expected `--to` to be a norm, or a glob over paths and a norm, got `norm_*=layer`. Write it as in "
        "'stage_*=group', each glob once.",
    ),
    "a glob without a norm": (
        [*CONVERT, "--to", "norm_*=", *OUTPUT],
        "Expected `--to` to be a norm, or a glob over paths and a norm, got `norm_*=`. Write it as in",
    ),
    "two norms for all": (
        [*CONVERT, "--to", "batch", "--to", "batch_renorm", *OUTPUT],
        "Expected one norm without a glob in `--to`, got `batch` and `batch_renorm`. Say which norms each is for, as "
        "in 'stage_*=group'.",
    ),
    "an output elsewhere": (
        [*FOLD, "--output", "s3://bucket/new"],
        "Expected a folder of this machine, got `s3://bucket/new`. Copy the checkpoint here, and name its folder.",
    ),
    "a model that fails": (
        ["convert", "net.py:failing", "trained", *TO, *OUTPUT],
        "Expected a model that `init` can call with the inputs, got TypeError: unsupported operand type(s) for +: "
        "'int' and 'str'. Give other inputs, or `variables`. It came from line 89 of `net.py`.",
    ),
    "a model that fails though its variables are given": (
        ["convert", "net.py:failing_later", "trained", *TO, *OUTPUT],
        "Expected the model of `net.py:failing_later` to run with its inputs, got TypeError: unsupported operand "
        "type(s) for +: 'int' and 'str', from line 89 of `net.py`. Correct it, or give other inputs; `--traceback` "
        "shows the calls.",
    ),
    "a model that fails while it is folded": (
        ["fold", "net.py:failing_later", "trained", *OUTPUT],
        "Expected the model of `net.py:failing_later` to run with its inputs, got TypeError: unsupported operand",
    ),
    "an option of a norm": (
        [*CONVERT, "--to", "batch:momentun=0.5", "--where", "norm_*", *OUTPUT],
        "Expected an option of BatchNorm, got 'momentun' for norm 'batch'. Did you mean 'momentum'? See `normlab list "
        "norms`.",
    ),
    "an option that is no number": (
        [*CONVERT, "--to", "group:num_groups=two", "--where", "norm_*", "--fresh", "init", *OUTPUT],
        "Expected `num_groups` to be a whole number, got 'two'. See `normlab list norms`.",
    ),
    "a key that is not there": (
        [*FOLD, "--key", "state", *OUTPUT],
        "Expected `state` in the checkpoint, got none. Did you mean `opt_state`?",
    ),
    "a checkpoint without the model's keys": (
        ["fold", "net.py:build", "layers", *OUTPUT],
        "Expected a checkpoint with `batch_stats`, `params`, as the model has them, got the keys dropout, parts. Give "
        "the checkpoint of the same model.",
    ),
}


class TestBadInput:
    @pytest.mark.parametrize("case", [*BAD, *MORE_BAD])
    def test_one_line_code_2_and_nothing_written(
        self, case: str, there: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments, sentence = {**BAD, **MORE_BAD}[case]
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"normlab: {sentence}")
        assert (out, err.count("\n")) == ("", 1)
        assert not (there / "new").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("case", BAD)
    def test_the_same_in_a_process(self, case: str, there: Path) -> None:
        arguments, sentence = BAD[case]
        done = run(*arguments, folder=there)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"normlab: {sentence}\n")
        assert not (there / "new").exists()

    def test_a_traceback_shows_where(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fold", "net.py:raising", "trained", *OUTPUT, "--traceback"]) == 2
        err = capsys.readouterr().err
        assert 'raise ZeroDivisionError("division by zero.")' in err
        assert err.splitlines()[-1].startswith("normlab: Expected `net.py:raising` to return a model")

    def test_a_file_that_does_not_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for text, sentence in {
            "import no_such_module\n": "ModuleNotFoundError: No module named 'no_such_module', from line 1 of",
            "model = (\n": "SyntaxError: '(' was never closed",
        }.items():
            (tmp_path / "own.py").write_text(text)
            assert main(["fold", str(tmp_path / "own.py"), "trained", *OUTPUT]) == 2
            assert (
                f"normlab: Expected the file `{tmp_path / 'own.py'}` to run, got {sentence}" in capsys.readouterr().err
            )
        assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


class TestFold:
    def test_a_dict_of_keywords_and_some_of_the_norms(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fold", "net.py:keywords", "trained", "--where", "norm_0", *OUTPUT]) == 0
        out = capsys.readouterr().out
        assert 'model, variables = restore("new", built["model"], *built["args"], evaluate=built["evaluate"])' in out
        model, variables = pasted(out, there)
        net = loaded(there)
        assert variables["batch_stats"].keys() == {"norm_1"}
        assert jnp.allclose(evaluated(model, variables, net.x), evaluated(*before(net), net.x), atol=1e-5)

    def test_a_model_of_nnx(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fold", "net.py:layers", "layers", *OUTPUT]) == 0
        model, state = pasted(capsys.readouterr().out, there)
        old = checkpoints.trained_layers(loaded(there))
        old.eval(), model.eval()
        x = jax.random.normal(jax.random.key(3), (2, 4))
        assert jnp.allclose(model(x), old(x), atol=1e-5)
        assert {path[-1] for path, _ in nnx.to_flat_state(state)} == {"kernel", "bias", "count", "key"}

    def test_the_model_that_stays(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*FOLD, "--form", "variables", "--no-follow", "--no-check", *OUTPUT]) == 0
        out = capsys.readouterr().out
        assert "norm_0: `norm_0` still runs, as one addition." in out
        assert "; outputs differ" not in out
        model, variables = pasted(out, there)
        net = loaded(there)
        assert type(model).__name__ == "Net"
        assert jnp.allclose(evaluated(model, variables, net.x), evaluated(*before(net), net.x), atol=1e-5)

    def test_a_dry_run_writes_no_checkpoint(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*FOLD, "--dry-run", "--json", "report.json"]) == 0
        assert capsys.readouterr().out.startswith(FOLDED)
        assert not (there / "new").exists()
        norms = json.loads((there / "report.json").read_text())["norms"]
        assert norms[2] == {
            "path": "last",
            "into": "",
            "how": "kept",
            "reason": "`last` takes its statistics from its input (kind `layer`).",
            "notes": [],
        }

    def test_code_1_where_no_norm_is_folded(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*FOLD, "--where", "last", *OUTPUT]) == 1
        out, err = capsys.readouterr()
        assert err == "normlab: No norm was folded. Nothing was written.\n"
        assert out.startswith("path    into  how   reason\n")
        assert not (there / "new").exists()

    def test_code_1_where_outputs_differ(
        self, there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def differs(*_: Any, **__: Any) -> None:
            raise FoldError("Expected outputs within 1e-05 of those before the fold, got a difference of 0.5.")

        monkeypatch.setattr("normlab.cli.checkpoints.fold", differs)
        assert main([*FOLD, *OUTPUT]) == 1
        assert capsys.readouterr() == (
            "",
            "normlab: Expected outputs within 1e-05 of those before the fold, got a difference of 0.5. Nothing was "
            "written.\n",
        )

    def test_long_paths_and_reasons_are_wrapped(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "long.py").write_text(LONG)
        model, x = loaded(tmp_path, "long.py").build()
        save(tmp_path / "old", model.init(jax.random.key(0), x, train=False))
        files = [str(tmp_path / name) for name in ("long.py", "old", "new")]
        assert main(["fold", files[0], files[1], "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[:-1])) <= 100
        assert "2 of 3 norms are in a layer or gone" in "\n".join(lines)
        assert "".join(line[:60].strip() for line in lines[1:4]).startswith("a_block_with_a_long_name/")
        assert not (tmp_path / "new").exists()


LONG = """
import jax.numpy as jnp
from flax import linen as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, name="a_projection_with_a_name_that_is_even_longer_than_usual")(x)
        return nn.BatchNorm(use_running_average=not train, name="the_norm_behind_the_projection_with_a_long_name")(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for name in ("a", "another"):
            x = Block(name=f"{name}_block_with_a_long_name")(x, train)
        return nn.LayerNorm(name="the_last_of_the_norms_whose_name_is_not_short_at_all")(x)


def build():
    return Net(), jnp.ones((2, 3))
"""


class TestConvert:
    def test_moments_start_anew_with_their_parameters(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        group = ["--to", "group:num_groups=2", "--where", "norm_*", "--fresh", "init"]
        assert main([*CONVERT, *group, *OUTPUT]) == 0
        out = capsys.readouterr().out
        assert (
            "Copied with it: `opt_state`, `step`. Moments in `opt_state` are zero for what starts anew, and gone\n"
            "for what was dropped.\n"
        ) in out
        model, variables = pasted(out, there)
        assert variables.keys() == {"params"}
        old, new = (checkpoints.orbax(there / name)["opt_state"][0]["mu"] for name in ("trained", "new"))
        assert old["norm_0"]["scale"].all()
        assert new["norm_0"].keys() == {"scale", "bias"}
        assert not new["norm_0"]["scale"].any()
        assert (new["last"]["scale"] == old["last"]["scale"]).all()
        assert evaluated(model, variables, loaded(there).x).shape == (2, 3)

    def test_several_norms_in_the_order_of_their_globs(
        self, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        some = ["--to", "rms", "--to", "norm_1=batch_renorm:r_max=2", "--to", "norm_*=normlab", "--fresh", "init"]
        assert main([*CONVERT, *some, "--output", str(tmp_path / "between")]) == 0
        out = capsys.readouterr().out
        after = dict(re.findall(r"^(norm_\d|last) +\w+ +(\S+)", out, re.MULTILINE))
        assert after == {"norm_0": "batch", "norm_1": "batch_renorm:r_max=2", "last": "rms"}
        net = loaded(there)
        model, variables = restore(tmp_path / "between", *net.build())
        assert variables["batch_stats"]["norm_1"].keys() == {"mean", "std", "step"}
        assert variables["params"]["last"].keys() == {"scale"}
        assert evaluated(model, variables, net.x).shape == (2, 3)
        assert main(["fold", "net.py:build", str(tmp_path / "between"), *OUTPUT]) == 0
        assert "2 of 3 norms are in a layer or gone" in capsys.readouterr().out

    def test_a_model_of_nnx_needs_no_inputs(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["convert", "net.py:alone", "layers", "--to", "normlab", *OUTPUT]) == 0
        out = capsys.readouterr().out
        assert '    model, variables = restore("new", alone())\n' in out
        model, _ = pasted(out, there)
        old = checkpoints.trained_layers(loaded(there))
        old.eval(), model.eval()
        x = jax.random.normal(jax.random.key(3), (2, 4))
        assert type(model.parts[1]).__module__.startswith("normlab.")
        assert jnp.array_equal(model(x), old(x))

    def test_a_conversion_and_then_a_fold(self, there: Path, tmp_path: Path) -> None:
        between = str(tmp_path / "renorm")
        assert main([*CONVERT, *TO, "--output", between]) == 0
        assert main(["fold", "net.py:build", between, *OUTPUT]) == 0
        net = loaded(there)
        model, variables = restore(there / "new", *net.build())
        assert variables.keys() == {"params"}
        assert jnp.allclose(evaluated(model, variables, net.x), evaluated(*before(net), net.x), atol=1e-5)

    def test_it_takes_no_method(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["convert", "net.py:listed", "trained", *TO, *OUTPUT]) == 2
        assert capsys.readouterr().err == (
            "normlab: Expected keywords that the command knows from `net.py:listed`, got `kwargs`. Did you mean "
            "`args`?\n"
        )


CRASH = """
import os, pathlib, sys
from normlab.cli.main import main
real = os.rename
os.rename = lambda old, new, **_: os._exit(9) if os.path.basename(new) == "new" else real(old, new)
sys.exit(main(sys.argv[1:]))
"""


def test_a_crash_leaves_no_checkpoint(there: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, *FOLD, *OUTPUT], env=ENVIRONMENT, cwd=there, capture_output=True
    )
    assert done.returncode == 9
    assert not (there / "new").exists()
    assert main([*FOLD, *OUTPUT]) == 0
    for left in there.glob("new.*"):
        remove(left)


SHARDED = """
import sys
from pathlib import Path
from types import ModuleType
import jax
from jax.sharding import NamedSharding, PartitionSpec
from tests.support import checkpoints
net = ModuleType("net")
exec(Path("net.py").read_text(), net.__dict__)
mesh = jax.make_mesh((8,), ("model",))
assert jax.device_count() == 8

def spread(leaf):
    last = jax.numpy.ndim(leaf) > 0 and leaf.shape[-1] % 8 == 0
    spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model") if last else PartitionSpec()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

state = checkpoints.trained_state(net)
checkpoints.save(Path(sys.argv[1]), jax.tree.map(spread, state))
"""


@pytest.mark.slow
def test_the_checkpoint_of_eight_devices_is_read_on_one(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(checkpoints.NET.replace("features: int = 4", "features: int = 8"))
    devices = {**ENVIRONMENT, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "sharded")]
    subprocess.run(command, env=devices, cwd=tmp_path, check=True, capture_output=True)
    assert "model" in (tmp_path / "sharded" / "_sharding").read_text()
    net = loaded(tmp_path)
    old = before(net)
    for name, command in {"folded": ["fold"], "converted": ["convert", *TO]}.items():
        given = [command[0], "net.py:build", "sharded", *command[1:], "--output", name]
        done = run(*given, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        model, variables = restore(tmp_path / name, *net.build())
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(variables)} == {1}
        assert jnp.allclose(evaluated(model, variables, net.x), evaluated(*old, net.x), atol=1e-5)
