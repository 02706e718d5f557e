"""Find comparisons: by name in `benchmarks/`, or as a Python file that defines `comparison = Comparison(...)`."""

import ast
import sys
from collections.abc import Generator, Iterable
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
    """List the folders of named comparisons: inside a package installed from a wheel, else beside the package."""
    installed = [_PACKAGE / "_benchmarks"]
    checkout = [_PACKAGE.parent / "benchmarks", _PACKAGE.parent / "experiments"]
    return [folder for folder in installed if folder.is_dir()] or [folder for folder in checkout if folder.is_dir()]


def known() -> dict[str, Path]:
    """Find the named comparisons and their files."""
    files = [path for folder in folders() for path in sorted(folder.glob("*.py"))]
    return {path.stem: path for path in files if defines_comparison(path)}


def defines_comparison(path: Path) -> bool:
    """Check whether a file assigns `comparison` at its top level, without running the file."""
    body = imports.parsed(path).body
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return any(isinstance(target, ast.Name) and target.id == "comparison" for target in targets)


def locate(source: str) -> Path:
    """Find the file of a comparison.

    Args:
        source: A name (`batch_size`) or the path of a `.py` file.

    Raises:
        BadInput: If there is no such comparison.
    """
    path = Path(source)
    if path.suffix == ".py" or len(path.parts) > 1:
        if not path.is_file():
            hint = nearest(path.stem, known(), "Give its path, or a name of `normlab list`.")
            raise BadInput(
                f"Expected the name of a comparison or a Python file, got `{source}`, which does not exist. {hint}"
            )
        return path.resolve()
    names = known()
    if source not in names:
        raise BadInput(f"Unknown comparison `{source}`. {nearest(source, names)}")
    return names[source]


def files(source: str) -> list[Path]:
    """Find the file of a comparison and the files beside it that it imports, directly or not, anywhere in the text.

    No file is run, so that every process finds the same ones. All files of a package count. `code` finds files that are
    imported in other ways.
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

    The file may import modules beside it, now or while its functions run (see `importing`); those modules are run again
    with it.

    Raises:
        BadInput: If the file is missing, fails, or defines no comparison.
    """
    path = locate(source)
    for file in files(source)[1:]:
        sys.modules.pop(_module_name(file, path.parent), None)
    _forget_norms_of(path)
    imports.begin(path)
    before = _norms()
    try:
        with importing(path):
            module = executed(path)
    except Exception as error:
        raise BadInput(f"`{source}` cannot be loaded: {one_line(error)}{remedy_for(error)}") from error
    finally:
        _NORMS[path] = _norms() - before
    found = getattr(module, "comparison", None)
    if not isinstance(found, Comparison):
        raise BadInput(f"Expected `{source}` to define `comparison = Comparison(...)`, got {type(found).__name__}.")
    return found


@contextmanager
def importing(path: Path | None) -> Generator[None]:
    """Search imports in the folder of a comparison first, like those of a script, while its code runs.

    Args:
        path: The comparison's file; `None` for a comparison object.
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
    finally:  # additions of the code to the path stay
        with suppress(ValueError):
            sys.path.remove(folder)
        if at is not None:
            sys.path.insert(at, folder)


class _Uncached(SourceFileLoader):
    """Loads the source of a file and never its bytecode, since keys hash the source."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def executed(path: Path, prefix: str = "normlab_comparison") -> ModuleType:
    """Execute a file as a module of its own, and write no bytecode beside it.

    Args:
        path: The file.
        prefix: Start of the module's name.
    """
    name = f"{prefix}_{path.stem}"
    loader = _Uncached(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    loader.exec_module(module)
    return module


def code(source: str, also: Iterable[str] = ()) -> dict[str, Path]:
    """Find the user's files that decide the numbers of a comparison, by name.

    These are `files`, and all files that this process has run since it loaded the comparison, except for those of
    Python, of normlab, or of installed packages. Call this after every configuration has been traced.

    Args:
        source: Name or path of the comparison.
        also: Names of further files that another process found; files that are missing here are left out.

    Returns:
        The files by their path in the comparison's folder, else by the name of their module, so that a moved folder has
        the same names.
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
        source: Name or path of the comparison.
        recorded: Names of files, from an untrusted folder.
    """
    folder = locate(source).parent
    inside = {name: (folder / name).resolve() for name in recorded if name.endswith(".py")}
    found = {name: file for name, file in inside.items() if file.is_relative_to(folder) and file.is_file()}
    return dict(sorted((imports.named(files(source), locate(source)) | found).items()))


_NORMS: dict[Path, set[str]] = {}
"""Names of the norms that files have registered: a file that is loaded again may register them again."""


def _norms() -> set[str]:
    from normlab import norms

    return set(norms.names())


def _forget_norms_of(path: Path) -> None:
    from normlab import norms

    for name in _NORMS.pop(path, set()) & _norms():
        norms.unregister(name)


def _beside(folder: Path, name: str) -> list[Path]:
    """List the files in a folder that `import name` may run, without those of this package."""
    if folder / name == _PACKAGE:
        return []
    if (folder / name / "__init__.py").is_file():
        return sorted((folder / name).rglob("*.py"))
    return [folder / f"{name}.py"] if (folder / f"{name}.py").is_file() else []


def _module_name(file: Path, folder: Path) -> str:
    return ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
