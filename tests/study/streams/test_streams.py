"""Streams: river's examples, drifts where they are said to be, the cache, users' files, bursts, baselines."""

import hashlib
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import datasets, evaluate, linear_model, metrics, multiclass, preprocessing, tree
from river.datasets import synth
from sklearn.ensemble import RandomForestClassifier

from normlab.cli.main import main
from normlab.errors import BadInput
from normlab.study.data.dataset import digits
from normlab.study.design.provenance import data_hash
from normlab.study.streams import baselines, generators
from normlab.study.streams import stream as stream_module
from normlab.study.streams.generators import KINDS, river_seed
from normlab.study.streams.preprocessing import standardized
from normlab.study.streams.recorded import bundled, from_file, recorded
from normlab.study.streams.stream import FORMAT, Source, Stream, bursts
from normlab.study.streams.synthetic import synthetic
from normlab.study.streams.tasks import permuted_digits, split_digits

GIVEN: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "sea": (synth.SEA, [{"variant": 2}, {"variant": 3}]),
    "agrawal": (synth.Agrawal, [{"classification_function": 0}, {"classification_function": 5}]),
    "hyperplane": (synth.Hyperplane, [{"n_drift_features": 10}] * 2),
    "rbf": (synth.RandomRBFDrift, [{}] * 2),
    "led": (
        synth.LEDDrift,
        [{"irrelevant_features": True, "noise_percentage": 0.1, "n_drift_features": n} for n in (0, 7)],
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "streams"


def concept(kind: str, seed: int, number: int, **options: Any) -> Any:
    """A concept's generator as river makes it."""
    make, concepts = GIVEN[kind]
    names = ("seed_model", "seed_sample") if kind == "rbf" else ("seed",)
    seeds = {name: river_seed(seed, number, part) for part, name in enumerate(names)}
    return make(**{**concepts[number], **seeds, **options})


def taken(dataset: Any, n: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*itertools.islice(dataset, start, start + n), strict=True)
    return np.array([list(row.values()) for row in x], np.float32), np.array(y, np.int32)


def assert_joined(stream: Stream, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    np.testing.assert_array_equal(stream.inputs, np.concatenate([inputs for inputs, _ in parts]))
    np.testing.assert_array_equal(stream.labels, np.concatenate([labels for _, labels in parts]))


def digest(stream: Stream) -> str:
    return data_hash({"inputs": stream.inputs, "labels": stream.labels})


@pytest.mark.parametrize("kind", KINDS)
class TestSynthetic:
    def test_no_drift_is_rivers_generator(self, kind: str) -> None:
        stream = synthetic(kind, n=200, drift="none", standardize=False)(4)
        assert_joined(stream, [taken(concept(kind, 4, 0), 200)])
        assert stream.drifts == ()
        assert stream.classes == (10 if kind == "led" else 2)

    def test_abrupt(self, kind: str) -> None:
        stream = synthetic(kind, n=300, standardize=False, positions=(80, 190))(3)
        assert stream.drifts == (80, 190)
        parts = [taken(concept(kind, 3, 0), 80), taken(concept(kind, 3, 1), 110)]
        assert_joined(replace(stream, inputs=stream.inputs[:190], labels=stream.labels[:190], drifts=()), parts)

    def test_a_concept_that_recurs_goes_on(self, kind: str) -> None:
        stream = synthetic(kind, n=400, drift="recurring", standardize=False, positions=(90, 200, 250))(3)
        first, second = concept(kind, 3, 0), concept(kind, 3, 1)
        parts = [taken(first, 90), taken(second, 110), taken(first, 50, 90), taken(second, 150, 110)]
        assert_joined(stream, parts)
        if kind != "led":  # where all is zeros and ones
            assert len(np.unique(stream.inputs, axis=0)) == 400

    def test_gradual_is_rivers_mixture(self, kind: str) -> None:
        source = synthetic(kind, n=200, drift="gradual", standardize=False)
        for seed in range(len(kind), len(kind) + 3):  # others for other kinds: a single position later shows in few
            mixture = synth.ConceptDriftStream(
                concept(kind, seed, 0), concept(kind, seed, 1), position=101, width=20, seed=river_seed(seed, 1, 2)
            )
            assert source(seed).drifts == (100,)
            assert_joined(source(seed), [taken(mixture, 200)])

    def test_what_was_learned_becomes_wrong(self, kind: str) -> None:
        stream = synthetic(kind, n=2000, positions=(1400,))(0)
        forest = RandomForestClassifier(30, random_state=0).fit(stream.inputs[:1000], stream.labels[:1000])
        wrong = forest.predict(stream.inputs) != stream.labels
        least = {"sea": 0.15, "agrawal": 0.5, "hyperplane": 0.1, "rbf": 0.3, "led": 0.5}[kind]
        assert wrong[1400:].mean() - wrong[1000:1400].mean() > least

    def test_seeds(self, kind: str) -> None:
        source = synthetic(kind, n=50)
        assert source.replicated
        assert len({digest(source(seed)) for seed in range(4)}) == 4
        kept = {digest(source(2)), digest(replace(source, content=None)(2))}
        assert len(kept) == 1


class TestDrift:
    def test_the_label_function_changes_at_the_position(self) -> None:
        stream = synthetic("sea", n=3000, drift="recurring", positions=(700, 1900), standardize=False)(0)
        total = stream.inputs[:, 0].astype(np.float64) + stream.inputs[:, 1]
        after = (np.arange(3000) >= 700) & (np.arange(3000) < 1900)
        np.testing.assert_array_equal(stream.labels, total > np.where(after, 9.5, 7.0))

    def test_share_of_the_new_concept(self) -> None:
        """Of examples between the two thresholds it is seen which concept they are of."""
        source = synthetic("sea", n=20_000, drift="gradual", width=4000, standardize=False)
        stream = source(0)
        total = stream.inputs[:, :2].sum(1)
        told = (total > 7.01) & (total < 9.49)
        for distance in (-4000, -2000, 0, 2000, 4000):
            near = told & (abs(np.arange(20_000) - 10_000 - distance) < 400)
            new = 1 - stream.labels[near].mean()
            assert new == pytest.approx(1 / (1 + math.exp(-4 * distance / 4000)), abs=0.1)

    def test_a_change_that_river_cannot_compute(self) -> None:
        first, second = synth.SEA(variant=2, seed=0), synth.SEA(variant=3, seed=1)
        with pytest.raises(OverflowError):
            next(iter(synth.ConceptDriftStream(first, second, position=5000, width=10)))
        stream = synthetic("sea", drift="gradual", width=10, standardize=False)(0)
        late = stream.inputs[:, :2].sum(1) > 7
        np.testing.assert_array_equal(stream.labels[:4900], late[:4900])
        assert (stream.labels[5100:] != late[5100:]).mean() == pytest.approx(0.206, abs=0.03)

    @pytest.mark.parametrize(
        ("kind", "options"), [("hyperplane", {"mag_change": 0.003}), ("rbf", {"change_speed": 1e-4})]
    )
    def test_incremental_is_rivers_generator(self, kind: str, options: dict[str, float]) -> None:
        stream = synthetic(kind, n=200, drift="incremental", standardize=False)(1)
        assert_joined(stream, [taken(concept(kind, 1, 0, **options), 200)])
        assert digest(stream) != digest(synthetic(kind, n=200, drift="none", standardize=False)(1))

    def test_options_go_to_river(self) -> None:
        stream = synthetic("sea", n=200, positions=(100,), variant=(0, 1), noise=0.2, standardize=False)(0)
        first, second = (concept("sea", 0, number, variant=number, noise=0.2) for number in (0, 1))
        assert_joined(stream, [taken(first, 100), taken(second, 100)])
        assert "variant=(0, 1), noise=0.2" in stream.description

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kind": "see"}, "Expected a kind of stream, got `see`. Did you mean `sea`?"),
            ({"kind": "sea", "drift": "sudden"}, "Expected a kind of drift, got `sudden`"),
            ({"kind": "sea", "n": 0}, "Expected `n` to be at least 1 example, got 0"),
            ({"kind": "sea", "drift": "incremental"}, "moves by itself .*`hyperplane` or `rbf`, got `sea`"),
            ({"kind": "rbf", "drift": "incremental", "positions": (5,)}, r"Expected `positions` for .* got \(5,\)"),
            ({"kind": "rbf", "positions": ()}, r"Expected `positions` for abrupt, .* got \(\) for `abrupt`"),
            ({"kind": "sea", "n": 100, "positions": (100,)}, "from 1 to 99, in a stream of 100 examples, got 100"),
            ({"kind": "sea", "n": 100, "positions": (0,)}, "from 1 to 99, in a stream of 100 examples, got 0"),
            ({"kind": "sea", "n": 100, "positions": (50, 50)}, r"drifts that increase, got \(50, 50\)"),
            ({"kind": "sea", "width": 5}, "Expected `width` from 1 on, .* got 5 for `abrupt`"),
            ({"kind": "sea", "drift": "gradual", "width": 0}, "Expected `width` from 1 on, .* got 0"),
            ({"kind": "sea", "variant": 1}, "Expected a tuple of different values of `variant`"),
        ],
    )
    def test_what_makes_no_stream(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(BadInput, match=message):
            synthetic(**arguments)

    @pytest.mark.parametrize("options", [{"noises": 1}, {"variant": (2, 9)}, {"seed": 3}])
    def test_options_that_river_does_not_know(self, options: dict[str, Any]) -> None:
        with pytest.raises(BadInput, match="Expected options of river's `SEA`, got"):
            synthetic("sea", **options)(0)


class TestStandardized:
    def test_is_rivers(self) -> None:
        random = np.random.default_rng(0)
        inputs = random.normal([0, 1e4, 3, -2], [1, 10, 0, 1e-3], (300, 4))
        inputs[:, 3] = np.where(np.arange(300) < 50, 7, inputs[:, 3])  # constant for a while
        scaler, expected = preprocessing.StandardScaler(), []
        for row in inputs:
            scaler.learn_one(dict(enumerate(row)))
            expected.append(list(scaler.transform_one(dict(enumerate(row))).values()))
        np.testing.assert_allclose(standardized(inputs), expected, atol=1e-5)

    def test_nothing_of_the_future(self) -> None:
        inputs = np.random.default_rng(1).normal(5, 3, (80, 2, 3))
        np.testing.assert_array_equal(standardized(inputs)[:30], standardized(inputs[:30]))

    def test_switched_off(self) -> None:
        raw, ours = (synthetic("agrawal", n=50, drift="none", standardize=on)(0) for on in (False, True))
        np.testing.assert_allclose(ours.inputs, standardized(raw.inputs), atol=1e-4)
        assert raw.inputs.max() > 1e5
        assert "standardized by the mean and standard deviation of the examples so far" in ours.description
        assert "standardized" not in raw.description


CODE = """
import sys
from normlab.study import streams
from normlab.study.streams import baselines
assert not {"jax", "river", "sklearn"} & set(sys.modules), sys.modules.keys()
from normlab.study.design.provenance import data_hash
for kind in ("agrawal", "rbf"):
    stream = streams.synthetic(kind, n=100, drift="gradual")(7)
    print(data_hash({"inputs": stream.inputs, "labels": stream.labels}))
assert "jax" not in sys.modules
"""


class TestCache:
    def test_processes_at_the_same_time(self, cache: Path) -> None:
        here = [digest(synthetic(kind, n=100, drift="gradual")(7)) for kind in ("agrawal", "rbf")]
        for entry in cache.iterdir():
            entry.unlink()
        command = [sys.executable, "-W", "error", "-c", CODE]
        processes = [
            subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True)
            for seed in ("1", "2")
        ]
        assert [process.communicate(timeout=60)[0].split() for process in processes] == [here] * 2
        assert len(list(cache.iterdir())) == 2

    @pytest.mark.parametrize(
        ("kind", "told"), [("sea", "2a5e85a14279c392"), ("agrawal", "45658b0dc405ff85"), ("led", "67c233ec4361a0d5")]
    )
    def test_bytes_are_always_the_same(self, kind: str, told: str) -> None:
        """Written down with river 0.26.1 and Python 3.11; 3.12 and 3.13 gave the same."""
        assert digest(synthetic(kind, n=100, drift="gradual")(7))[:16] == told

    def test_what_is_kept_is_read(self, cache: Path) -> None:
        made = []
        source = permuted_digits(tasks=2, per_task=20, held_out=10)
        counting = replace(source, make=lambda seed: made.append(seed) or source.make(seed))
        first, second = counting(1), counting(1)
        assert made == [1]
        assert vars(first).keys() == vars(second).keys()
        for name, value in vars(first).items():
            np.testing.assert_equal(getattr(second, name), value)
        assert first.held_out is not None and first.held_out[2].dtype == np.int32
        counting(2)
        assert made == [1, 2]
        assert len(list(cache.iterdir())) == 2

    def test_damage(self, cache: Path) -> None:
        source = split_digits(per_task=2, held_out=1)
        whole = digest(source(0))
        (path,) = cache.iterdir()
        content = path.read_bytes()
        broken = [content[:100], content[:-1], b"", b"text", content.replace(b"labels", b"labelz")]
        for place in range(0, len(content), 97):
            broken.append(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        for bad in broken:
            path.write_bytes(bad)
            assert digest(source(0)) == whole
        path.write_bytes(content[:100])
        source(0)
        assert path.read_bytes() == content

    def test_every_option_is_in_the_key(self, cache: Path, tmp_path: Path) -> None:
        path = write(tmp_path, "a,b,y\n1,2,0\n3,4,1\n5,6,0\n")
        made = [
            synthetic("sea", n=50),
            synthetic("sea", n=51),
            synthetic("led", n=50),
            synthetic("sea", n=50, drift="none"),
            synthetic("sea", n=50, drift="gradual"),
            synthetic("sea", n=50, drift="gradual", width=9),
            synthetic("sea", n=50, positions=(20,)),
            synthetic("sea", n=50, standardize=False),
            synthetic("sea", n=50, noise=0.1),
            bundled("phishing"),
            bundled("phishing", standardize=False),
            split_digits(per_task=3, held_out=2),
            split_digits(per_task=2, held_out=2),
            split_digits(per_task=3, held_out=3),
            permuted_digits(tasks=2, per_task=3, held_out=2),
            permuted_digits(tasks=3, per_task=3, held_out=2),
            from_file(path),
            from_file(path, label="y"),
            from_file(path, classes=("0", "1")),
            from_file(path, numbers=True),
            from_file(path, drifts=(1,)),
            from_file(path, skip_nonfinite=True),
            from_file(path, standardize=False),
            from_file(path, drop=("b",)),
            from_file(path, header=True),
        ]
        for source in made:
            source(0)
        assert len(list(cache.iterdir())) == len(made)
        path.write_text("a,b,y\n1,2,0\n3,4,1\n5,7,0\n")
        assert from_file(path, standardize=False)(0).inputs[2].tolist() == [5, 7]

    def test_river_and_the_format_are_in_the_key(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = synthetic("sea", n=20)
        source(0)
        monkeypatch.setattr(stream_module, "FORMAT", FORMAT + 1)
        source(0)
        monkeypatch.setattr(stream_module, "version", lambda name: "0.0")
        source(0)
        assert len(list(cache.iterdir())) == 3

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
        assert len(synthetic("sea", n=20)(0).labels) == 20

    def test_threads(self) -> None:
        source = synthetic("sea", n=500)
        with ThreadPoolExecutor(8) as pool:
            assert len({digest(stream) for stream in pool.map(source, [0] * 16)}) == 1

    def test_without_river(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> str:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(stream_module, "version", missing)
        with pytest.raises(BadInput, match=r"Expected `river` to be installed, got none. Run `pip install"):
            synthetic("sea")(0)

    def test_ones_own_source(self) -> None:
        source = Source("mine", lambda seed: Stream(name="", inputs=[[seed], [1]], labels=[0, 1], classes=2), True)
        assert source(3).name == "mine"
        assert source(3).inputs.tolist() == [[3], [1]]


class TestRecorded:
    @pytest.mark.parametrize(
        ("name", "dataset", "classes"),
        [
            ("phishing", datasets.Phishing, 2),
            ("bananas", datasets.Bananas, 2),
            ("image_segments", datasets.ImageSegments, 7),
            ("trump_approval", datasets.TrumpApproval, 0),
        ],
    )
    def test_bundled(self, name: str, dataset: Callable[[], Any], classes: int, cache: Path) -> None:
        source = bundled(name, standardize=False)
        stream, (x, y) = source(5), zip(*dataset(), strict=True)
        assert not source.replicated
        assert digest(source(6)) == digest(stream)
        assert len(list(cache.iterdir())) == 1
        np.testing.assert_array_equal(stream.inputs, np.array([list(row.values()) for row in x], np.float32))
        assert stream.classes == classes
        if name == "image_segments":
            y = [list(dict.fromkeys(y)).index(label) for label in y]
        np.testing.assert_array_equal(stream.labels, np.array(y, stream.labels.dtype))

    @pytest.mark.skipif(not os.environ.get("NORMLAB_DATA"), reason="NORMLAB_DATA is not set")
    @pytest.mark.parametrize(("name", "n", "features"), [("weather", 18_159, 8), ("outdoor", 4_000, 21)])
    def test_recorded(self, name: str, n: int, features: int) -> None:
        stream = recorded(name, standardize=False)(0)
        assert stream.inputs.shape == (n, features)
        counts = np.bincount(stream.labels).tolist()
        assert counts == ([12_461, 5_698] if name == "weather" else [100] * 40)
        if name == "weather":
            np.testing.assert_allclose(stream.inputs[0], [19.8, 14.0, 1019.6, 8.4, 9.9, 15.9, 28.9, 14.0], rtol=1e-6)

    def test_the_place_of_recorded_streams(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "feat_1,target\n1.5,0\n2.5,1\n", "raw/weather/weather.csv")
        monkeypatch.delenv("NORMLAB_DATA", raising=False)
        with pytest.raises(BadInput, match=r"got none. Set `NORMLAB_DATA`"):
            recorded("weather")
        assert recorded("weather", tmp_path)(0).labels.tolist() == [0, 1]
        monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
        assert recorded("weather", standardize=False)(0).inputs.tolist() == [[1.5], [2.5]]
        write(tmp_path, "1 2\n3 4\n", "raw/outdoor/outdoorStream.data")
        with pytest.raises(BadInput, match=r"`outdoor` in `.*outdoorStream.labels`, got no such file"):
            recorded("outdoor")
        write(tmp_path, "1\n0\n", "raw/outdoor/outdoorStream.labels")
        assert recorded("outdoor")(0).labels.tolist() == [1, 0]

    def test_unknown_names(self) -> None:
        with pytest.raises(BadInput, match=r"Expected a data set of river's, got `fishing`. Did you mean `phishing`"):
            bundled("fishing")
        with pytest.raises(BadInput, match=r"Expected a recorded stream, got `whether`. Did you mean `weather`"):
            recorded("whether")


def write(folder: Path, content: str | bytes, name: str = "mine.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestFromFile:
    def test_csv(self, tmp_path: Path) -> None:
        path = write(tmp_path, "\ufeffa, b,kind\r\n1,-2.5e1,cat\r\n\r\n3,4,dog\r\n5,6,cat\r\n")
        stream = from_file(path, standardize=False, drifts=(2,))(0)
        assert stream.inputs.tolist() == [[1, -25], [3, 4], [5, 6]]
        assert stream.labels.tolist() == [0, 1, 0]
        assert (stream.name, stream.classes, stream.drifts) == ("mine", 2, (2,))
        assert hashlib.sha256(path.read_bytes()).hexdigest() in stream.description

    @pytest.mark.parametrize(
        ("content", "options"),
        [
            ("1.5,2,u\n3,4,v\n", {"header": False}),
            ("1.5,2,u\n3,4,v\n", {"header": False, "label": "3"}),
            ("7,1.5,2,u\n7,3,4,v\n", {"header": False, "drop": ("1",)}),
            ("u,1.5,2\nv,3,4\n", {"header": False, "label": "1"}),
            ("0,1,kind\n1.5,2,u\n3,4,v\n", {"header": True}),
            ("0,1,kind\n1.5,2,u\n3,4,v\n", {"label": "kind"}),
            ("0,1,2\n1.5,2,u\n3,4,v\n", {"header": True}),
            ("name,a,b,y\nx,1.5,2,u\n,3,4,v\n", {"drop": ["name"]}),
            ("name,a,when,b,y\nx,1.5,today,2,u\n,3,,4,v\n", {"drop": ("when", "name")}),
            ("a;b;y\r\n1.5;2;u\r\n3;4;v", {"delimiter": ";"}),
            ("a|b|y\r1.5|2|u\r3|4|v\r", {"delimiter": "|"}),
            ("a\tb\ty\n1.5\t2\t u\n3\t4\tv \n", {"delimiter": "tab"}),
            ('\n\n"a","b, c",y\n1.5,"2",u\n  \n3,4," v "\n\n', {}),
            ('a,b,"the ""kind"""\n1.5,2,u\n3,4,v\n', {"label": 'the "kind"'}),
        ],
    )
    def test_ways_to_write_a_csv(self, tmp_path: Path, content: str, options: dict[str, Any]) -> None:
        stream = from_file(write(tmp_path, content), standardize=False, **options)(0)
        assert stream.inputs.tolist() == [[1.5, 2], [3, 4]]
        assert (stream.labels.tolist(), stream.classes) == ([0, 1], 2)

    def test_labels_are_stripped(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a,y\n1,u\n2,u \n3,\tv\n4,v\u00a0\n5, u\n")
        for options in ({}, {"classes": ("u", "v")}):
            stream = from_file(path, **options)(0)
            assert (stream.labels.tolist(), stream.classes) == ([0, 0, 1, 1, 0], 2)

    def test_options_of_csv_are_not_for_npz(self) -> None:
        for options in ({"drop": ("a",)}, {"header": True}, {"header": False}, {"delimiter": ";"}):
            with pytest.raises(BadInput, match="Expected `drop`, `header` and `delimiter` for a "):
                from_file("mine.npz", **options)

    def test_the_command_line_hands_them_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(tmp_path, "".join(f"x;{i};{i % 7};{i % 2}\n" for i in range(200)))
        command = ["run", "online", "--problems", "file", "--stream", str(path), "--tier", "smoke", "--norms", "none"]
        plan = [*command, "--dry-run", "--curves", "burst", "--output", str(tmp_path / "out")]
        for options, message in (
            ([], "with `;` in it. Pass `delimiter=';'` (`--delimiter ';'`)"),
            (["--delimiter", ":"], "Expected `--delimiter` to be one of ,, ;, |, tab, got `:`"),
            (["--delimiter", ";", "--no-header"], "got `x` in line 1. Write it as a number, or leave the column out"),
            (["--delimiter", ";", "--no-header", "--drop", "5"], "Expected columns of"),
        ):
            assert main([*plan, *options]) == 2
            assert message in capsys.readouterr().err
        assert main([*plan, "--delimiter", ";", "--no-header", "--drop", "1"]) == 0
        assert main([*plan, "--delimiter", ";", "--no-header", "--drop", "1,2", "--label", "4"]) == 0

    @pytest.mark.parametrize(
        ("cells", "options", "labels", "classes"),
        [
            (("2", "0", "1"), {}, [2, 0, 1], 3),
            (("2", "0", "1"), {"numbers": True}, [2, 0, 1], 0),
            (("2", "0.5", "1"), {}, [2, 0.5, 1], 0),
            (("b", "a", "b"), {}, [0, 1, 0], 2),
            (("b", "a", "b"), {"classes": ("a", "b", "c")}, [1, 0, 1], 3),
            (("5", "-1", "5"), {"classes": (-1, 5)}, [1, 0, 1], 2),
        ],
    )
    def test_labels(
        self, tmp_path: Path, cells: tuple[str, ...], options: dict[str, Any], labels: list[float], classes: int
    ) -> None:
        path = write(tmp_path, "y,x\n" + "".join(f"{cell},1\n" for cell in cells))
        values = np.array(cells) if "a" in cells else np.array(cells, np.float64 if "0.5" in cells else np.int64)
        np.savez(tmp_path / "mine.npz", inputs=np.ones((3, 1)), labels=values)
        for source in (
            from_file(path, label="y", **options),
            from_file(tmp_path / "mine.npz", **options),
        ):
            stream = source(0)
            assert stream.labels.tolist() == labels
            assert stream.classes == classes

    def test_npz_of_images(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
        np.savez(tmp_path / "mine.npz", inputs=images, labels=np.arange(9) % 2 == 1)
        stream = from_file(tmp_path / "mine.npz")(0)
        np.testing.assert_allclose(stream.inputs, standardized(images), rtol=1e-6)
        assert stream.labels.tolist() == [0, 1] * 4 + [0]

    def test_what_is_not_finite_is_left_out(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a,b,y\n1,2,0\nnan,2,1\n3,4,1\n5,inf,0\n5,6,\n,6,0\n7,8,1\n1e300,0,1\n")
        stream = from_file(path, skip_nonfinite=True, standardize=False, drifts=(4,))(0)
        assert stream.inputs.tolist() == [[1, 2], [3, 4], [7, 8]]
        assert stream.labels.tolist() == [0, 1, 1]
        assert (stream.skipped, stream.drifts) == (5, (2,))
        assert "3 examples, 5 left out because a value was not finite" in stream.description

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            ("", {}, r"names of features and of the label in the first line of `.*mine.csv`, got \[\]"),
            ("y\n1\n", {}, r"names of features and of the label .* got \['y'\]"),
            ("a,y\n", {}, "Expected examples in `.*mine.csv`, got none"),
            ("1,2,0\n3,4,1\n", {}, "Expected names of columns in the first line of .* got numbers"),
            ("a,b,y\n1,2,0\n1,2\n", {}, "Expected 3 values in line 3 of `.*mine.csv`, as in its first, got 2"),
            ("a,b,y\n1,2,0\n1,2,3,4\n", {}, "Expected 3 values in line 3 of .* got 4"),
            ("a,b,y\n1,2,0\n3,x,0\n", {}, "numbers in column `b` of .*, got `x` in line 3 after numbers"),
            ("a,b,y\n1,x,0\n3,4,0\n", {}, "numbers in column `b` of .*, got `x` in line 2. Write it"),
            ("a,b,y\n1,2,0\n3,nan,0\n", {}, "got nan for column `b` in line 3, the first of 1 such .*`skip_nonfinite="),
            ("a,b,y\n1,2,0\n3,-inf,0\n4,,0\n", {}, "got -inf for column `b` in line 3, the first of 2 such"),
            ("a,b,y\n1,2,0\n3,4,inf\n", {}, "got `inf` for the label in line 3"),
            ("a,b,y\n1,2,a\n3,4,\n", {}, "got `` for the label in line 3"),
            ("a,b,y\nnan,2,0\n", {"skip_nonfinite": True}, "Expected examples with finite numbers .* got none: nan"),
            ("a,b,y\n1,2,0\n3,4,dog\n", {}, "all numbers or all text, got `dog` in line 3 after `0`"),
            ("a,b,y\n1,2,0\n3,4,-1\n", {}, "classes counted from 0 in .*, got -1 in line 3. Pass `classes`"),
            ("a,y\n1,cat\n2,cot\n", {"classes": ["cat"]}, "declared classes, got `cot` in line 3. Did you mean `cat`"),
            ("a,y\n1,0\n2,1\n", {"label": "b"}, "Expected a column `b` of labels in .*, got none. "),
            ("a,y\n1,0\n2,1\n", {"drifts": (2,)}, "from 1 to 1, in a stream of 2 examples, got 2"),
            ("a,y\n1,0\n2,1\n", {"drifts": (100,)}, "from 1 to 1, in a stream of 2 examples, got 100"),
            ("a,y\n1,0\n2,1\n3,1\n", {"drifts": (2, 1)}, r"drifts that increase, got \(2, 1\)"),
            (b"a,y\n\xff\xfe,0\n", {}, "file in UTF-8, got .* with the byte 0xff in line 2. Save it as UTF-8"),
            (b"a,y\n1,caf\xe9\n", {}, "with the byte 0xe9 in line 2"),
            (b"a,y\n1,0\n2,\x000\n", {}, "with the byte 0x00 in line 3"),
            ("a,y\n1,0\n".encode("utf-16"), {}, "with the byte 0xff in line 1"),
            (
                'a,y\n1,u\n2,"v\n3,u\n4,v\n',
                {},
                "in line 3 of `.*mine.csv`, got unexpected end of data. Close quotes on",
            ),
            ('a,y\n1,u\n2,"v\n3,u"\n4,v\n', {}, "in line 3 of .*, got a quote that is closed only in line 4. Close"),
            ('a,y\n1,"u\n2,v\n3,"w\n', {}, "in line 2 of .*, got ',' expected after '\"'"),
            ('a,y\n1,"u"x\n', {}, "in line 2 of .*, got ',' expected after '\"'"),
            ('"a,y\n1,u\n', {}, "in line 1 of .*, got unexpected end of data"),
            (f"a,y\n1,{'u' * 200_000}\n", {}, "in line 2 of .*, got field larger than field limit"),
            (
                "1.5,2,cat\n3,4,dog\n",
                {},
                "names of columns in the first line of .* got numbers. Pass `header=False` .*--no-",
            ),
            ("NA,2,-1\n3,4,0\n", {}, "Expected names of columns in the first line of .* got numbers"),
            ("red,2.5,cat\n3,4,dog\n", {}, "Expected names of columns in the first line of .* got numbers"),
            ("1.5,,cat\n3,4,dog\n", {}, "Expected names of columns in the first line of .* got numbers"),
            ("0,1,kind\n3,4,dog\n", {}, "and `header=True` .`--header`. if these are the names"),
            (
                "a,b,y\n1,2,0\n",
                {"header": False},
                "Expected numbers in column `1` of .*, got `a` in line 1. Write it as",
            ),
            (
                "a,b, a ,y\n1,2,3,0\n",
                {},
                "every name once in the first line of .*, got `a` for columns 1 and 3. Rename one",
            ),
            (",a,y\n0,1,0\n", {}, "Expected a name for every column in the first line of .*, got none for 1"),
            ("a;b;y\n1;2;0\n", {}, r"`,` in line 1 of .*, got one value with `;` in it. Pass `delimiter=';'` \(`--del"),
            ("a\tb\ty\n1\t2\t0\n", {}, r"got one value with `tab` in it. Pass `delimiter='tab'` \(`--delimiter 'tab'`"),
            ("a,b,y\n1,2,0\n", {"delimiter": ";"}, "Expected values between `;` in line 1 of .*with `,` in it"),
            ("1;2;0\n", {"header": False}, "Expected values between `,` in line 1 of .*with `;` in it"),
            ("a;b;y\n1,5;2;0\n", {"delimiter": ";"}, "in column `a` of .*, got `1,5` in line 2"),
            ("a,b,y\n1,2,0\n1_000,2,0\n", {}, "numbers in column `a` of .*, got `1_000` in line 3"),
            ("a,b,y\n1,x,0\n", {}, r"or leave the column out by `drop=\('b',\)` \(`--drop b`\)"),
            ("a,b,y\n1,2,0\n", {"drop": ("c",)}, "Expected columns of .* in `drop`, got `c`. Known: a, b, y"),
            ("a,b,y\n1,2,0\n", {"drop": ("y",)}, "features of .* in `drop`, got the label `y`. Pass another `label`"),
            ("a,b,y\n1,2,0\n", {"drop": ("a", "b")}, "features of .* besides those in `drop`, got none. Drop fewer"),
            ("a,y\n1,u\n2,\n3,u \n", {}, "got `` for the label in line 3, the first of 1 such"),
            ('a,y\n1,u\n2,"  "\n', {}, "got `` for the label in line 3"),
            ("a,y\n1,0\n\n \n2,3,4\n", {}, "Expected 2 values in line 5 of"),
            ("a,y\n1,0\n3,1e300\n", {}, r"classes counted from 0 in .*, got 1e\+300 in line 3"),
            ("a,y\n1,0\n", {"delimiter": "x"}, "Expected `delimiter` to be one of ,, ;, [|], tab, got `x`"),
        ],
    )
    def test_bad_csv(self, tmp_path: Path, content: str | bytes, options: dict[str, Any], message: str) -> None:
        path = write(tmp_path, content)
        with pytest.raises(BadInput, match=message) as caught:
            from_file(path, **options)(0)
        assert "\n" not in str(caught.value)
        assert path.exists()

    @pytest.mark.parametrize(
        ("arrays", "options", "message"),
        [
            ({"x": np.ones(3)}, {}, "Expected an .npz file with `inputs` and `labels`, got `.*mine.npz`"),
            ({"inputs": np.ones((0, 2)), "labels": np.ones(0)}, {}, "Expected examples in `.*mine.npz`, got none"),
            (
                {"inputs": np.ones((2, 0)), "labels": np.ones(2)},
                {},
                r"of shape \(n, features\).* got float64 of shape \(2, 0\)",
            ),
            ({"inputs": np.ones((2, 1)), "labels": np.ones(3)}, {}, r"labels of shape \(3,\)"),
            ({"inputs": np.array([["a"]]), "labels": np.ones(1)}, {}, "to be numbers of shape .* got <U1"),
            ({"inputs": np.array([[1, np.nan]]), "labels": np.ones(1)}, {}, "got nan for feature 1 in example 0"),
            ({"inputs": np.ones((2, 1)), "labels": np.array([1, np.nan])}, {}, "got `nan` for the label in example 1"),
            ({"inputs": np.ones((2, 1)), "labels": np.arange(2)}, {"label": "y"}, "Expected no `label` for an .npz"),
            ({"inputs": np.ones((2, 1)), "labels": np.arange(2)}, {"classes": (0, 2)}, "got `1` in example 1"),
        ],
    )
    def test_bad_npz(
        self, tmp_path: Path, arrays: dict[str, np.ndarray], options: dict[str, Any], message: str
    ) -> None:
        np.savez(tmp_path / "mine.npz", **arrays)  # pyright: ignore[reportArgumentType]
        with pytest.raises(BadInput, match=message):
            from_file(tmp_path / "mine.npz", **options)(0)

    def test_no_such_file(self, tmp_path: Path) -> None:
        for name in ("mine.csv", "mine.npz"):
            with pytest.raises(BadInput, match=rf"in `.*{name}`, which cannot be read: No such file"):
                from_file(tmp_path / name)(0)
        with pytest.raises(BadInput, match=r"Expected a .csv or .npz file, got `mine.txt`"):
            from_file("mine.txt")
        np.save(tmp_path / "one.npy", np.ones(3))
        for content in (b"", b"text", b"PK\x03\x04", (tmp_path / "one.npy").read_bytes()):
            with pytest.raises(BadInput, match=r"Expected an .npz file with `inputs` and `labels`"):
                from_file(write(tmp_path, content, "mine.npz"))(0)


class TestStream:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"inputs": np.ones((0, 1)), "labels": []}, "some examples in `labels`, got none"),
            ({"labels": [0, 1]}, r"inputs of shape \(3, 1\) and labels of shape \(2,\)"),
            ({"inputs": [[1], [np.inf], [0]]}, "finite numbers in the stream `s`, got inf in example 1"),
            ({"labels": [0, 1, 2]}, "labels from 0 to 1 in the stream `s`, got 2 in example 2"),
            ({"drifts": (3,)}, "from 1 to 2, in a stream of 3 examples, got 3"),
        ],
    )
    def test_is_checked(self, changed: dict[str, Any], message: str) -> None:
        with pytest.raises(BadInput, match=message):
            Stream(**{"name": "s", "inputs": np.ones((3, 1)), "labels": [0, 1, 1], "classes": 2, **changed})


class TestDigits:
    def test_split(self) -> None:
        stream = split_digits(per_task=290, held_out=60)(0)
        assert stream.tasks == (0, 290, 580, 870, 1160)
        assert stream.drifts == stream.tasks[1:]
        np.testing.assert_array_equal(stream.labels // 2, np.repeat(np.arange(5), 290))
        assert set(np.unique(stream.labels)) == set(range(10))
        assert stream.held_out is not None
        inputs, labels, task = stream.held_out
        np.testing.assert_array_equal(task, np.repeat(np.arange(5), 60))
        np.testing.assert_array_equal(labels // 2, task)
        both = np.concatenate([stream.inputs, inputs]).reshape(-1, 64)
        assert stream.inputs.shape == (1450, 8, 8, 1)
        assert both.min() == 0 and both.max() == 1
        known = {row.tobytes() for row in digits().inputs}
        assert {row.tobytes() for row in both} <= known
        assert len({row.tobytes() for row in both}) == len(both)  # no digit twice, in the stream or held out
        assert digest(split_digits()(1)) != digest(stream)

    def test_permuted(self) -> None:
        stream = permuted_digits(tasks=3, per_task=100, held_out=40)(0)
        assert stream.held_out is not None
        inputs, labels, task = stream.held_out
        held_out = inputs.reshape(3, 40, 64)
        np.testing.assert_array_equal(labels.reshape(3, 40), np.tile(labels[:40], (3, 1)))
        np.testing.assert_array_equal(task, np.repeat(np.arange(3), 40))
        known = {row.tobytes(): label for row, label in zip(digits().inputs, digits().labels, strict=True)}
        assert [known[row.tobytes()] for row in stream.inputs[:100]] == stream.labels[:100].tolist()
        for number in (1, 2):
            np.testing.assert_array_equal(np.sort(held_out[number]), np.sort(held_out[0]))  # the same pixels
            assert not np.array_equal(held_out[number], held_out[0])
            columns = [np.flatnonzero((held_out[0] == column[:, None]).all(0)) for column in held_out[number].T]
            assert all(len(found) for found in columns)  # one order for all digits
        assert not {row.tobytes() for row in inputs[:40]} & {row.tobytes() for row in stream.inputs[:100]}
        assert stream.tasks == (0, 100, 200)

    def test_too_few(self) -> None:
        with pytest.raises(BadInput, match="up to 354 together, got 300 and 60"):
            split_digits(per_task=300, held_out=60)(0)
        with pytest.raises(BadInput, match="up to 1797 together, got 1700 and 100"):
            permuted_digits(per_task=1700, held_out=100)(0)
        with pytest.raises(BadInput, match="at least 1 task, got 0"):
            permuted_digits(tasks=0)


class TestBursts:
    @pytest.mark.parametrize("varying", [False, True])
    @pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 5), (10, 1), (10, 5), (103, 8)])
    def test_every_example_once_and_in_order(self, n: int, size: int, varying: bool) -> None:
        index, counted = bursts(n, size, varying=varying, seed=3)
        assert index.dtype == np.int32 and counted.dtype == bool
        np.testing.assert_array_equal(index[counted], np.arange(n))
        np.testing.assert_array_equal(index[~counted], n - 1)
        sizes = counted.sum(1)
        assert (np.diff(counted.astype(int), axis=1) <= 0).all()  # what counts comes first
        if not varying:
            assert (sizes[:-1] == size).all()

    def test_sizes_vary(self) -> None:
        sizes = bursts(10_000, 4, varying=True, seed=0)[1].sum(1)
        assert set(sizes[:-1]) == set(range(1, 8))
        assert sizes.mean() == pytest.approx(4, abs=0.2)
        assert sizes.tolist() == bursts(10_000, 4, varying=True, seed=0)[1].sum(1).tolist()
        assert sizes.tolist() != bursts(10_000, 4, varying=True, seed=1)[1].sum(1).tolist()

    @pytest.mark.parametrize(("n", "size"), [(0, 1), (4, 0)])
    def test_nothing_to_divide(self, n: int, size: int) -> None:
        with pytest.raises(BadInput, match="Expected `n` and `size` of at least 1"):
            bursts(n, size)


def little(labels: list[float], classes: int) -> Stream:
    inputs = np.random.default_rng(0).normal(size=(len(labels), 2))
    return Stream(name="little", inputs=inputs, labels=np.array(labels), classes=classes)


class TestBaselines:
    @pytest.mark.parametrize(
        ("delay", "majority", "no_change"),
        [
            (0, [1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 1, 1]),
            (1, [1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 1, 1]),
            (3, [1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1, 0]),
            (9, [1] * 7, [1] * 7),
        ],
    )
    def test_by_hand(self, delay: int, majority: list[int], no_change: list[int]) -> None:
        found = baselines.errors(little([0, 1, 1, 0, 0, 2, 0], 3), delay=delay)
        assert (
            found["majority"].tolist() == majority
        )  # 0 is told while 1 is as often, until 1 was first to be there twice
        assert found["no change"].tolist() == no_change

    def test_numbers_by_hand(self) -> None:
        found = baselines.errors(little([2, 4, 0], 0), delay=0)
        assert found["mean so far"].tolist() == [4, 4, 9]
        assert found["no change"].tolist() == [4, 4, 16]
        assert baselines.errors(little([2, 4, 0], 0), delay=2)["mean so far"].tolist() == [4, 16, 4]

    @pytest.mark.parametrize("delay", [0, 1, 40])
    @pytest.mark.parametrize("name", ["phishing", "image_segments", "trump_approval"])
    def test_is_rivers_score(self, name: str, delay: int) -> None:
        whole = bundled(name)(0)
        stream = replace(whole, inputs=whole.inputs[:400], labels=whole.labels[:400])
        examples = [dict(enumerate(row)) for row in stream.inputs.tolist()]
        labels = [bool(label) for label in stream.labels] if stream.classes == 2 else stream.labels.tolist()
        logistic: Any = linear_model.LogisticRegression()
        models: dict[str, Any] = {
            "logistic regression": logistic if stream.classes == 2 else multiclass.OneVsRestClassifier(logistic),
            "Hoeffding adaptive tree": tree.HoeffdingAdaptiveTreeClassifier(seed=0),
        }
        if not stream.classes:
            models = {
                "linear regression": linear_model.LinearRegression(),
                "Hoeffding adaptive tree": tree.HoeffdingAdaptiveTreeRegressor(seed=0),
            }
        found = baselines.errors(stream, delay=delay)
        assert tuple(found) == baselines.names(classes=bool(stream.classes))
        assert list(found)[1:] == ["no change", *models]
        for baseline, model in models.items():
            metric: Any = metrics.Accuracy() if stream.classes else metrics.MSE()
            score = evaluate.progressive_val_score(
                zip(examples, labels, strict=True), model, metric, delay=delay or None
            )
            # Where nothing is predicted, river does not count; we count an error.
            unknown = (
                0
                if not stream.classes or (baseline == "logistic regression" and stream.classes == 2)
                else max(1, delay)
            )
            right = score.get() * (400 - unknown)
            expected = right / 400 if not stream.classes else 1 - right / 400
            assert found[baseline].mean() == pytest.approx(expected, rel=1e-5)

    def test_kept(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = little([0, 1, 1, 1], 2)
        first = baselines.errors(stream)
        monkeypatch.setattr(baselines, "_of_river", lambda stream, delay: pytest.fail("made anew"))
        second = baselines.errors(stream)
        assert {name: error.tolist() for name, error in first.items()} == {
            name: error.tolist() for name, error in second.items()
        }
        assert all(error.shape == (4,) and error.dtype == np.float32 for error in second.values())
        monkeypatch.undo()
        monkeypatch.setenv("NORMLAB_CACHE", str(cache.parent))
        baselines.errors(stream, delay=1)
        baselines.errors(replace(stream, labels=stream.labels[::-1]))
        baselines.errors(replace(stream, classes=3))
        assert len(list(cache.iterdir())) == 4

    def test_negative_delay(self) -> None:
        with pytest.raises(BadInput, match="Expected `delay` from 0 examples on, got -1"):
            baselines.errors(little([0, 1], 2), delay=-1)


def test_concepts_that_follow_each_other_differ() -> None:
    """What `generators.KINDS` says of functions that can be asked."""
    generator = synth.Agrawal(seed=1)
    drawn = [x for x, _ in generator.take(2000)]
    functions = generators.KINDS["agrawal"].options["classification_function"]
    told = np.array(
        [[getattr(generator, f"_classification_function_{function}")(**x) for x in drawn] for function in functions]
    )
    np.testing.assert_allclose((told != np.roll(told, -1, axis=0)).mean(1), [0.72, 0.51, 0.50, 0.51], atol=0.04)
