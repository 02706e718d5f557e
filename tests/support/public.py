"""The public names of the package, as type checkers see them, and the page that lists them.

`python -m tests.support.public` writes the page.
"""

import ast
import importlib
from collections.abc import Iterator
from types import ModuleType

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "api.md"
MODULES = (
    "normlab",
    "normlab.functional",
    "normlab.linen",
    "normlab.nnx",
    "normlab.norms",
    "normlab.kernels",
    "normlab.models",
    "normlab.models.nnx",
    "normlab.introspect.pure",
    "normlab.introspect.capture",
    "normlab.introspect.statistics",
    "normlab.tools",
    "normlab.tools.averaging",
    "normlab.tools.replicas",
    "normlab.tools.export",
    "normlab.doctor",
    "normlab.river",
    "normlab.study",
    "normlab.study.streams",
    "normlab.errors",
)
SINGLE = {"normlab.study.problems.zoo": ["problems"], "normlab.study.training.prequential": ["test_then_train"]}
"""Public functions of modules whose other names are private."""

HEAD = """# Public API

Names listed here are stable: a release that removes or changes one says so in the changelog. Everything else is
private, whether or not its name starts with an underscore, and may change in any release.

| module | names |
| --- | --- |
"""


def tree_of(module: ModuleType) -> ast.Module:
    """Parse the source of a module."""
    return ast.parse((ROOT / str(module.__file__)).read_text())


def imports(statements: list[ast.stmt]) -> Iterator[tuple[ast.ImportFrom, ast.alias]]:
    """Yield the names that statements import from modules."""
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            yield from ((statement, alias) for alias in statement.names)


def for_type_checkers(module: ModuleType) -> dict[str, str]:
    """Return the names that a module imports for type checkers alone, with the modules they come from."""
    blocks = [node for node in tree_of(module).body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node)]
    return {alias.name: str(node.module) for block in blocks for node, alias in imports(block.body)}


def names(module: ModuleType) -> list[str]:
    """Return the public names: `__all__`, else definitions without an underscore and names imported as themselves."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    again = [alias.name for _, alias in imports(tree_of(module).body) if alias.asname == alias.name]
    defined = [node.name for node in tree_of(module).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in again + defined if not name.startswith("_")]


def page() -> str:
    """Return the text of the page."""
    listed = {module: names(importlib.import_module(module)) for module in MODULES} | SINGLE
    rows = (f"| `{module}` | {', '.join(f'`{name}`' for name in sorted(found))} |" for module, found in listed.items())
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
