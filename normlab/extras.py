"""Packages that come with an extra of this package, and the sentence for those that are missing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from normlab.errors import BadInput, one_line

_STUDY = ("optax", "rich", "jinja2", "matplotlib", "sklearn", "scipy")

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "study": _STUDY,
    "data": ("tensorflow_datasets", "array_record", "grain", "importlib_resources", "cv2"),
    "online": (*_STUDY, "river"),
    "cluster": ("submitit", "ray"),
}
"""Packages of each extra, by the names under which they are imported."""


class MissingExtra(BadInput, ImportError):
    """Packages of an extra are not installed, or cannot be imported."""


def require(extra: str, *packages: str) -> None:
    """Make sure that packages are installed, without importing them.

    Args:
        extra: Name of the extra.
        *packages: All of the extra's unless given.

    Raises:
        MissingExtra: If one is not.
    """
    missing = [package for package in packages or EXTRAS[extra] if not _is_installed(package)]
    if missing:
        raise MissingExtra(f"Expected {_listed(missing)} to be installed, got none. {_command(extra)}")


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """Import packages of an extra.

    Raises:
        MissingExtra: If one is missing, or does not work.
    """
    try:
        yield
    except ImportError as error:
        came = "none" if isinstance(error, ModuleNotFoundError) else one_line(error)
        raise MissingExtra(
            f"Expected `{error.name or extra}` to be installed, got {came}. {_command(extra)}"
        ) from error


def remedy_for(error: BaseException) -> str:
    """A sentence with the command that installs what an import has missed; empty where no extra brings that."""
    package = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ImportError) else ""
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), "")
    return f" {_command(extra)}" if extra else ""


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # ValueError: it is in `sys.modules` without a spec
        return False


def _listed(packages: list[str]) -> str:
    quoted = [f"`{package}`" for package in packages]
    return " and ".join([*[", ".join(quoted[:-1])] * (len(quoted) > 1), quoted[-1]])


def _command(extra: str) -> str:
    return f"Run `pip install 'normlab[{extra}]'`."
