"""Small files with the first examples of real data sets, for a machine without network.

    python -m benchmarks.accelerator.carry --data-dir DIR      # from data sets of TensorFlow Datasets, as `normlab run`

The stage `training` finds them in `build/carried`, together less than 64 MiB; without them it measures speed alone, on
noise.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normlab.errors import BadInput
from normlab.study.data.dataset import Data
from normlab.study.data.options import chosen

__all__ = ["EXAMPLES", "FOLDER", "carried", "main"]

FOLDER = Path(__file__).resolve().parents[2] / "build" / "carried"
EXAMPLES: Mapping[str, tuple[int, int]] = {"cifar10": (15_000, 3_000), "mnist": (15_000, 3_000)}
"""Numbers of examples for training and validation, and for the test. Images of CIFAR-10 hardly compress."""


def main(arguments: list[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="default: build/carried")
    parser.add_argument("--data-dir", help="as in `normlab run`")
    given = parser.parse_args(arguments)
    for name, (train, test) in EXAMPLES.items():
        try:
            data = chosen(f"tfds:{name}", given.data_dir, train)
        except BadInput as error:
            parser.error(str(error))
        if not isinstance(data, Data):
            raise SystemExit(f"Expected `{name}` to fit in memory, got data that are read during training.")
        given.folder.mkdir(parents=True, exist_ok=True)
        path = given.folder / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **shortened(data, test))
        print(f"wrote {path}, {path.stat().st_size / 2**20:.1f} MiB")


def shortened(data: Data, test: int) -> dict[str, np.ndarray]:
    """Return the arrays of a file: all examples for training, and the first of the test set."""
    kept = len(data.labels) - data.test + min(test, data.test)
    return {
        "inputs": data.inputs[:kept],
        "labels": data.labels[:kept],
        "test": np.asarray(min(test, data.test)),
        "mean": np.asarray(data.mean),
        "std": np.asarray(data.std),
    }


def carried(name: str, folder: Path = FOLDER) -> Data | None:
    """Read a file; `None` where there is none."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        test = int(arrays["test"])
        inputs, labels = arrays["inputs"], arrays["labels"]
        return Data(
            inputs,
            labels,
            test=test,
            mean=tuple(arrays["mean"].tolist()),
            std=tuple(arrays["std"].tolist()),
            description=f"{name}, the first {len(labels) - test:,} examples for training and validation, and {test:,} "
            "for the test",
        )


if __name__ == "__main__":
    main()
