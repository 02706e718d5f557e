"""The report in a real browser: it sorts, filters, hides, downloads and prints, offline and at any width."""

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from normlab.study.analysis.analyse import analyse
from normlab.study.report import html
from tests.support.synthetic import IDENTITY, a_comparison, simulate, some_settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the path"),
]

Browser = Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    comparison = a_comparison()
    settings = some_settings(comparison)
    analysis = analyse(comparison, settings, simulate(comparison, settings))
    html.write_html(
        analysis,
        directory,
        comparison=comparison,
        settings=settings,
        identity=IDENTITY,
        command="normlab run batch_size",
        wall_seconds=252.0,
    )
    return directory


@pytest.fixture(scope="module")
def driver(folder: Path) -> Iterator[Browser]:
    """One browser for all tests; `page` loads the report afresh."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: Browser, folder: Path) -> Callable[..., Browser]:
    def load(width: int = 1280, **media: str) -> Browser:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features, "media": ""})
        driver.get((folder / "report.html").as_uri())
        return driver

    return load


def find(browser: Browser, css: str) -> Any:
    return browser.find_element("css selector", css)


def script(browser: Browser, body: str) -> Any:
    return browser.execute_script(body)


def rows(browser: Browser) -> list[list[str]]:
    """The rows of the long table that can be seen, as texts."""
    return script(
        browser,
        """return [...document.querySelectorAll("#verdicts tbody tr")].filter(row => row.offsetParent)
        .map(row => [...row.cells].map(cell => cell.innerText.trim()))""",
    )


def header(browser: Browser, name: str) -> Any:
    return browser.find_element("xpath", f"//section[@id='verdicts']//th[button[normalize-space()='{name}']]")


def press(element: Any, keys: str) -> None:
    from selenium.webdriver.common.keys import Keys

    element.send_keys(getattr(Keys, keys))


def choose(browser: Browser, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(find(browser, f"form.filter [name={name}]")).select_by_value(value)


def test_the_long_table_sorts_by_click_and_by_key(page: Callable[..., Browser]) -> None:
    browser = page()
    error = header(browser, "error")
    button = error.find_element("tag name", "button")
    button.click()
    assert error.get_attribute("aria-sort") == "ascending"
    errors = [row[4] for row in rows(browser)]
    numbers = [float(text.split("±")[0]) for text in errors if text != "invalid"]
    assert numbers == sorted(numbers) and set(errors[len(numbers) :]) == {"invalid"} and len(numbers) > 100
    press(button, "ENTER")
    assert error.get_attribute("aria-sort") == "descending"
    errors = [row[4] for row in rows(browser)]
    assert float(errors[0].split("±")[0]) == max(numbers) and errors[-1] == "invalid"
    press(header(browser, "norm").find_element("tag name", "button"), "SPACE")
    names = [row[0].removesuffix(" (flat)") for row in rows(browser)]
    assert names == sorted(names, key=str.casefold) and error.get_attribute("aria-sort") is None


def test_grids_sort_too(page: Callable[..., Browser]) -> None:
    browser = page()
    table = find(browser, "article table.grid")
    column = table.find_elements("css selector", "thead th")[1]
    column.find_element("tag name", "button").click()
    column.find_element("tag name", "button").click()
    first = table.find_elements("css selector", "tbody th")[0].text
    assert first.startswith("batch norm") and column.get_attribute("aria-sort") == "descending"


def test_the_long_table_filters(page: Callable[..., Browser]) -> None:
    browser = page()
    everything = len(rows(browser))
    assert everything == 140 and find(browser, "form.filter output").text == "140 of 270 rows"
    choose(browser, "norm", "layer")
    choose(browser, "curve", "isolated")
    shown = rows(browser)
    assert len(shown) == 10 and {(row[0], row[2]) for row in shown} == {("layer norm (flat)", "isolated")}
    choose(browser, "value", "2")
    assert {row[3] for row in rows(browser)} == {"2"} and find(browser, "form.filter output").text == "2 of 270 rows"
    find(browser, "form.filter button").click()
    assert len(rows(browser)) == everything
    choose(browser, "verdict", "better")
    assert {row[7] for row in rows(browser)} == {"better"}
    choose(browser, "verdict", "")
    find(browser, "form.filter [name=text]").send_keys("RENORM")
    assert {row[0] for row in rows(browser)} == {"batch renorm"}


def test_a_norm_is_hidden_everywhere_at_once(page: Callable[..., Browser]) -> None:
    browser = page()
    marks = "return [...document.querySelectorAll('.norm-3')].filter(e => e.getBoundingClientRect().width).length"
    before = script(browser, marks)
    box = find(browser, "input[value=norm-3]")
    box.send_keys(" ")
    assert not box.is_selected() and before > 100 and script(browser, marks) == 0
    assert "layer norm" not in {row[0] for row in rows(browser)} and len(rows(browser)) == 120
    svg = script(browser, "return document.querySelectorAll('figure svg .norm-3.off-norm').length")
    assert svg > 20
    box.click()
    assert script(browser, marks) == before


def test_a_curve_is_hidden_everywhere_at_once(page: Callable[..., Browser]) -> None:
    browser = page()
    find(browser, "input[value=curve-1]").click()
    assert {row[2] for row in rows(browser)} == {"deployed"}
    seen = [article.is_displayed() for article in browser.find_elements("css selector", "article.curve-1")]
    assert len(seen) == 8 and not any(seen)


def test_untuned_rows_are_shown_on_demand(page: Callable[..., Browser]) -> None:
    browser = page()
    assert not any("untuned" in row[0] for row in rows(browser))
    find(browser, "input[value=untuned]").click()
    assert sum("untuned" in row[0] for row in rows(browser)) == 130
    assert find(browser, "article tr.untuned").is_displayed()


def test_everything_can_be_reached_by_key_and_has_a_name(page: Callable[..., Browser]) -> None:
    browser = page()
    assert script(
        browser,
        """const named = e => e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent.trim();
        return [...document.querySelectorAll("a, button, input, select, summary, [tabindex]")].every(
          e => e.tabIndex === 0 && named(e)) && document.querySelectorAll("table:not(:has(caption))").length === 0""",
    )
    press(find(browser, "body"), "TAB")
    style = (
        "const e = document.activeElement, s = getComputedStyle(e); return [e.tagName, s.outlineStyle, s.outlineWidth]"
    )
    assert script(browser, style) == ["DIV", "solid", "2px"]
    summary = find(browser, "article details summary")
    press(summary, "ENTER")
    assert find(browser, "article details").get_attribute("open") is not None


@pytest.mark.parametrize("name", ["cells.csv", "settings.toml", "analysis.json", "error-digits-mlp-deployed.pdf"])
def test_downloads_have_the_bytes_of_the_files_beside(page: Callable[..., Browser], folder: Path, name: str) -> None:
    browser, beside = page(), next(path for path in folder.rglob(name) if path.parent.name != "downloads")
    link = find(browser, f"a[download='{name}']")
    script_click = "arguments[0].scrollIntoView(); arguments[0].click()"
    browser.execute_script(script_click, link)
    from selenium.webdriver.support.ui import WebDriverWait

    landed = folder / "downloads" / name
    WebDriverWait(browser, 20).until(lambda _: landed.exists() and landed.stat().st_size == beside.stat().st_size)
    assert landed.read_bytes() == beside.read_bytes()


def test_nothing_is_requested_and_nothing_is_complained_about(page: Callable[..., Browser]) -> None:
    browser = page()
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.refresh()
    find(browser, "input[value=norm-1]").click()
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1920])
def test_the_page_never_scrolls_sideways(page: Callable[..., Browser], width: int) -> None:
    browser = page(width)
    script(browser, "for (const each of document.querySelectorAll('details')) each.open = true")
    assert script(browser, "return [document.documentElement.scrollWidth, innerWidth]") == [width, width] or (
        script(browser, "return document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    )


def contrast(first: str, second: str) -> float:
    """The WCAG contrast ratio of two colours as `rgb(...)`."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page: Callable[..., Browser], scheme: str) -> None:
    browser = page(prefers_color_scheme=scheme)
    paper = script(browser, "return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)")
    for css in ("body", ".note", "td .better", "td .worse", "a", "figure svg", ".half"):
        color = script(browser, f"return getComputedStyle(document.querySelector('{css}')).color")
        assert contrast(color, paper) >= 4.5, css
    ink = script(browser, "return getComputedStyle(document.querySelector('figure svg text')).fill")
    assert contrast(ink, paper) >= 4.5


def test_print_shows_all_rows_and_no_controls(page: Callable[..., Browser]) -> None:
    browser = page()
    find(browser, "input[value=norm-3]").click()
    choose(browser, "norm", "rms")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert len(rows(browser)) == 270
    assert not find(browser, "form.toggles").is_displayed() and not find(browser, ".files").is_displayed()
    assert (
        script(browser, "return document.querySelector('article details table').getBoundingClientRect().height") > 100
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert base64.b64decode(browser.print_page()).startswith(b"%PDF")


def test_without_scripts_everything_is_there(page: Callable[..., Browser]) -> None:
    browser = page()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        assert len(browser.find_elements("css selector", "#verdicts tbody tr")) == 270
        assert all(row.is_displayed() for row in browser.find_elements("css selector", "article tr.untuned")[:10])
        assert not find(browser, "form.toggles").is_displayed()
        assert browser.find_elements("css selector", "th button") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


BOXES = """
const box = css => document.querySelector(css).getBoundingClientRect();
const all = [".headline", ".first figure svg", ".first table"].map(box);
return all.map(found => [found.left, found.top, found.right, found.bottom]);
"""


def test_the_first_screen_has_the_sentence_the_figure_beside_it_and_the_table(page: Callable[..., Browser]) -> None:
    sentence, figure, table = script(page(1280), BOXES)
    assert sentence[2] <= figure[0] and table[2] <= figure[0] and sentence[3] <= table[1]
    assert figure[3] <= 900 and table[1] <= 450
    sentence, figure, table = script(page(390), BOXES)
    assert sentence[3] <= figure[1] and figure[3] <= table[1]
    assert figure[1] < 844


TEXTS = """
for (const each of document.querySelectorAll("details")) each.open = true;
return [...document.querySelectorAll("figure svg")].flatMap(svg => {
  const whole = svg.getBoundingClientRect(), scale = svg.getScreenCTM().a;
  return [...svg.querySelectorAll("text")].map(text => {
    const box = text.getBoundingClientRect();
    const sides = [whole.left - box.left, box.right - whole.right, whole.top - box.top, box.bottom - whole.bottom];
    return [text.textContent, scale * parseFloat(getComputedStyle(text).fontSize), Math.max(...sides)];
  });
})
"""


def test_text_of_figures_is_legible_and_within_them_on_a_telephone(page: Callable[..., Browser]) -> None:
    texts = script(page(390), TEXTS)
    assert len(texts) > 200
    assert [(text, size) for text, size, _ in texts if size < 9] == []
    assert [text for text, _, outside in texts if outside > 2] == []


def test_tables_that_scroll_show_a_shadow(page: Callable[..., Browser]) -> None:
    browser = page(390)
    wide = find(browser, ".first .table .scroll")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", wide)
    shadows = browser.execute_script("return getComputedStyle(arguments[0]).backgroundAttachment", wide)
    assert shadows == "local, local, scroll, scroll"
