"""Checkpoints on disk, by Orbax: read as trees of arrays, and written whole or not at all."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from normlab.errors import BadInput, one_line
from normlab.expect import refusal

__all__ = ["Recorded", "Saved", "check_new", "read", "write"]

Recorded: TypeAlias = dict[str, Any]
"""A change of a model, as values for JSON; see `normlab.tools.checkpoints.changes`."""

_KEY = "normlab"
_STRUCTURE = "_METADATA"
_LISTED = 5


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint.

    Attributes:
        tree: Dictionaries and lists of arrays, numbers and texts.
        changes: Changes of the model since it was made, the first one first.
        key: Keys above the variables of the model, joined by `/`; `None` where nothing was changed.
        metadata: Metadata of the user's.
    """

    tree: object
    changes: tuple[Recorded, ...] = ()
    key: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)


def read(path: str | os.PathLike[str]) -> Saved:
    """Read a checkpoint; arrays come to the first device, whichever devices they were on.

    Args:
        path: Folder that `StandardCheckpointer` or `PyTreeCheckpointer` of Orbax wrote.

    Raises:
        BadInput: If there is no such folder, it is one of another machine, or there is no checkpoint in it.
    """
    import orbax.checkpoint as ocp

    _check_here(path)
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise refusal("the folder of a checkpoint", str(path), "There is no such folder.")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(folder)
            structure = getattr(found.item_metadata, "tree", None)
            if structure is None:
                raise _no_checkpoint(path)
            wanted = jax.tree.map(_restored, structure)
            tree = checkpointer.restore(folder, restore_args=wanted)
    except BadInput:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise _damaged(path, one_line(error)) from error
    metadata = dict(found.custom_metadata or {})
    ours = metadata.pop(_KEY, {})
    return Saved(tree, tuple(ours.get("changes", ())), ours.get("key"), metadata)


def _check_here(path: str | os.PathLike[str]) -> None:
    """Refuse an address such as `gs://bucket/folder`, one of whose slashes `pathlib` has perhaps taken out.

    Raises:
        BadInput: If it is one.
    """
    if found := re.match(r"([a-z][a-z0-9+.-]+):/+", os.fspath(path)):
        address = f"{found[1]}://{os.fspath(path)[found.end() :]}"
        raise refusal("a folder of this machine", address, "Copy the checkpoint here, and name its folder.")


def _restored(leaf: object) -> object:
    """Return how a leaf is restored: arrays on the first device, of a type that JAX cannot hold on the host."""
    import orbax.checkpoint as ocp

    dtype = getattr(leaf, "dtype", None)
    if not isinstance(leaf, ocp.metadata.ArrayMetadata) or isinstance(leaf, ocp.metadata.ScalarMetadata):
        return ocp.RestoreArgs()
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))


def _no_checkpoint(path: str | os.PathLike[str]) -> BadInput:
    """Return the error for a folder that is none, with the checkpoints inside it."""
    folder = Path(path)
    if (folder / _STRUCTURE).is_file():
        return _damaged(path, "no structure of its tree")
    inside = sorted({file.parent for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{_STRUCTURE}")})
    listed = ", ".join(f"`{one}`" for one in inside[-_LISTED:])
    remedy = f"It contains {listed}." if inside else "Give the folder that `save` was given."
    return refusal("the folder of a checkpoint that Orbax wrote", str(path), remedy)


def _damaged(path: str | os.PathLike[str], found: str) -> BadInput:
    return BadInput(f"Expected a checkpoint that Orbax reads, got {found.rstrip('.')} in `{path}`. Take another one.")


def check_new(path: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Check that a checkpoint can be written without touching another.

    Args:
        path: The new folder.
        source: Folder of the checkpoint that is read.

    Raises:
        BadInput: If the folder exists, is inside the other one, or is one of another machine.
    """
    _check_here(path)
    new, old = Path(path).resolve(), Path(source).resolve()
    if new == old or old in new.parents:
        raise refusal("a new folder beside the checkpoint", str(path), "It is inside the checkpoint that is read.")
    if os.path.lexists(path):
        raise refusal("a new folder", str(path), "It exists already; nothing is overwritten.")
    parent = next(one for one in new.parents if os.path.lexists(one))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise refusal("a folder that can be written", str(path), f"`{parent}` is no folder that you can write into.")


def write(path: str | os.PathLike[str], saved: Saved) -> None:
    """Write a checkpoint; Orbax gives the folder its name once everything is inside.

    Args:
        path: A new folder.
        saved: The content.
    """
    import orbax.checkpoint as ocp

    metadata = {**saved.metadata, _KEY: {"key": saved.key, "changes": list(saved.changes)}}
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), saved.tree, custom_metadata=metadata)
