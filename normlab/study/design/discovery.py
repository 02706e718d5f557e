"""Finding comparisons: by name in `benchmarks/`, or as a Python file that defines `comparison = Comparison(...)`."""

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

from normlab.errors import BadInput, nearest, one_line
from normlab.extras import remedy_for
from normlab.study.design import imports
from normlab.study.design.comparison import Comparison

_PACKAGE = Path(__file__).resolve().parents[2]


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
    body = imports.parsed(path).body
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


def files(source: str) -> list[Path]:
    """The file of a comparison and those beside it that it imports, directly or not, wherever in the text.

    Found without running them, so that every process finds the same. Of a package all files count. What is imported in
    another way is found by `code`.
    """
    first = locate(source)
    found, waiting = {first}, [first]
    while waiting:
        names = {name.partition(".")[0] for name in imports.mentioned_in(waiting.pop())}
        beside = {file for name in names for file in _beside(first.parent, name)}
        waiting += beside - found
        found |= beside
    return [first, *sorted(found - {first})]


def load(source: str) -> Comparison:
    """Run the file of a comparison and return its `comparison`.

    The file may import what lies beside it, now or while its functions run (see `importing`); those files are run again
    with it.

    Raises:
        BadInput: If the file is missing, fails, or defines none.
    """
    path = locate(source)
    for file in files(source)[1:]:
        sys.modules.pop(_module_name(file, path.parent), None)
    _forget_norms_of(path)
    imports.begin(path)
    before = _norms()
    try:
        with importing(path):
            module = _executed(path)
    except Exception as error:
        raise BadInput(f"`{source}` cannot be loaded: {one_line(error)}{remedy_for(error)}") from error
    finally:
        _NORMS[path] = _norms() - before
    found = getattr(module, "comparison", None)
    if not isinstance(found, Comparison):
        raise BadInput(f"Expected `{source}` to define `comparison = Comparison(...)`, got {type(found).__name__}.")
    return found


@contextmanager
def importing(path: Path | None) -> Iterator[None]:
    """Look imports up in the folder of a comparison first, as for a script, while code of it runs.

    Args:
        path: The comparison's file; `None` where there is none.
    """
    if path is None:
        yield
        return
    folder = str(path.parent)
    at = sys.path.index(folder) if folder in sys.path else None
    if at is not None:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    try:
        yield
    finally:  # what the code has added to the path stays
        with suppress(ValueError):
            sys.path.remove(folder)
        if at is not None:
            sys.path.insert(at, folder)


class _Uncached(SourceFileLoader):
    """Loads what is in a file and never what was compiled before, since keys hash the source."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _executed(path: Path) -> ModuleType:
    """Run a file as a module of its own."""
    name = f"normlab_comparison_{path.stem}"
    loader = _Uncached(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    loader.exec_module(module)
    return module


def code(source: str, also: Iterable[str] = ()) -> dict[str, Path]:
    """Find the user's files that decide the numbers of a comparison, by name.

    These are `files`, and what this process has run since it loaded the comparison, in whatever way and wherever it
    lies, unless it is part of Python, of normlab, or installed. To be asked after every configuration has been traced.

    Args:
        source: Of the comparison.
        also: Names of further files, as another process found them; those that are not here are left out.

    Returns:
        For each file its path in the comparison's folder, else the name of its module, so that a folder that is moved
        has the same names.
    """
    path = locate(source)
    found = imports.named([*files(source), *imports.run_by(path)], path)
    for name in also:
        if name not in found and (file := imports.find(name, path)):
            found[name] = file
    return dict(sorted(found.items()))


def beside(source: str, recorded: Iterable[str]) -> dict[str, Path]:
    """Find files of a comparison by name as `code` does, without importing anything: those in its folder alone.

    Args:
        source: Of the comparison.
        recorded: Names of files, which a folder may have chosen.
    """
    folder = locate(source).parent
    inside = {name: (folder / name).resolve() for name in recorded if name.endswith(".py")}
    found = {name: file for name, file in inside.items() if file.is_relative_to(folder) and file.is_file()}
    return dict(sorted((imports.named(files(source), locate(source)) | found).items()))


_NORMS: dict[Path, set[str]] = {}
"""Names of norms that files have registered: a file that is loaded again may register them again."""


def _norms() -> set[str]:
    from normlab import norms

    return set(norms.names())


def _forget_norms_of(path: Path) -> None:
    from normlab import norms

    for name in _NORMS.pop(path, set()) & _norms():
        norms.unregister(name)


def _beside(folder: Path, name: str) -> list[Path]:
    """The files in a folder that `import name` runs or may run; this package's own are not a comparison's."""
    if folder / name == _PACKAGE:
        return []
    if (folder / name / "__init__.py").is_file():
        return sorted((folder / name).rglob("*.py"))
    return [folder / f"{name}.py"] if (folder / f"{name}.py").is_file() else []


def _module_name(file: Path, folder: Path) -> str:
    return ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
