"""Hook of the site: pages from elsewhere in the repository, and the page of the command line.

A link from a page to a file outside of `docs` leads to a copy of the file under `source/`, so that the site needs
nothing but itself.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from command_line import command_line
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=(?:#[^)\s]*)?\))")
"""Target of a link to a file, without its anchor."""

TOP_LEVEL = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Places in the site of files of the top level that are pages."""

HOME = {"README.md": "index.md"}
"""The page that stands for the README."""

SOURCE = "source/"
COPIED = """---
search:
  exclude: true
hide:
  - navigation
---

"""
"""Head of a copy: the navigation does not list it, and its room is the page's, whose tables are wide."""

LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "sh"}
"""Files that become pages, beside Markdown; others are copied as they are."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file that a page links to."""
    root = Path(config.config_file_path).parent
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    texts = {path: (root / path).read_text("utf-8") for path in TOP_LEVEL}
    for path, text in texts.items():
        files.append(File.generated(config, TOP_LEVEL[path], content=text))
    pages = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    waiting = [target for path, text in {**pages, **texts}.items() for target in _targets(path, text)]
    while waiting:
        path = waiting.pop()
        uri = _place(path)
        if uri.startswith(SOURCE) and files.get_file_from_path(uri) is None and (root / path).is_file():
            files.append(_copy(config, root / path, path))
            if path.endswith(".md"):
                waiting.extend(_targets(path, (root / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links out of `docs` lead to the copies."""
    uri = page.file.src_uri
    origin = next((path for path, place in TOP_LEVEL.items() if place == uri), f"docs/{uri}")
    if uri.startswith(SOURCE):
        origin = uri.removeprefix(SOURCE)

    def target(match: re.Match[str]) -> str:
        return posixpath.relpath(_place(_resolved(origin, match[1])), posixpath.dirname(uri) or ".")

    return LINK.sub(target, markdown)


def _targets(origin: str, text: str) -> Iterator[str]:
    return (_resolved(origin, link) for link in LINK.findall(text))


def _resolved(origin: str, link: str) -> str:
    """Resolve a link of a file of the repository to a path from the top level."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def _place(path: str) -> str:
    """Return the place in the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    page = f"{path}.md" if Path(path).suffix in LANGUAGES or "." not in Path(path).name else path
    return TOP_LEVEL.get(path, SOURCE + page)


def _copy(config: MkDocsConfig, file: Path, path: str) -> File:
    uri = _place(path)
    if not uri.endswith(".md"):
        return File.generated(config, uri, abs_src_path=str(file))
    text = file.read_text("utf-8")
    if not path.endswith(".md"):
        text = f"# {path}\n\n~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{text}~~~~~~\n"
    return File.generated(config, uri, content=f"{COPIED}{text}")
