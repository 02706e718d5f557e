"""The tutorial notebook in a real kernel."""

import os

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.paths import ENVIRONMENT, ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
STOP = """
import os, signal, threading, time
from pathlib import Path

def press_stop():
    while len(list(Path("stopped").glob("runs/??/*.json"))) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press_stop).start()
stopped = study.run(comparison, seeds=1000, output="stopped")
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The outputs of the tutorial notebook, and of two cells more in which someone presses stop."""
    folder = tmp_path_factory.mktemp("notebook")
    made = jupytext.read(TUTORIALS / "notebook.md")
    made.cells += [nbformat.v4.new_code_cell(STOP), nbformat.v4.new_code_cell("stopped")]
    client = NotebookClient(made, timeout=300, resources={"metadata": {"path": str(folder)}})
    return client.execute(env={**os.environ, **ENVIRONMENT, "NORMLAB_CACHE": str(folder / "cache")})


def outputs(notebook: nbformat.NotebookNode, source: str) -> list[nbformat.NotebookNode]:
    """The outputs of the cell with some code."""
    (cell,) = (cell for cell in notebook.cells if cell.source.strip() == source.strip())
    return cell.outputs


def test_progress_is_one_output_that_is_updated(notebook: nbformat.NotebookNode) -> None:
    shown = outputs(notebook, "result = study.run(comparison, seeds=10)")
    (bar,) = (output for output in shown if output.output_type == "display_data")
    assert "4/4 configurations" in bar.data["text/plain"]
    assert "4/4 configurations" in bar.data["text/html"]
    text = "".join(output.text for output in shown if output.output_type == "stream")
    assert "[  4/4] mlp  deployed" in text


def test_the_result_is_shown_with_headline_figure_and_table(notebook: nbformat.NotebookNode) -> None:
    (shown,) = outputs(notebook, "result")
    assert shown.data["text/plain"].startswith("<Result of wine: ")
    html = shown.data["text/html"]
    assert html.index("<strong>") < html.index("<svg") < html.index("<table>")


def test_tables_are_shown_once_as_html_and_printed_as_text(notebook: nbformat.NotebookNode) -> None:
    (shown,) = outputs(notebook, "result.table()")
    assert "<table>" in shown.data["text/html"]
    (printed,) = outputs(notebook, "print(result.table())")
    assert "mlp, deployed: test error in %" in printed.text
    (figure,) = outputs(notebook, "result.plot()")
    assert "currentColor" in figure.data["text/html"]


def test_stop_keeps_the_finished_runs(notebook: nbformat.NotebookNode) -> None:
    assert "the same call resumes from `stopped`" in str(outputs(notebook, STOP))
    (shown,) = outputs(notebook, "stopped")
    done = int(shown.data["text/plain"].split()[3])
    assert 3 <= done < 2000
