"""The built site: complete, without parts from elsewhere, and searchable from the file system."""

import dataclasses
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from normlab import linen
from tests.support.documents import ENTRIES
from tests.support.paths import ENVIRONMENT, ROOT

if TYPE_CHECKING:
    import griffe

pytest.importorskip("material", reason="`make docs` installs the extra `docs`")
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SHOWN = ("normlab", "docs", "benchmarks", "experiments")


class Page(HTMLParser):
    """A page of the site.

    Attributes:
        anchors: Anchors of the page.
        links: Targets of its links.
        parts: Addresses of the files that a browser loads with it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.parts: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if "href" in given:
            (self.links if tag == "a" else self.parts).add(given["href"])
        if "src" in given:
            self.parts.add(given["src"])


def built() -> Path | None:
    """The site of `make docs`; `None` if there is none, or a file that it may show is newer."""
    stamp = ROOT / "build" / "site.stamp"  # `make docs` succeeded
    shown = [*ROOT.glob("*.md"), *(p for folder in SHOWN for p in (ROOT / folder).rglob("*") if p.suffix != ".pyc")]
    times = [path.stat().st_mtime for path in (ROOT / "mkdocs.yml", *shown) if path.is_file()]
    return ROOT / "build" / "site" if stamp.exists() and stamp.stat().st_mtime > max(times) else None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if found := built():
        return found
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**ENVIRONMENT, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # that one is for servers
    assert len(found) > 30
    return found


@pytest.fixture(scope="module")
def package() -> "griffe.Module":
    import griffe

    extensions = griffe.load_extensions(str(ROOT / "docs" / "hooks" / "docstrings.py"))
    found = griffe.load("normlab", search_paths=[ROOT], extensions=extensions)
    assert isinstance(found, griffe.Module)
    return found


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def test_nothing_comes_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert {(path.name, part) for path, page in pages.items() for part in page.parts if is_elsewhere(part)} == set()
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", style.read_text("utf-8")), style


def test_links_lead_to_pages_and_anchors(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.links | page.parts:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(site) and target.exists(), f"{path.relative_to(site)}: {address}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: {address}"


def test_every_public_name_has_an_anchor(site: Path, pages: dict[Path, Page]) -> None:
    anchors = {anchor for path, page in pages.items() if path.parent.name == "reference" for anchor in page.anchors}
    assert set(ENTRIES) - anchors == set()


def test_the_page_of_the_command_line_lists_every_option(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text("utf-8")
    assert all(f"<code>{option}" in page for option in ("--tier NAME", "--batch-sizes VALUE", "--trust"))


NO_FIELDS = {"RNN", "StandardizedConv", "StandardizedDense", "qk_norm", "trainable"}
"""Functions, and classes whose fields are those of Flax's."""


@pytest.mark.parametrize("name", sorted({*linen.__all__} - NO_FIELDS))
def test_the_signature_of_a_linen_module_has_its_fields(package: "griffe.Module", name: str) -> None:
    fields = [field.name for field in dataclasses.fields(getattr(linen, name)) if field.name not in ("parent", "name")]
    found = [parameter.name for parameter in package["linen"][name].parameters if parameter.name != "self"]
    assert found == fields


def test_packing_a_folder_gives_the_same_archive(tmp_path: Path) -> None:
    spec = spec_from_file_location("gallery", ROOT / "docs" / "hooks" / "gallery.py")
    assert spec is not None and spec.loader is not None
    gallery = module_from_spec(spec)
    spec.loader.exec_module(gallery)
    archive = ROOT / "docs" / "gallery" / "batch_size.tar.xz"
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "runs", filter="data")
    gallery.pack(tmp_path / "runs", tmp_path / "again.tar.xz")
    with lzma.open(tmp_path / "again.tar.xz") as again, lzma.open(archive) as first:
        assert again.read() == first.read()


@pytest.fixture
def browser(site: Path) -> Iterator[object]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver on the path")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        yield driver


def test_search_finds_pages_from_the_file_system(site: Path, browser: object) -> None:
    from selenium.webdriver import Chrome
    from selenium.webdriver.support.ui import WebDriverWait

    assert isinstance(browser, Chrome)
    browser.get((site / "reference" / "norms.html").as_uri())
    browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    query = browser.find_element("name", "query")
    WebDriverWait(browser, 20).until(lambda _: query.is_displayed())
    query.send_keys("batch renorm")
    found = WebDriverWait(browser, 20).until(lambda b: b.find_elements("css selector", ".md-search-result__link"))
    assert all(one.get_attribute("href").startswith(site.as_uri()) for one in found)
    assert browser.get_log("browser") == []
