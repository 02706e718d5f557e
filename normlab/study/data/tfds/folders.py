"""Folders of data sets that TensorFlow Datasets prepared."""

import hashlib
import json
import os
import re
from importlib.metadata import version as version_of
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from normlab.errors import BadInput, nearest, one_line
from normlab.extras import importing, require
from normlab.study.data.tfds.compat import Builder


class DatasetFolder(NamedTuple):
    """Location of a data set.

    Attributes:
        folder: Folder of one version.
        description: Name and version of the data set.
    """

    folder: Path
    description: str


def located(name: str, data_dir: str | None = None) -> DatasetFolder:
    """Find the folder of a data set; see `read`.

    Raises:
        BadInput: If there is no such data set or version.
    """
    name, _, version = name.partition(":")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    known = _versions(root / name)
    if not known:
        raise BadInput(f"Expected the data set `{name}` in `{root / name}`, got {_instead(root, name)}")
    if version and version not in known:
        raise BadInput(f"Expected version {version} of `{name}` in `{root / name}`, got {', '.join(known)}.")
    newest = "" if version or len(known) == 1 else f", the newest of {', '.join(known)}"
    version = version or known[-1]
    return DatasetFolder(root / name / version, f"`{name}` {version} of TensorFlow Datasets{newest}")


def contents(folder: Path) -> str:
    """Hash the names and contents of the files of a folder."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """Hash the names, sizes and last MiB of the files of a folder."""
    digest = hashlib.sha256()
    for path in files_of(folder):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 2**20))
            digest.update(f"{path.name} {size} {hashlib.sha256(file.read()).hexdigest()} ".encode())
    return digest.hexdigest()


def package() -> ModuleType:
    """Import TensorFlow Datasets with everything that it needs to read."""
    require("data")
    with importing("data"):
        import cv2  # noqa: F401
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source  # noqa: F401
    return tfds


def libraries() -> list[str]:
    """Versions of what reads and decodes; to import all of it would take seconds."""
    require("data")
    with importing("data"):
        import cv2

        return [cv2.__version__, version_of("tensorflow-datasets"), version_of("array_record")]


def builder_of(folder: Path) -> Builder:
    """Make the builder of TensorFlow Datasets for a folder.

    Raises:
        BadInput: If the folder is no data set, or has files of other formats.
    """
    info, _ = json_of(folder / "dataset_info.json"), json_of(folder / "features.json")
    formats = [info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        raise BadInput(
            f"Expected ArrayRecord files in `{folder}`, got {' and '.join(formats)}. Build the data set in another "
            f"folder: {_command(folder.parent.name, 'DIR')}."
        )
    tfds = package()
    try:
        return tfds.builder_from_directory(folder, file_format="array_record")
    except Exception as error:  # whatever is not as it should be in what describes the data
        raise BadInput(f"Expected a data set of TensorFlow Datasets in `{folder}`, got {one_line(error)}.") from error


def json_of(path: Path) -> dict[str, Any]:
    """Read a JSON file of a prepared data set."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise BadInput(f"Expected `{path}`, which is missing: it was never finished. Build it again.") from None
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"Expected JSON in `{path}`, got {one_line(error)}. Copy or build it again.") from error


def files_of(folder: Path) -> list[Path]:
    """List the files of a folder that are read; there may be others, of other formats."""
    described = ("dataset_info.json", "features.json")
    return sorted(path for path in folder.iterdir() if path.name in described or ".array_record" in path.name)


_VERSION = r"\d+\.\d+\.\d+"


def _versions(folder: Path) -> list[str]:
    """List the versions in a folder, the newest last."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    versions = [name for name in names if re.fullmatch(_VERSION, name)]
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))


def _instead(root: Path, name: str) -> str:
    """Say what a folder contains instead of a data set, and the remedy."""
    if not root.is_dir():
        there = f"no folder `{root}`. Pass `--data-dir`, or build the data set"
    elif configs := _sets(root / name):
        return f"its configurations {', '.join(configs)}. Pass `--data tfds:{name}/{configs[0]}`, for instance."
    elif "/" in name and re.fullmatch(_VERSION, Path(name).name):
        return f"a version behind a slash. Pass `--data tfds:{Path(name).parent.as_posix()}:{Path(name).name}`."
    else:
        there = f"none there. {nearest(name, _sets(root))} Pass another `--data-dir`, or build the data set"
    return f"{there}: {_command(name, root)}."


def _sets(root: Path) -> list[str]:
    """List the data sets in a folder, or the configurations of one."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [path.name for path in folders if _versions(path) or any(map(_versions, path.iterdir()))]


def _command(name: str, root: Path | str) -> str:
    return f"`tfds build {name} --data_dir {root} --file_format array_record`, which needs TensorFlow"
