"""Without a package of an extra: what needs none works, and what needs it says which command installs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from normlab.errors import BadInput
from normlab.extras import EXTRAS, MissingExtra, importing, remedy_for, require
from tests.support.paths import ENVIRONMENT, ROOT

BLOCK = """
import contextlib, io, sys

class Without:
    def __init__(self, *packages):
        self.packages = packages
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def line(call, *kinds):
    try:
        call()
    except kinds as error:
        return str(error)
    return "nothing"

def printed(*arguments):
    from normlab.cli.main import main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()

def missing(packages, extra):
    return f"Expected {packages} to be installed, got none. Run `pip install 'normlab[{extra}]'`."
"""


def run(code: str, folder: Path) -> None:
    """Run Python in a folder, in a process that has imported nothing yet."""
    finished = subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert not list(folder.iterdir())


def test_without_any_extra_what_needs_none_works(tmp_path: Path) -> None:
    run(
        f"""
sys.meta_path.insert(0, Without(*{sorted(set().union(*EXTRAS.values()))!r}))
import normlab, normlab.norms, normlab.functional, normlab.study
from normlab import study
assert printed("--help")[0] == printed("--version")[0] == printed("run", "batch_size", "--help")[0] == 0
code, out, err = printed("list")
assert (code, err) == (0, "") and "batch_renorm" in out and "Which norm, at which batch size?" in out
study.Comparison(name="c", problems=(study.supervised(name="p", model=lambda norm: norm, data="x.npz",
    metric=study.MISCLASSIFICATION),))
sys.meta_path[0].packages = {sorted(set().union(*EXTRAS.values()) - {"optax", "rich"})!r}  # which Flax needs itself
import normlab.linen, normlab.nnx
""",
        tmp_path,
    )


def test_each_package_of_the_study_is_asked_for_before_anything_runs(tmp_path: Path) -> None:
    run(
        """
from normlab import study
from normlab.extras import EXTRAS
for package in EXTRAS["study"]:
    sys.meta_path.insert(0, Without(package))
    said = missing(f"`{package}`", "study")
    assert printed("run", "batch_size", "--tier", "smoke") == (2, "", f"normlab: {said}\\n")
    assert line(lambda: study.run, ImportError) == line(lambda: study.Result, ValueError) == said
    del sys.meta_path[0]
sys.meta_path.insert(0, Without("optax", "rich", "scipy"))
assert line(lambda: study.run, ImportError) == missing("`optax`, `rich` and `scipy`", "study")
""",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("package", "extra", "code"),
    [
        ("optax", "study", "build(supervised)"),
        ("sklearn", "study", "digits"),
        ("optax", "online", "online"),
        ("river", "online", "online"),
        ("river", "online", "streams.synthetic('sea')"),
        ("river", "online", "streams.bundled('phishing')"),
        ("river", "online", "build(streaming)"),
        ("cv2", "data", "chosen"),
        ("tensorflow_datasets", "data", "chosen"),
        ("array_record", "data", "chosen"),
        ("grain", "data", "chosen"),
        ("submitit", "cluster", "slurm"),
        ("ray", "cluster", "ray"),
        ("jinja2", "doctor", "page"),
    ],
)
def test_a_package_is_named_with_its_command_where_it_is_needed(
    tmp_path: Path, package: str, extra: str, code: str
) -> None:
    run(
        f"""
sys.meta_path.insert(0, Without({package!r}))
import importlib
from normlab import norms, study
from normlab.study import streams
from normlab.study.data.dataset import digits
from normlab.study.data.tfds import folders

def build(make):
    from flax import linen as nn
    build = make().build
    return lambda: build(norms.get("none"), {{"batch_size": 4, "epochs": 1}})

def supervised():
    return study.supervised(name="p", model=lambda norm: norm, data=study.Data([[0.0]] * 90, [0, 1, 2] * 30))

def streaming():
    return study.streaming(name="p", model=lambda norm, outputs: norm, source=streams.split_digits())

calls = {{
    "build(supervised)": lambda: build(supervised)(),
    "build(streaming)": lambda: build(streaming)(),
    "digits": digits,
    "online": lambda: importlib.import_module("normlab.river"),
    "streams.synthetic('sea')": lambda: streams.synthetic("sea")(0),
    "streams.bundled('phishing')": lambda: streams.bundled("phishing")(0),
    "chosen": lambda: folders.package(),
    "slurm": lambda: importlib.import_module("normlab.study.executors.slurm"),
    "ray": lambda: importlib.import_module("normlab.study.executors.ray"),
    "page": lambda: importlib.import_module("normlab.doctor").Report((), (), {{}}).html("page.html"),
}}
assert line(calls[{code!r}], ImportError) == missing("`{package}`", {extra!r}), line(calls[{code!r}], ImportError)
""",
        tmp_path,
    )


def test_a_file_that_imports_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "own.py").write_text("import optax\n")
    run(
        """
sys.meta_path.insert(0, Without("optax"))
code, out, err = printed("run", "../own.py")
assert (code, out) == (2, "") and err.count("\\n") == 1
assert "No module named 'optax'" in err and err.endswith("Run `pip install 'normlab[study]'`.\\n"), err
""",
        folder,
    )


def test_it_is_bad_input_and_an_import_error() -> None:
    assert issubclass(MissingExtra, BadInput) and issubclass(MissingExtra, ImportError)
    require("study")
    with pytest.raises(MissingExtra, match="Expected `libGL` to be installed, got ImportError: no library"):
        with importing("data"):
            raise ImportError("no library", name="libGL")
    assert remedy_for(ModuleNotFoundError("", name="river.base")) == " Run `pip install 'normlab[online]'`."
    assert remedy_for(ModuleNotFoundError("", name="torch")) == remedy_for(ValueError()) == ""


def test_extras_are_those_of_the_package() -> None:
    import tomllib

    named = {"scikit-learn": "sklearn", "tensorflow-datasets": "tensorflow_datasets", "opencv-python-headless": "cv2"}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    quiet = {"argcomplete"}  # nothing asks for it: without it there is no tab completion
    for extra, packages in EXTRAS.items():
        names = [one.partition(">")[0] for one in declared[extra] if not one.startswith("normlab[")]
        assert {named.get(name, name) for name in names} - quiet <= set(packages), extra
