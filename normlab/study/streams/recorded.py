"""Recorded streams: bundled with river, prepared on disk, or from a file."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from normlab.errors import BadInput, nearest
from normlab.study.data.tabular import DELIMITERS, Table, numbered, read_csv, read_npz
from normlab.study.streams.generators import Example
from normlab.study.streams.preprocessing import features_of
from normlab.study.streams.stream import (
    Source,
    Stream,
    check_positions,
    describe,
    river_version,
    sha256_of,
    source_of,
)


def bundled(name: str, *, standardize: bool = True) -> Source:
    """Read one of the data sets that river contains; nothing is downloaded.

    Args:
        name: `phishing`, `bananas`, `image_segments`, `shuttle` (classes), or `trump_approval` (numbers).
        standardize: Whether features are standardized online; see `standardized`.

    Raises:
        BadInput: If there is no such data set.
    """
    if name not in _BUNDLED:
        raise BadInput(f"Expected a data set of river's, got `{name}`. {nearest(name, _BUNDLED)}")
    return source_of(name, partial(_bundled, name=name, standardize=standardize), libraries=("river",))


def recorded(name: str, data_dir: str | os.PathLike[str] | None = None, *, standardize: bool = True) -> Source:
    """Read a real stream.

    Args:
        name: `weather`: 18,159 days at an air base, 8 measurements, whether it rained. `outdoor`: 4,000 pictures of 40
            objects out of doors, 21 chromaticities.
        data_dir: Folder that contains `raw/weather/weather.csv`, or `raw/outdoor/outdoorStream.data` and `.labels`;
            `NORMLAB_DATA` unless given.
        standardize: Whether features are standardized online; see `standardized`.

    Raises:
        BadInput: If there is no such stream.
    """
    if name not in _RECORDED:
        raise BadInput(f"Expected a recorded stream, got `{name}`. {nearest(name, _RECORDED)}")
    folder = data_dir or os.environ.get("NORMLAB_DATA")
    if not folder:
        raise BadInput(f"Expected the folder of recorded streams for `{name}`, got none. Set `NORMLAB_DATA`.")
    files = [str(Path(folder, "raw", name, file)) for file in _RECORDED[name].files]
    missing = next((file for file in files if not os.path.isfile(file)), None)
    if missing:
        raise BadInput(f"Expected the stream `{name}` in `{missing}`, got no such file. Check `NORMLAB_DATA`.")
    return source_of(name, partial(_recorded, name=name, files=files, standardize=standardize), files=files)


def from_file(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    classes: Sequence[str | int] | None = None,
    numbers: bool = False,
    drifts: Sequence[int] = (),
    skip_nonfinite: bool = False,
    standardize: bool = True,
    drop: Sequence[str] = (),
    header: bool | None = None,
    delimiter: str = ",",
) -> Source:
    """Read a stream from a file, in the order of its examples.

    Args:
        path: A `.csv` file in UTF-8 with names of columns in its first line and one example per line below; or an
            `.npz` file with `inputs`, shape (n, ...), and `labels`, shape (n,).
        label: The column of labels; the last one unless given.
        classes: All possible labels, in the order of the outputs. Unless given: integers are classes, counted from 0;
            other numbers are targets; text is a class, numbered by first appearance.
        numbers: Whether labels are targets although all of them are integers.
        drifts: Index in the file of the first example of each new concept, if known.
        skip_nonfinite: Whether to leave out examples with a missing, NaN or infinite value instead of refusing them.
        standardize: Whether features are standardized online; see `standardized`.
        drop: Columns that are left out, whatever they contain.
        header: Whether the first line contains names of columns; without names, columns are counted from 1. Unless
            given, it does, and a line that looks like an example is refused.
        delimiter: Delimiter of values: `","`, `";"`, `"|"` or `"tab"`.

    Raises:
        BadInput: If the file does not exist or cannot be learned from; the content is checked when the stream is read.
    """
    path = os.fspath(path)
    if Path(path).suffix not in (".csv", ".npz"):
        raise BadInput(f"Expected a .csv or .npz file, got `{path}`.")
    if delimiter not in DELIMITERS:
        raise BadInput(f"Expected `delimiter` to be one of {', '.join(DELIMITERS)}, got `{delimiter}`.")
    of_csv: CsvOptions = {
        "label": label,
        "drop": [str(name) for name in drop],
        "header": header,
        "delimiter": delimiter,
    }
    if path.endswith(".npz"):
        if label is not None:
            raise BadInput(f"Expected no `label` for an .npz file, got `{label}`. Its labels are the array `labels`.")
        if drop or header is not None or delimiter != ",":
            raise BadInput(f"Expected `drop`, `header` and `delimiter` for a .csv file only, got `{path}`.")
    make = partial(
        _own,
        path=path,
        of_csv=of_csv,
        options=_Options(
            classes=None if classes is None else [str(name) for name in classes],
            numbers=numbers,
            drifts=tuple(map(int, drifts)),
            skip_nonfinite=skip_nonfinite,
            standardize=standardize,
        ),
    )
    return source_of(Path(path).stem, make, files=[path])


class CsvOptions(TypedDict):
    """Options of `read_csv`."""

    label: str | None
    drop: Sequence[str]
    header: bool | None
    delimiter: str


class _Options(NamedTuple):
    """Options that turn a table into a stream; see `from_file`."""

    classes: Sequence[str] | None = None
    numbers: bool = False
    drifts: Sequence[int] = ()
    skip_nonfinite: bool = False
    standardize: bool = True


class _Recorded(NamedTuple):
    """Files and description of a recorded stream."""

    files: Sequence[str]
    description: str


_BUNDLED = {
    "phishing": ("Phishing", "web pages, whether they are phishing"),
    "bananas": ("Bananas", "points of two clusters in the shape of bananas"),
    "image_segments": ("ImageSegments", "segments of images, which of 7 things they show"),
    "shuttle": ("Shuttle", "sensor readings of a space shuttle, whether they are out of the ordinary"),
    "trump_approval": ("TrumpApproval", "ratings by five polling agencies, from which a sixth follows"),
}

_RECORDED = {
    "weather": _Recorded(("weather.csv",), "Days at Offutt Air Force Base, 1949 to 1999, whether it rained"),
    "outdoor": _Recorded(
        ("outdoorStream.data", "outdoorStream.labels"),
        "Pictures of 40 objects out of doors, chromaticities (Losing et al., 2015)",
    ),
}


def materialized(dataset: Iterable[Example], n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, float64, and labels of the first `n` examples, with features in the order of the first."""
    inputs, labels = [], []
    for x, y in islice(dataset, n):
        inputs.append(list(x.values()))
        labels.append(y)
    return np.array(inputs, np.float64), np.array(labels)


def _bundled(seed: int, *, name: str, standardize: bool) -> Stream:
    from river import datasets

    dataset, description = _BUNDLED[name]
    if not hasattr(datasets, dataset):
        raise BadInput(f"Expected a river that brings `{dataset}` along, got river {river_version()}. Update it.")
    table = numbered(name, *materialized(getattr(datasets, dataset)()))
    return _of_table(table, f"{dataset} of river {river_version()}: {description}", _Options(standardize=standardize))


def _recorded(seed: int, *, name: str, files: Sequence[str], standardize: bool) -> Stream:
    if name == "weather":
        table = read_csv(files[0])
    else:
        inputs, labels = (np.loadtxt(file) for file in files)
        table = numbered(name, inputs, labels.astype(int))
    return _of_table(table, _RECORDED[name].description, _Options(standardize=standardize))


def _own(seed: int, *, path: str, of_csv: CsvOptions, options: _Options) -> Stream:
    table = read_npz(path) if path.endswith(".npz") else read_csv(path, **of_csv)
    return _of_table(table, f"`{Path(path).name}`, sha256 {sha256_of(path)}", options)


def _of_table(table: Table, description: str, options: _Options) -> Stream:
    """Make a stream from the rows of a table."""
    stays = table.whole(skip=options.skip_nonfinite)
    drifts = [int(stays[:drift].sum()) for drift in check_positions(options.drifts, len(stays))]
    labels, number = table.classes(options.classes, options.numbers, stays)
    skipped = int(np.sum(~stays))
    left_out = f", {skipped:,} left out because a value was not finite" if skipped else ""
    return Stream(
        name=Path(table.path).stem,
        inputs=features_of(table.inputs[stays], options.standardize),
        labels=labels,
        classes=number,
        drifts=tuple(drifts),
        description=describe(f"{description}, {len(labels):,} examples{left_out}", options.standardize),
        skipped=skipped,
    )
