"""Packages of the extras of this package, and the error for a missing one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from normlab.errors import BadInput, one_line

_STUDY = ("optax", "rich", "jinja2", "matplotlib", "sklearn", "scipy")
_TOOLS = ("optax", "flatbuffers")

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "study": _STUDY,
    "data": ("tensorflow_datasets", "array_record", "grain", "importlib_resources", "cv2"),
    "online": (*_STUDY, "river"),
    "cluster": ("submitit", "ray"),
    "export": ("jax2onnx", "onnxruntime", "flatbuffers"),
    "tools": _TOOLS,
    "doctor": (*_TOOLS, "rich", "jinja2"),
}
"""Packages of each extra, by their import names."""


class MissingExtra(BadInput, ImportError):
    """Error for packages of an extra that are not installed or cannot be imported."""


def require(extra: str, *packages: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        extra: Name of the extra.
        *packages: Packages to check; all packages of the extra unless given.

    Raises:
        MissingExtra: If a package is not installed.
    """
    missing = [package for package in packages or EXTRAS[extra] if not _is_installed(package)]
    if missing:
        raise MissingExtra(f"Expected {_listed(missing)} to be installed, got none. {_command(extra)}")


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """Wrap imports of packages of an extra.

    Raises:
        MissingExtra: If a package is missing or fails to import.
    """
    try:
        yield
    except ImportError as error:
        came = "none" if isinstance(error, ModuleNotFoundError) else one_line(error)
        raise MissingExtra(
            f"Expected `{error.name or extra}` to be installed, got {came}. {_command(extra)}"
        ) from error


def remedy_for(error: BaseException) -> str:
    """Return a sentence with the command that installs a missing package, or "" if no extra contains the package."""
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
