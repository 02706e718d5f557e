"""A model from a function of a user's file."""

import sys
from pathlib import Path

import pytest

from normlab.cli.building import built
from normlab.errors import BadInput

KNOWN = ("model", "args", "kwargs")
HEAD = "from flax import linen as nn\nmodel = nn.Dense(2)\n"


@pytest.fixture(autouse=True)
def path_and_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def file(folder: Path, text: str, name: str = "own.py") -> str:
    (folder / name).write_text(HEAD + text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("returned", "form", "keywords"),
    [
        ("model", "model", {}),
        ("(model,)", "inputs", {"args": ()}),
        ("(model, 1, 2)", "inputs", {"args": (1, 2)}),
        ("{'model': model, 'args': (3,)}", "keywords", {"args": (3,)}),
    ],
)
def test_forms(returned: str, form: str, keywords: dict[str, object], tmp_path: Path) -> None:
    source = file(tmp_path, f"def build():\n    return {returned}\n")
    found = built(source, KNOWN)
    assert (found.file, found.function, found.form) == (source, "build", form)
    assert {name: value for name, value in found.keywords.items() if name != "model"} == keywords
    assert type(found.keywords["model"]).__name__ == "Dense"


def test_another_function_and_modules_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "beside_the_net.py").write_text("features = 7\n")
    text = "def wide():\n    from beside_the_net import features\n    return nn.Dense(features)\n"
    found = built(f"{file(tmp_path, text)}:wide", KNOWN)
    assert found.function == "wide"
    assert getattr(found.keywords["model"], "features") == 7  # noqa: B009
    assert not list(tmp_path.glob("__pycache__/own*"))


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("None", "to return a Flax model, got None. Return a model and the inputs of a call, as in `return model, x`"),
        ("nn.Dense", "to return a Flax model, got the class `Dense`."),
        ("()", "to return a Flax model, got ()."),
        ("{}", "to return a Flax model, got {}."),
        ("{'model': model, 'arg': 1}", "the command knows from `{source}`, got `arg`. Did you mean `args`?"),
        (
            "1 / 0",
            "to return a model, got ZeroDivisionError: division by zero, from line 4 of `{source}`. "
            "`--traceback` shows the calls.",
        ),
    ],
)
def test_other_values_are_refused(returned: str, sentence: str, tmp_path: Path) -> None:
    source = file(tmp_path, f"def build():\n    return {returned}\n")
    with pytest.raises(BadInput) as error:
        built(source, KNOWN)
    assert sentence.replace("{source}", source) in str(error.value)


def test_a_failure_beside_the_file_names_the_line_that_failed(tmp_path: Path) -> None:
    (tmp_path / "layers_of_a_failing_net.py").write_text("def width():\n    return len(3)\n")
    source = file(
        tmp_path, "def build():\n    from layers_of_a_failing_net import width\n    return nn.Dense(width())\n"
    )
    with pytest.raises(BadInput) as error:
        built(source, KNOWN)
    assert str(error.value) == (
        f"Expected `{source}` to return a model, got TypeError: object of type 'int' has no len(), from line 2 of "
        f"`{tmp_path / 'layers_of_a_failing_net.py'}`. `--traceback` shows the calls."
    )


def test_a_failure_inside_a_package_names_the_line_that_called_it(tmp_path: Path) -> None:
    source = file(tmp_path, "import json\ndef build():\n    return json.loads(3)\n")
    with pytest.raises(BadInput, match=r"got TypeError: the JSON object must be .*, from line 5 of "):
        built(source, KNOWN)


def test_a_file_without_the_function(tmp_path: Path) -> None:
    source = file(tmp_path, "")
    with pytest.raises(BadInput) as error:
        built(source, KNOWN)
    assert str(error.value) == (
        f"Expected `{source}` to define the function `build`, got none. Define it: `def build(): return model, x`."
    )
