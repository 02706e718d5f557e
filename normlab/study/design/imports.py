"""Find the user's files that a comparison runs, in whatever way it imports them, while this process runs it."""

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
COMPARISONS = ("_benchmarks",)
"""Folders of comparisons in a package installed from a wheel: their files are user files when they are run."""

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages identified by their versions, also where they are imported from a checkout."""

_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of installed packages."""

COMPUTED = "*"

_RUN: list[str] = []
"""Names of files whose code this process has run since it loaded its first comparison, in that order."""

_SINCE: dict[Path, int] = {}
"""Length of `_RUN` when a comparison was last loaded or queried."""

_OF: dict[Path, dict[Path, None]] = {}
"""The user's files that a comparison has run so far."""


def begin(comparison: Path) -> None:
    """Start to note the files that this process runs, and unload modules beside the comparison that it ran before.

    An audit hook of Python reports every file whose code is run, also files that are not in `sys.modules`.
    """
    _watch()
    beside = {file for file in _OF.get(comparison, ()) if file.is_relative_to(comparison.parent)}
    for name, file in _modules().items():
        if file in beside and file != comparison:
            sys.modules.pop(name, None)
    _SINCE[comparison] = len(_RUN)


def run_by(comparison: Path, *, mentioned: bool = True) -> list[Path]:
    """Find the user's files that this process has run since it loaded a comparison.

    Args:
        comparison: The file of the comparison.
        mentioned: Whether to add modules that these files import by name and this process had imported before.
    """
    found = _OF.setdefault(comparison, {})
    new = dict.fromkeys(_RUN[_SINCE.get(comparison, len(_RUN)) :])
    if comparison in _SINCE:
        _SINCE[comparison] = len(_RUN)
    found |= {file: None for name in new if (file := _file(name)) and is_users(file, comparison.parent)}
    return list(dict.fromkeys([*found, *(_mentioned([comparison, *found], comparison.parent) if mentioned else [])]))


def named(files: Iterable[Path], comparison: Path) -> dict[str, Path]:
    """Name files: by the path in the comparison's folder, else by the module, else by the whole path."""
    folder = comparison.parent
    names = {file: name for name, file in _modules().items()}
    return {
        file.relative_to(folder).as_posix() if file.is_relative_to(folder) else names.get(file, file.as_posix()): file
        for file in files
    }


def find(name: str, comparison: Path) -> Path | None:
    """Find the file to which `named` gives a name; `None` where there is none here."""
    if (comparison.parent / name).is_file():
        return comparison.parent / name
    try:
        spec = find_spec(name)
    except Exception:  # of its parent packages, which `find_spec` imports
        return None
    return _file(spec.origin) if spec and spec.origin else None


def mentioned_in(path: Path, module: str = "") -> Iterator[str]:
    """Yield the names of all modules that a file imports anywhere, also by `importlib.import_module("name")`.

    `COMPUTED` stands for a name that is no constant.

    Args:
        path: The file.
        module: The name of its module, to resolve relative imports; for a package with `.__init__` at the end.
    """
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, module.rpartition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield _constant(node.args[0]) if node.args else COMPUTED


def parsed(path: Path) -> ast.Module:
    """Parse a file; return an empty tree for invalid code, which loading the file will report."""
    try:
        return ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _constant(name: ast.expr) -> str:
    constant = name.value if isinstance(name, ast.Constant) else None
    return constant if isinstance(constant, str) and not constant.startswith(".") else COMPUTED


def _imported_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    name = "." * node.level + (node.module or "")
    if node.level:
        try:
            name = resolve_name(name, package)
        except ImportError:  # beyond the top, which running the file will report
            return
    yield name
    yield from (f"{name}.{alias.name}" for alias in node.names)


def _mentioned(files: Iterable[Path], folder: Path) -> list[Path]:
    """List the user's loaded modules that files import, directly or not; for a computed name all in a folder."""
    modules = _modules()
    names = {file: name for name, file in modules.items()}
    any_name = {name for name, file in modules.items() if file.is_relative_to(folder)}
    found, waiting = dict[Path, None](), list(files)
    while waiting:
        file = waiting.pop()
        own = names.get(file, "")
        for name in mentioned_in(file, f"{own}.__init__" if file.stem == "__init__" else own):
            parents = [name[:end] for end, letter in enumerate(f"{name}.") if letter == "."]
            for module in any_name if name == COMPUTED else parents:
                imported = modules.get(module)
                if imported and imported not in found and imported.is_file() and is_users(imported, folder):
                    found[imported] = None
                    waiting.append(imported)
    return list(found)


def _modules() -> dict[str, Path]:
    """Map the names of loaded modules to their files, without the main script."""
    found = {name: _file_of(module) for name, module in list(sys.modules.items())}
    mains = ("__main__", "__mp_main__")
    return {name: file for name, file in found.items() if file and name not in mains}


def _file_of(module: object) -> Path | None:
    """Return the file of a module; `None` where it has none, like a namespace package."""
    try:  # not by `getattr`, which would run a `__getattr__` of the module
        name = object.__getattribute__(module, "__dict__").get("__file__")
    except AttributeError:
        return None
    return Path(name) if isinstance(name, str) else None


def _file(name: str) -> Path | None:
    """Find the file of a code object by its name, or the archive that contains it; `None` where there is none."""
    path = Path(name).absolute()
    return next((file for file in (path, *path.parents) if file.is_file()), None)


def is_users(file: Path, folder: Path) -> bool:
    """Check that a file is neither part of Python, nor of this package, nor installed."""
    within = file.relative_to(folder) if file.is_relative_to(folder) else file
    if not _INSTALLED.isdisjoint(within.parts):
        return False
    if any(place.is_relative_to(library) for place in (file, file.resolve()) for library in _standard_library()):
        return False
    modules = [_file_of(sys.modules.get(name)) for name in _VERSIONED]
    if any(module and file.is_relative_to(module.parent) for module in modules):
        return False
    of_package = file.resolve().is_relative_to(_PACKAGE)
    return not of_package or any(file.resolve().is_relative_to(_PACKAGE / name) for name in COMPARISONS)


@cache
def _standard_library() -> tuple[Path, ...]:
    paths = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    return tuple(dict.fromkeys([*paths, *(path.resolve() for path in paths)]))


@cache
def _watch() -> None:
    """Note the files that are run until this process ends: Python cannot remove an audit hook."""
    run = _RUN

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "exec":
            name = getattr(arguments[0], "co_filename", None)
        else:
            name = arguments[1] if event == "import" else None
        if isinstance(name, str) and not name.startswith("<"):  # `import` has a file for compiled extensions alone
            run.append(name)

    sys.addaudithook(note)
