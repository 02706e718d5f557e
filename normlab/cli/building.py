"""Load a model from a Python file of the user's: `FILE.py:build` names a function that makes the model."""

import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from flax import linen as nn
from flax import nnx

from normlab.errors import BadInput, Fault, nearest, one_line
from normlab.expect import refusal
from normlab.study.design.discovery import executed
from normlab.study.design.imports import is_users
from normlab.tools.fold import FoldError

__all__ = ["Built", "built", "described", "of_users"]

_DEFAULT = "build"
_FORMS = "Return a model and the inputs of a call, as in `return model, x`, or a dict with `model`, `args` and others."


@dataclass(frozen=True)
class Built:
    """A model and a call of it, as a function of the user's returned them.

    Attributes:
        file: The file, as it was given.
        function: Name of the function.
        form: Whether it returned a model alone, a tuple with the inputs of a call, or a dictionary of keywords.
        keywords: The keywords; those of a tuple are `model` and `args`.
    """

    file: str
    function: str
    form: Literal["model", "inputs", "keywords"]
    keywords: Mapping[str, object]


def built(source: str, known: Collection[str]) -> Built:
    """Call a function of a file that returns a model and a call of it.

    The function takes no arguments and returns one of three: a model; a tuple of a model and the inputs of a call; or
    a dictionary of keywords, `model` among them. The file's folder stays on `sys.path`, as for a script.

    Args:
        source: `FILE.py:FUNCTION`, or `FILE.py` for the function `build`.
        known: Keywords that a dictionary may have.

    Raises:
        BadInput: If the file or the function is missing, fails, or returns something else.
    """
    path, name = _located(source)
    returned = _called(_function(path, name), source)
    if isinstance(returned, tuple) and returned:
        found = Built(str(path), name, "inputs", {"model": returned[0], "args": returned[1:]})
    elif isinstance(returned, Mapping):
        found = Built(str(path), name, "keywords", {str(key): value for key, value in returned.items()})
    else:
        found = Built(str(path), name, "model", {"model": returned})
    if not isinstance(found.keywords.get("model"), nn.Module | nnx.Module):
        raise refusal(f"`{source}` to return a Flax model", found.keywords.get("model", returned), _FORMS)
    for key in found.keywords:
        if key not in known:
            raise BadInput(
                f"Expected keywords that the command knows from `{source}`, got `{key}`. {nearest(key, known)}"
            )
    return found


def _located(source: str) -> tuple[Path, str]:
    """Return the file and the name of the function."""
    file, colon, name = source.rpartition(":")
    if not colon or not name.isidentifier():
        file, name = source, _DEFAULT
    path = Path(file)
    if not path.is_file():
        raise refusal("a Python file and its function, as in `net.py:build`", source, f"There is no file `{file}`.")
    return path, name


def _function(path: Path, name: str) -> Callable[[], object]:
    """Run a file and return one of its functions."""
    try:
        module = _executed(path.resolve())
    except (Exception, SystemExit) as error:
        raise BadInput(f"Expected the file `{path}` to run, got {described(error, str(path))}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = nearest(name, functions, f"Define it: `def {name}(): return model, x`.")
        raise BadInput(f"Expected `{path}` to define the function `{name}`, got none. {hint}")
    return function


def _called(function: Callable[[], object], source: str) -> object:
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise BadInput(
            f"Expected `{source}` to return a model, got {described(error, source)}. `--traceback` shows the calls."
        ) from error


@contextmanager
def of_users(made: Built) -> Iterator[None]:
    """Report a failure of the user's model as such, with the line of the user's code; other failures pass.

    Args:
        made: The model.

    Raises:
        BadInput: If the model fails.
    """
    try:
        yield
    except BadInput as error:
        cause = error.__cause__
        if cause is None or not (place := _place(cause, made.file)):
            raise
        raise BadInput(f"{error} It came from {place}.") from cause
    except (Fault, FoldError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if not _place(error, made.file):
            raise
        raise BadInput(
            f"Expected the model of `{made.file}:{made.function}` to run with its inputs, got "
            f"{described(error, made.file)}. Correct it, or give other inputs; `--traceback` shows the calls."
        ) from error


def described(error: BaseException, source: str) -> str:
    """Return the kind of an error, its message, and the line of the user's code that it came from.

    Args:
        error: The error.
        source: `FILE.py:FUNCTION`, or `FILE.py`.
    """
    text, place = one_line(error, kind=False).rstrip("."), _place(error, source)
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said}, from {place}" if place else said


def _place(error: BaseException, source: str) -> str:
    """Return the last line of the user's code on the way to an error; empty where there is none."""
    file = Path(source) if Path(source).is_file() else Path(source.rpartition(":")[0])
    own = file.resolve()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        at = Path(frame.filename)
        if at.is_file() and is_users(at.resolve(), own.parent):
            return f"line {frame.lineno} of `{file if at.resolve() == own else at}`"
    return ""


def _executed(path: Path) -> ModuleType:
    """Execute a file as a module, with its folder first in `sys.path`."""
    sys.path.insert(0, str(path.parent))
    return executed(path, "normlab_build")
