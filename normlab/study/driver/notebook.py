"""Progress in a notebook: one output of the cell that is updated in place, without widgets."""

from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

__all__ = ["NotebookProgress", "in_notebook"]

_INTERVAL = 0.2


def in_notebook() -> bool:
    """Check whether output goes to the cell of a notebook."""
    return Console().is_jupyter


class NotebookProgress(Progress):
    """A progress bar as an output of a cell; rich's own needs `ipywidgets`, which stored notebooks do not show."""

    _handle: "DisplayHandle | None" = None
    _updated = 0.0

    def start(self) -> None:
        """Display the bar."""
        from IPython.display import display

        self._handle = display(self, display_id=True)

    def stop(self) -> None:
        """Display the last state."""
        if self._handle:
            self._handle.update(self)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task, and update the display at most five times a second."""
        super().advance(task_id, advance)
        if self._handle and monotonic() > self._updated + _INTERVAL:
            self._updated = monotonic()
            self._handle.update(self)
