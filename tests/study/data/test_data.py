"""Data that are chosen on the command line: prepared sets, files, what is kept of them, and what is wrong with them."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
pytest.importorskip("array_record", reason="there is no array_record for this platform")

import cv2
import tensorflow_datasets as tfds

from normlab import study
from normlab.errors import BadInput
from normlab.study.data import cache
from normlab.study.data import options as sources
from normlab.study.data.dataset import Data, digits
from normlab.study.data.options import chosen
from normlab.study.data.splits import sizes
from normlab.study.data.streaming import Streamed
from normlab.study.data.tfds import folders, read, records
from normlab.study.data.tfds.read import _taken
from normlab.study.data.tfds.records import standardization
from tests.support.prepared import Row, images, leave_out, of_images, png, write

PREPARED = Path(os.environ.get("NORMLAB_DATA") or "/nowhere") / "tfds"
real = pytest.mark.skipif(not PREPARED.is_dir(), reason="`NORMLAB_DATA` names no folder of prepared data sets")

PIXELS, LABELS = images(30), np.arange(30) % 3
FEATURES = {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.ClassLabel(num_classes=3)}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def rows(start: int, stop: int) -> list[Row]:
    return of_images(PIXELS[start:stop], LABELS[start:stop])


def tiny(root: Path, features: Mapping[str, Any] = FEATURES, **options: Any) -> Path:
    """30 images: 20 for training, 10 for the test."""
    return write(root, {"train": rows(0, 20), "test": rows(20, 30)}, features, **options)


def message(call: Callable[[], Any], *parts: str) -> None:
    """Check an error, in one line."""
    with pytest.raises(BadInput) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


class TestPreparedSets:
    def test_arrays_are_what_was_written(self, tmp_path: Path) -> None:
        tiny(tmp_path, shards=3)
        data = chosen("tfds:tiny", str(tmp_path))
        np.testing.assert_array_equal(data.inputs, PIXELS)
        np.testing.assert_array_equal(data.labels, LABELS)
        assert (data.inputs.dtype, data.labels.dtype) == (np.uint8, np.int32)
        scaled = PIXELS[:20].astype(np.float64) / 255
        np.testing.assert_allclose(data.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(data.std, scaled.std((0, 1, 2)), rtol=1e-12)
        assert "`tiny` 1.0.0 of TensorFlow Datasets: 20 examples for training, 10 for the test" in data.description

    def test_a_channel_without_contrast_is_not_divided_by_zero(self) -> None:
        mean, std = standardization([np.full((2, 3, 3, 1), 255, np.uint8)])
        assert (mean.tolist(), std.tolist()) == ([1], [1 / 255])

    @pytest.mark.parametrize(
        ("splits", "counts", "rule"),
        [
            ({"train": (0, 20)}, (0, 0), "no split to test on: each seed draws 10% of them for validation and 20% for"),
            ({"train": (0, 20), "test": (20, 30)}, (0, 10), "none for validation: each seed draws 10% of those for"),
            ({"train": (0, 20), "validation": (20, 30)}, (0, 10), "is the split `validation`. There is no other one"),
            ({"test": (25, 30), "train": (0, 20), "validation": (20, 25), "more": (0, 9)}, (5, 5), "each a split of"),
        ],
    )
    def test_what_splits_are_for(self, tmp_path: Path, splits: Any, counts: tuple[int, int], rule: str) -> None:
        write(tmp_path, {name: rows(*bounds) for name, bounds in splits.items()}, FEATURES)
        data = chosen("tfds:tiny", str(tmp_path))
        assert (data.validation, data.test) == counts
        assert rule in data.description
        over = (
            "over those for training."
            if counts[1]
            else "over all examples, those that seeds draw for the test included."
        )
        assert data.description.endswith(f"Each channel is standardized by its mean and standard deviation {over}")
        np.testing.assert_array_equal(data.inputs, PIXELS[: len(data.labels)])
        free = len(data.labels) - sum(counts)
        drawn = counts[0] or round(0.1 * free)
        assert sizes(data) == (len(data.labels) - drawn - (counts[1] or round(0.2 * free)), drawn)

    def test_a_test_split_without_labels_is_none(self, tmp_path: Path) -> None:
        unlabelled = [{**row, "label": -1} for row in rows(25, 30)]
        write(tmp_path, {"train": rows(0, 20), "validation": rows(20, 25), "test": unlabelled}, FEATURES)
        data = chosen("tfds:tiny", str(tmp_path))
        assert (len(data.labels), data.validation, data.test) == (25, 0, 5)
        assert "no other one with labels" in data.description

    def test_a_budget_is_the_first_of_train(self, tmp_path: Path) -> None:
        tiny(tmp_path)
        data = chosen("tfds:tiny", str(tmp_path), train_examples=7)
        np.testing.assert_array_equal(data.inputs, PIXELS[[*range(7), *range(20, 30)]])
        np.testing.assert_allclose(data.mean, PIXELS[:7].mean((0, 1, 2), dtype=np.float64) / 255, rtol=1e-12)
        assert "7 examples for training (the first of 20)" in data.description
        message(lambda: chosen("tfds:tiny", str(tmp_path), 21), "`--train-examples` up to 20", "got 21")
        message(
            lambda: chosen("tfds:tiny", str(tmp_path), 4), "`--train-examples` to leave examples to train on", "got 4"
        )

    def test_versions(self, tmp_path: Path) -> None:
        for version in ("1.9.0", "1.10.0"):
            write(tmp_path, {"train": rows(0, int(version[2:-2]))}, FEATURES, version=version)
        newest, older = (chosen(f"tfds:tiny{version}", str(tmp_path)) for version in ("", ":1.9.0"))
        assert (len(newest.labels), len(older.labels)) == (10, 9)
        assert "`tiny` 1.10.0 of TensorFlow Datasets, the newest of 1.9.0, 1.10.0:" in newest.description
        message(
            lambda: chosen("tfds:tiny/1.9.0", str(tmp_path)), "a version behind a slash. Pass `--data tfds:tiny:1.9.0`."
        )
        message(lambda: chosen("tfds:tiny:2.0.0", str(tmp_path)), "Expected version 2.0.0 of `tiny`", "1.9.0, 1.10.0")

    def test_configurations(self, tmp_path: Path) -> None:
        tiny(tmp_path)
        (tmp_path / "sets").mkdir()
        shutil.move(tmp_path / "tiny", tmp_path / "sets" / "tiny" / "small")
        assert len(chosen("tfds:tiny/small", str(tmp_path / "sets")).labels) == 30
        message(lambda: chosen("tfds:tiny", str(tmp_path / "sets")), "its configurations small", "tfds:tiny/small")

    def test_tensors_and_targets(self, tmp_path: Path) -> None:
        features = {
            "x": tfds.features.Tensor(shape=(2,), dtype=np.float64),
            "label": tfds.features.Scalar(np.float32),
            "name": tfds.features.Text(),
        }
        told = np.random.default_rng(0).normal(size=(9, 3))
        write(
            tmp_path, {"train": [{"x": r[:2], "label": r[2], "name": "a"} for r in told]}, features, keys=("x", "label")
        )
        data = chosen("tfds:tiny", str(tmp_path))
        assert (data.inputs.dtype, data.classes, data.mean) == (np.float32, False, ())
        np.testing.assert_allclose(np.c_[data.inputs, data.labels], told, rtol=1e-6)
        message(lambda: chosen("tfds:tiny", str(tmp_path), image_size=3), "`--image-size` only for images, got `x`")

    def test_images_that_opencv_alone_does_not_take(self, tmp_path: Path) -> None:
        deep = np.random.default_rng(0).integers(0, 2**16, (4, 3, 3, 1)).astype(np.uint16)
        features = {**FEATURES, "image": tfds.features.Image(shape=(3, 3, 1), dtype=np.uint16)}
        write(tmp_path, {"train": of_images(list(deep), [0, 1, 2, 0])}, features)
        data = chosen("tfds:tiny", str(tmp_path))
        np.testing.assert_array_equal(data.inputs, deep)
        assert (data.inputs.dtype, data.mean) == (np.int32, ())

    def test_images_of_mixed_shapes(self, tmp_path: Path) -> None:
        features = {**FEATURES, "image": tfds.features.Image(shape=(None, None, 3))}
        mixed = [images(1, shape)[0] for shape in ((4, 9, 3), (7, 4, 3), (8, 8, 3), (2, 3, 3))]
        write(tmp_path, {"train": of_images(mixed, [0, 1, 2, 0])}, features)
        message(lambda: chosen("tfds:tiny", str(tmp_path)), "got (4, 9, 3) and (7, 4, 3)", "`--image-size`")
        found = chosen("tfds:tiny", str(tmp_path), image_size=4).inputs
        assert found.shape == (4, 4, 4, 3)
        np.testing.assert_array_equal(found[0], mixed[0][:, 2:6])
        np.testing.assert_array_equal(found[1], mixed[1][1:5])
        means = mixed[2].reshape(4, 2, 4, 2, 3).astype(np.float64).mean((1, 3))
        np.testing.assert_allclose(found[2], means, atol=0.5 + 1e-9)
        assert np.ptp(found[3].astype(int)) <= np.ptp(mixed[3].astype(int))

    def test_one_channel(self, tmp_path: Path) -> None:
        features = {**FEATURES, "image": tfds.features.Image(shape=(6, 5, 1))}
        write(tmp_path, {"train": of_images(list(PIXELS[..., :1]), LABELS.tolist())}, features)
        np.testing.assert_array_equal(chosen("tfds:tiny", str(tmp_path)).inputs, PIXELS[..., :1])


class TestStreamedSets:
    def test_they_are_those_that_are_read_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny(tmp_path, shards=2)
        whole, data = (chosen("tfds:tiny", str(tmp_path), stream=stream) for stream in (None, True))
        assert isinstance(data, Streamed) and not isinstance(whole, Streamed)
        np.testing.assert_array_equal(data.labels, whole.labels)
        assert (data.test, data.validation, data.drawn) == (whole.test, whole.validation, whole.drawn)
        np.testing.assert_allclose((data.mean, data.std), (whole.mean, whole.std), rtol=1e-12)
        for found, array in zip(data.read([29, 0, 7]), (PIXELS, LABELS), strict=True):
            np.testing.assert_array_equal(found, array[[29, 0, 7]])
        assert "are read while a model is trained" in data.description
        monkeypatch.setattr(read, "RESIDENT_BYTES", 1000)
        assert isinstance(chosen("tfds:tiny", str(tmp_path), augment=["flip"]), Streamed)
        assert not isinstance(chosen("tfds:tiny", str(tmp_path), stream=False), Streamed)

    @pytest.mark.parametrize(
        ("options", "taken"),
        [({}, 30 * 90), ({"train_examples": 6}, 16 * 90), ({"image_size": 3}, 30 * 27)],
    )
    def test_what_must_fit_decides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, taken: int
    ) -> None:
        folder = tiny(tmp_path)
        (folder / "tiny-train.tfrecord-00000-of-00001").write_bytes(bytes(10**6))
        for limit, streamed in ((taken - 1, True), (taken, False)):
            monkeypatch.setattr(read, "RESIDENT_BYTES", limit)
            data = chosen("tfds:tiny", str(tmp_path), **options)
            assert isinstance(data, Streamed) == streamed
            assert ("Its inputs, 0 MiB in memory, are" in data.description) == streamed

    def test_where_shapes_are_not_told_files_decide(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        features = {**FEATURES, "image": tfds.features.Image(shape=(None, None, 3))}
        stored = (tiny(tmp_path, features) / "tiny-train.array_record-00000-of-00001").stat().st_size
        for limit, streamed in ((stored, True), (3 * stored, False)):
            monkeypatch.setattr(read, "RESIDENT_BYTES", limit)
            assert isinstance(chosen("tfds:tiny", str(tmp_path)), Streamed) == streamed

    def test_numbers_take_four_bytes(self, tmp_path: Path) -> None:
        features = {"x": tfds.features.Tensor(shape=(2,), dtype=np.float64), "label": tfds.features.Scalar(np.float32)}
        folder = write(tmp_path, {"train": [{"x": np.ones(2), "label": 1.0}] * 3}, features, keys=("x", "label"))
        assert _taken(folder, None, None) == (3 * 2 * 4, "in memory")

    def test_the_second_time_nothing_is_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny(tmp_path)
        chosen("tfds:tiny", str(tmp_path), stream=True)
        monkeypatch.setattr(records, "builder_of", lambda *_: pytest.fail("opened"))
        chosen("tfds:tiny", str(tmp_path), stream=True)

    def test_fingerprints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fingerprint(**options: Any) -> str:
            data = chosen("tfds:tiny", str(tmp_path), stream=True, **options)
            assert isinstance(data, Streamed)
            return data.fingerprint

        path = tiny(tmp_path) / "dataset_info.json"
        fingerprints = [fingerprint(), fingerprint(), fingerprint(train_examples=6), fingerprint(image_size=4)]
        path.write_text(path.read_text() + "\n")
        fingerprints.append(fingerprint())
        (path.parent / "tiny-train.tfrecord-00000-of-00001").touch()
        fingerprints.append(fingerprint())
        monkeypatch.setattr(cv2, "__version__", "1.0")
        fingerprints.append(fingerprint())
        monkeypatch.setattr(folders, "version_of", lambda name: "1.0")
        fingerprints.append(fingerprint())
        assert fingerprints[0] == fingerprints[1]
        assert fingerprints[4] == fingerprints[5]
        assert len(set(fingerprints)) == 6

    def test_damage_is_found_before_anything_is_trained(self, tmp_path: Path) -> None:
        path = tiny(tmp_path, shards=2) / "tiny-train.array_record-00001-of-00002"
        flip(path, b"IHDR")
        message(lambda: chosen("tfds:tiny", str(tmp_path), stream=True), f"got `{path}`, which is damaged")


class TestWhatIsKept:
    def test_the_second_time_nothing_is_decoded(
        self, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny(tmp_path)
        first = chosen("tfds:tiny", str(tmp_path))
        with monkeypatch.context() as patch:
            patch.setattr(read, "Examples", lambda *_: pytest.fail("read again"))
            second = chosen("tfds:tiny", str(tmp_path))
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(second, name))
        assert not second.inputs.flags.writeable  # mapped
        chosen("tfds:tiny", str(tmp_path), train_examples=6)
        chosen("tfds:tiny", str(tmp_path), image_size=4)
        assert len(list(kept.iterdir())) == 3

    def test_other_contents_are_other_data(self, tmp_path: Path) -> None:
        chosen(f"tfds:{tiny(tmp_path).parent.name}", str(tmp_path))
        shutil.rmtree(tmp_path / "tiny")
        write(tmp_path, {"train": rows(5, 25)}, FEATURES)
        np.testing.assert_array_equal(chosen("tfds:tiny", str(tmp_path)).inputs, PIXELS[5:25])

    def test_damage_is_mended(self, tmp_path: Path, kept: Path) -> None:
        tiny(tmp_path)
        chosen("tfds:tiny", str(tmp_path))
        (path,) = kept.iterdir()
        content = path.read_bytes()
        place = content.index(PIXELS[0].tobytes())
        other = bytes([content[place] ^ 1])
        for bad in (b"", content[:100], content[:-600], content[:place] + other + content[place + 1 :]):
            path.write_bytes(bad)
            np.testing.assert_array_equal(chosen("tfds:tiny", str(tmp_path)).inputs, PIXELS)
            assert path.read_bytes() == content

    def test_arrays_of_every_kind(self) -> None:
        arrays = {
            "a": np.arange(6, dtype=np.int16).reshape(2, 3),
            "b": np.array("text"),
            "c": np.zeros((0, 4)),
            "d": np.array(3.5),
            "e": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        }
        made = cache.kept("any", "key", lambda: arrays)
        again = cache.kept("any", "key", lambda: pytest.fail("made again"))
        for found in (made, again):
            assert list(found) == list(arrays)
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array)
                assert (found[name].dtype, found[name].ctypes.data % 64) == (array.dtype, 0)

    def test_what_was_used_last_stays(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def get(key: str) -> None:
            cache.kept("data", key, lambda: {"x": np.zeros(1000, np.uint8)})

        a, b, c, d = (letter * 64 for letter in "abcd")
        for age, key in enumerate((a, b, c)):
            get(key)
            os.utime(kept / f"{key}.npy", (1e9 - age, 1e9 - age))
        get(c)
        monkeypatch.setattr(cache, "ARRAY_BYTES", 3 * (kept / f"{a}.npy").stat().st_size)
        get(d)
        assert sorted(path.stem for path in kept.iterdir()) == [a, c, d]

    def test_where_nothing_can_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny(tmp_path)
        (tmp_path / "file").touch()
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
        assert len(chosen("tfds:tiny", str(tmp_path)).labels) == 30


class TestFaults:
    def test_no_such_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny(tmp_path / "sets")
        build = "`tfds build tony --data_dir {} --file_format array_record`"
        message(
            lambda: chosen("tfds:tony", str(tmp_path / "sets")),
            f"Expected the data set `tony` in `{tmp_path / 'sets' / 'tony'}`, got none there. Did you mean `tiny`?",
            build.format(tmp_path / "sets"),
        )
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
        message(
            lambda: chosen("tfds:tony"),
            f"got no folder `{tmp_path / 'elsewhere'}`. Pass `--data-dir`",
            build.format(tmp_path / "elsewhere"),
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sets"]

    def test_the_folder_of_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny(tmp_path)
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        assert len(chosen("tfds:tiny").labels) == 30

    @pytest.mark.parametrize(
        ("damage", "what"),
        [
            (lambda path: os.truncate(path, 70_000), "is cut off, at 70,000 bytes"),
            (lambda path: os.truncate(path, 10), "is cut off, at 10 bytes"),
            (lambda path: path.unlink(), "is missing"),
            (lambda path: flip(path, b"IHDR"), "is damaged (wrong checksum)"),
        ],
    )
    def test_broken_files(self, tmp_path: Path, kept: Path, damage: Callable[[Path], Any], what: str) -> None:
        path = tiny(tmp_path, shards=2) / "tiny-train.array_record-00001-of-00002"
        damage(path)
        message(lambda: chosen("tfds:tiny", str(tmp_path)), f"got `{path}`, which {what}")
        assert not any(path.is_file() for path in kept.rglob("*"))

    def test_fewer_examples_than_are_told(self, tmp_path: Path) -> None:
        folder = tiny(tmp_path)
        change(folder / "dataset_info.json", '"20"', '"25"')
        message(
            lambda: chosen("tfds:tiny", str(tmp_path)),
            f"as many examples in `{folder / 'tiny-train.array_record-00000-of-00001'}` as `dataset_info.json`",
            "got fewer: RuntimeError: index 20 out of bound 20. Copy or build both again.",
        )

    def test_more_files_than_may_be_open(self, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource", reason="a limit of open files that Python can set")
        folder = tiny(tmp_path, shards=10)
        chosen("tfds:tiny", str(tmp_path), train_examples=10)  # imports, too, open files
        limits, unused = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
        os.close(unused)
        resource.setrlimit(resource.RLIMIT_NOFILE, (unused + 6, limits[1]))
        try:
            message(
                lambda: chosen("tfds:tiny", str(tmp_path)),
                f"Expected to have all ArrayRecord files in `{folder}` open together, got ",
                "Too many open files",
                "Allow more with `ulimit -n`.",
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_files_of_tensorflow(self, tmp_path: Path) -> None:
        change(tiny(tmp_path) / "dataset_info.json", '"array_record"', '"tfrecord"')
        message(
            lambda: chosen("tfds:tiny", str(tmp_path)),
            "Expected ArrayRecord files",
            "got tfrecord",
            "`tfds build tiny --data_dir DIR --file_format array_record`",
        )

    @pytest.mark.parametrize(
        ("name", "old", "new", "part"),
        [
            ("dataset_info.json", "{", "", "Expected JSON in"),
            ("features.json", "}", "", "Expected JSON in"),
            ("features.json", "featuresDict", "featuresDoct", "Expected a data set of TensorFlow Datasets in"),
        ],
    )
    def test_broken_descriptions(self, tmp_path: Path, name: str, old: str, new: str, part: str) -> None:
        folder = tiny(tmp_path)
        change(folder / name, old, new)
        message(lambda: chosen("tfds:tiny", str(tmp_path)), part, str(folder))
        (folder / name).unlink()
        message(lambda: chosen("tfds:tiny", str(tmp_path)), f"Expected `{folder / name}`, which is missing")

    def test_no_labels(self, tmp_path: Path) -> None:
        only = {"image": FEATURES["image"], "caption": tfds.features.Text()}
        write(tmp_path, {"train": [{"image": png(PIXELS[0]), "caption": "a"}]}, only, keys=None)
        message(
            lambda: chosen("tfds:tiny", str(tmp_path)),
            "Expected labels in `label`",
            "got `caption` (Text), `image` (Image)",
            "npz:PATH",
        )
        write(
            tmp_path,
            {"train": [{"image": png(PIXELS[0]), "caption": "a"}]},
            only,
            keys=("image", "caption"),
            version="2.0.0",
        )
        message(lambda: chosen("tfds:tiny", str(tmp_path)), "Expected labels in `caption` of")

    def test_a_label_is_missing(self, tmp_path: Path) -> None:
        write(tmp_path, {"train": [*rows(0, 5), {**rows(5, 6)[0], "label": -1}]}, FEATURES)
        message(lambda: chosen("tfds:tiny", str(tmp_path)), "Expected a label for each example", "got -1 in example 5")

    def test_no_split_to_train_on(self, tmp_path: Path) -> None:
        write(tmp_path, {"test": rows(0, 5)}, FEATURES)
        message(lambda: chosen("tfds:tiny", str(tmp_path)), "Expected a split `train`", "got test")

    def test_what_is_no_image(self, tmp_path: Path) -> None:
        cut = io.BytesIO(png(PIXELS[0]).read(20))
        write(tmp_path, {"train": [{"image": cut, "label": 0}]}, FEATURES)
        message(
            lambda: chosen("tfds:tiny", str(tmp_path)),
            f"can be decoded in `{tmp_path / 'tiny' / '1.0.0'}`, got example 0: an image of 20 bytes that OpenCV",
        )

    @pytest.mark.parametrize("features", [FEATURES, {**FEATURES, "label": tfds.features.Scalar(np.float32)}])
    @pytest.mark.parametrize("key", ["image", "label"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_something_is_missing(self, tmp_path: Path, features: Mapping[str, Any], key: str, stream: bool) -> None:
        folder = tiny(tmp_path, features)
        leave_out(folder / "tiny-train.array_record-00000-of-00001", 7, key)
        message(
            lambda: chosen("tfds:tiny", str(tmp_path), stream=stream),
            f"Expected `{key}` in each example of `{folder}`, got none in example 7.",
        )

    @pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record.python", "cv2"])
    def test_without_packages(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        tiny(tmp_path)
        monkeypatch.setitem(sys.modules, package, None)
        message(lambda: chosen("tfds:tiny", str(tmp_path)), "to be installed", package, "pip install 'normlab[data]'")


def flip(path: Path, after: bytes) -> None:
    """Change the last of some bytes of a file."""
    content = bytearray(path.read_bytes())
    content[content.rindex(after) + len(after)] ^= 1
    path.write_bytes(content)


def change(path: Path, old: str, new: str) -> None:
    """Replace the first of some text in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


class TestChosen:
    def test_digits_unless_given(self) -> None:
        assert chosen() is digits()
        assert chosen(augment=["flip"]).augment == ("flip",)

    @pytest.mark.parametrize(
        ("n", "parts"), [(1797, (1024, 256, 517)), (1000, (570, 142, 288)), (700, (399, 100, 201)), (4, (2, 1, 1))]
    )
    def test_a_budget_for_digits_is_divided_as_all_of_them(self, n: int, parts: tuple[int, int, int]) -> None:
        data = chosen(train_examples=n)
        np.testing.assert_array_equal(data.inputs, digits().inputs[:n])
        assert sizes(data) == parts[:2]
        assert data.description == (
            f"Scikit-learn's 1,797 digits of 8 x 8 pixels, of which the first {n:,} are used; each seed has its own "
            f"split into {parts[0]:,} for training, {parts[1]} for validation and {parts[2]} for the test."
        )

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_a_budget_that_cannot_be_divided(self, n: int) -> None:
        message(lambda: chosen(train_examples=n), "Expected `--train-examples` to leave examples", f"got {n}.")

    def test_arrays_of_ones_own(self, tmp_path: Path) -> None:
        path, x, y = tmp_path / "mine.npz", PIXELS, LABELS
        np.savez(path, x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
        data = chosen(f"npz:{path}", train_examples=8)
        np.testing.assert_array_equal(data.inputs, x[[*range(8), *range(20, 30)]])
        np.testing.assert_array_equal(data.labels, y[[*range(8), *range(20, 30)]])
        assert data.test == 10
        assert data.description == "Of the 20 examples that are not given for validation or test, the first 8 are used."
        np.savez(path.with_stem("whole"), inputs=x, labels=y)
        whole = chosen(f"npz:{path.with_stem('whole')}", train_examples=20)
        np.testing.assert_array_equal(whole.inputs, x[:20])
        assert (sizes(whole), whole.description) == ((12, 4), "Of the 30 examples, the first 20 are used.")
        message(lambda: chosen(f"npz:{path}", train_examples=21), "`--train-examples` up to 20", "got 21")

    @pytest.mark.parametrize("data", ["mnist", "tfds:", "npz:", "digits:1", "", "cifar10:3.0.2"])
    def test_three_forms(self, data: str) -> None:
        message(lambda: chosen(data), "to be `digits`, `npz:PATH` or `tfds:NAME[:VERSION]`", f"got `{data}`")

    @pytest.mark.parametrize("options", [{"data_dir": "/"}, {"image_size": 4}, {"stream": True}])
    def test_what_only_prepared_sets_take(self, options: Any) -> None:
        message(lambda: chosen("digits", **options), "only with data `tfds:NAME`, got it with `digits`")

    def test_options_reach_the_program(self, tmp_path: Path) -> None:
        tiny(tmp_path / "sets")
        options = {"data": "tfds:tiny", "data_dir": str(tmp_path / "sets"), "augment": ["flip"], "train_examples": 10}
        request = requested(**options)
        assert request["train_examples"] == 10
        assert chosen(**request).augment == ("flip",)

    def test_options_are_checked_before_anything_is_read(self, tmp_path: Path) -> None:
        message(lambda: requested(data="mnist"), "`digits`, `npz:PATH` or `tfds:NAME[:VERSION]`")
        message(lambda: requested(data=f"npz:{tmp_path / 'no.npz'}"), "which does not exist")
        message(lambda: requested(augment=["mirror"]), "one of crop, flip, got `mirror`")
        message(lambda: requested(train_examples=0), "a positive whole number")

    def test_options_mean_the_same_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.savez(tmp_path / "mine.npz", inputs=PIXELS, labels=LABELS)
        monkeypatch.chdir(tmp_path)
        found = requested(data="npz:mine.npz", data_dir=".")
        assert found == {"data": f"npz:{tmp_path / 'mine.npz'}", "data_dir": str(tmp_path)}

    def test_folders_are_named_after_data(self) -> None:
        named = {option.name: option.folder for option in study.DATA_OPTIONS}["data"]
        assert named is not None
        told = ("digits", "npz:/a/mine.npz", "tfds:mnist:3.0.1", "tfds:glue/cola")
        assert [named(data) for data in told] == ["digits", "mine", "mnist-3.0.1", "glue-cola"]


def requested(**given: Any) -> dict[str, Any]:
    """What `chosen` is given where this is asked for."""
    from normlab.study.design.options import Given

    options = {option.name: option for option in sources.DATA_OPTIONS}
    return {name: options[name].checked(Given(value, f"`{name}`")) for name, value in given.items()}


@real
class TestRealData:
    @pytest.mark.parametrize(
        ("name", "shape", "mean", "std"),
        [
            ("mnist:3.0.1", (28, 28, 1), (0.1307,), (0.3081,)),
            ("cifar10", (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ],
    )
    def test_images_are_those_of_tensorflow_datasets(self, name: str, shape: Any, mean: Any, std: Any) -> None:
        data = chosen(f"tfds:{name}", str(PREPARED), train_examples=2000)
        assert data.inputs.shape == (12_000, *shape)
        assert (data.test, data.validation, sizes(data)) == (10_000, 0, (1800, 200))
        for split, start in (("train", 0), ("test", 2000)):
            source = tfds.data_source(name, split=split, data_dir=PREPARED, download=False)
            for index in (0, 1, 1999):
                np.testing.assert_array_equal(data.inputs[start + index], source[index]["image"])
                assert data.labels[start + index] == source[index]["label"]
        np.testing.assert_allclose(data.mean, mean, atol=0.006)  # of 2,000 examples, beside those of all
        np.testing.assert_allclose(data.std, std, atol=0.006)

    def test_text_has_no_labels(self) -> None:
        message(lambda: chosen("tfds:tiny_shakespeare", str(PREPARED)), "Expected inputs in `image`", "`text` (Text)")

    def test_neither_tensorflow_nor_jax_is_imported(self) -> None:
        code = (
            "import sys; from normlab.study.data.options import chosen; "
            f"chosen('tfds:mnist', {str(PREPARED)!r}, train_examples=10); "
            "sys.exit(bool({'tensorflow', 'jax'} & set(sys.modules)))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def test_scaled_and_standardized_inputs() -> None:
    data = Data(PIXELS, LABELS, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    expected = (PIXELS.astype(np.float64) / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    np.testing.assert_allclose(data.prepared(data.inputs), expected, rtol=1e-5, atol=1e-6)
