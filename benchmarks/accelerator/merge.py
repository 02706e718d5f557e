"""Results of several measurements as one: each stage whole, from the last measurement that has it."""

from collections.abc import Iterable, Sequence

from benchmarks.accelerator.stage import Json, Row

__all__ = ["SOURCE", "merged", "of_kind"]

INVOCATION = "invocation"
SOURCE = ("date", "commit", "command")
"""Columns of a measurement that each of its stages gets."""


def merged(measurements: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of a page.

    Args:
        measurements: Rows of each, the later ones of which win.

    Returns:
        The rows of the measurements that are left, in the order of their stages; a row of kind `stage` has the commit,
        the date and the command.

    Raises:
        ValueError: If devices or versions of JAX differ.
    """
    circumstances = list(dict.fromkeys(map(device, measurements)))
    if len(circumstances) > 1:
        listed = " and ".join(f"{name} with jax {jax}" for name, jax in circumstances)
        raise ValueError(f"Expected results of one device and one version of jax, got {listed}. Write a page for each.")
    last = {row["stage"]: number for number, rows in enumerate(measurements) for row in rows}
    kept: list[Row] = []
    for number, rows in enumerate(measurements):
        own = [row for row in rows if last[row["stage"]] == number]
        if own:
            kept += [*of_kind(rows, INVOCATION), *(sourced(row, rows) for row in own if row["stage"] != INVOCATION)]
    order = list(last)  # a dict keeps the place of the first
    return sorted(kept, key=lambda row: order.index(row["stage"]))


def device(rows: Sequence[Row]) -> tuple[Json, Json]:
    """Return the name of the device and the version of JAX."""
    names, versions = of_kind(rows, "device"), of_kind(rows, "versions")
    return names[0].get("device") if names else None, versions[0].get("jax") if versions else None


def sourced(row: Row, rows: Sequence[Row]) -> Row:
    """Return a row, of kind `stage` with the columns of its measurement."""
    invocation = next(iter(of_kind(rows, INVOCATION)), {})
    return {**row, **{name: invocation.get(name) for name in SOURCE}} if row["kind"] == "stage" else row


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the rows of a kind."""
    return [row for row in rows if row["kind"] == kind]
