"""Finding comparisons: by name in `benchmarks/`, or as a Python file that defines `comparison = Comparison(...)`."""

import ast
import sys
from pathlib import Path
from types import ModuleType

from normlab.study.config import Comparison
from normlab.study.errors import BadInput, nearest, one_line

_PACKAGE = Path(__file__).resolve().parents[1]


def folders() -> list[Path]:
    """Where named comparisons are: inside the package where it was installed from a wheel, else beside it."""
    installed = [_PACKAGE / "_benchmarks", _PACKAGE / "_experiments"]
    checkout = [_PACKAGE.parent / "benchmarks", _PACKAGE.parent / "experiments"]
    return [folder for folder in installed if folder.is_dir()] or [folder for folder in checkout if folder.is_dir()]


def known() -> dict[str, Path]:
    """The named comparisons and their files."""
    files = [path for folder in folders() for path in sorted(folder.glob("*.py"))]
    return {path.stem: path for path in files if defines_comparison(path)}


def defines_comparison(path: Path) -> bool:
    """Whether a file assigns `comparison` at its top level, found without running it."""
    try:
        body = ast.parse(path.read_text("utf-8")).body
    except (SyntaxError, UnicodeDecodeError):
        return False
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return any(isinstance(target, ast.Name) and target.id == "comparison" for target in targets)


def locate(source: str) -> Path:
    """Find the file of a comparison.

    Args:
        source: A name (`batch_size`) or the path of a `.py` file.

    Raises:
        BadInput: If there is none.
    """
    path = Path(source)
    if path.suffix == ".py" or len(path.parts) > 1:
        if not path.is_file():
            raise BadInput(f"Expected the name of a comparison or a Python file, got `{source}`, which does not exist.")
        return path.resolve()
    names = known()
    if source not in names:
        raise BadInput(f"Unknown comparison `{source}`. {nearest(source, names)}")
    return names[source]


def load(source: str) -> Comparison:
    """Run the file of a comparison and return its `comparison`.

    Raises:
        BadInput: If the file is missing, fails, or defines none.
    """
    path = locate(source)
    module = ModuleType(f"normlab_comparison_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    try:
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)  # not from a cache: keys hash the source
    except Exception as error:
        raise BadInput(f"`{source}` cannot be loaded: {type(error).__name__}: {one_line(error)}") from error
    found = getattr(module, "comparison", None)
    if not isinstance(found, Comparison):
        raise BadInput(f"Expected `{source}` to define `comparison = Comparison(...)`, got {type(found).__name__}.")
    return found
