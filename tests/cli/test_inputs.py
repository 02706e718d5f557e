"""What people give instead of what is expected: each is refused in one line before anything is trained or written."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from flax import linen as nn
from flax import nnx

from normlab import norms, study
from normlab.cli.main import main
from normlab.errors import BadInput
from normlab.norms import Norm
from normlab.study.data.dataset import Data
from normlab.study.data.splits import sizes
from normlab.study.design.problem import Problem
from normlab.study.driver import schedule
from normlab.study.streams.stream import Source, Stream


class Net(nn.Module):
    norm: Norm
    outputs: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(self.norm.linen(train=train)(nn.Dense(8)(x.reshape(len(x), -1))))
        return nn.Dense(self.outputs)(x)


class WithoutTrain(nn.Module):
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(self.norm.linen(train=True)(x))


class WithoutNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(3)(x)


class NNXNet(nnx.Module):
    def __init__(self, norm: Norm, *, rngs: nnx.Rngs) -> None:
        self.layer, self.norm = nnx.Linear(4, 3, rngs=rngs), norm.nnx(3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.layer(x))


class NNXWithoutRngs(nnx.Module):
    def __init__(self, norm: Norm) -> None:
        self.norm = norm


X = np.random.default_rng(0).normal(size=(90, 4))
Y = np.arange(90) % 3
DATA = Data(X, Y)
ONE_HOT = np.eye(3)[Y]


def problem(**options: Any) -> Problem:
    return study.supervised(**{"name": "net", "model": Net, "data": DATA, **options})


def data(x: Any = X, y: Any = Y, **options: Any) -> Callable[[], Problem]:
    return lambda: problem(data=Data(x, y, **options))


def given(**options: Any) -> Callable[[], Problem]:
    return lambda: problem(**options)


def comparison(**fields: Any) -> study.Comparison:
    small = {"curves": study.batch_size_curves(deployed=(4, 8), isolated=()), "norms": ("none", "batch")}
    return study.Comparison(**{"name": "mine", "problems": (problem(),), **small, **fields})


def compared(**fields: Any) -> Callable[[], study.Comparison]:
    return lambda: comparison(**fields)


def tier(**fields: Any) -> Callable[[], study.Tier]:
    return lambda: study.Tier(**{"epochs": 1, "learning_rates": (0.1,), "tuning_seeds": 1, "seeds": 2, **fields})


def curves(**fields: Any) -> Callable[[], Any]:
    return lambda: study.batch_size_curves(**fields)


def factor(**fields: Any) -> study.Factor:
    return study.Factor(
        **{"name": "width", "label": "width", "flag": "--widths", "values": (1, 2), "log": False, **fields}
    )


def curve(**fields: Any) -> study.Curve:
    config = lambda value: {"batch_size": 4}  # noqa: E731
    return study.Curve(**{"name": "widths", "title": "Widths", "factor": factor(), "config": config, **fields})


def run(**options: Any) -> Callable[[], study.Result]:
    return lambda: study.run(comparison(), **{"tier": "smoke", "progress": False, **options})


STREAM = Stream(name="mine", inputs=X, labels=Y, classes=3)
SOURCE = Source("mine", lambda seed: STREAM, replicated=False)


def streaming(**options: Any) -> Callable[[], Problem]:
    return lambda: study.streaming(**{"name": "net", "model": Net, "source": SOURCE, **options})


def stream(**fields: Any) -> Callable[[], Stream]:
    return lambda: Stream(**{"name": "mine", "inputs": X, "labels": Y, "classes": 3, **fields})


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    # parts of the data
    "a test above 1 that is no count": (given(test=1.5), "a number of examples (1, 2, ...) or a share between 0 and 1"),
    "a share of 1": (given(test=1.0), "a share between 0 and 1"),
    "a count as a float": (given(validation=20.0), "a share between 0 and 1"),
    "no test": (given(test=0), "a share between 0 and 1"),
    "a negative share": (given(test=-0.2), "a share between 0 and 1"),
    "a negative count": (given(validation=-5), "a share between 0 and 1"),
    "a share that is no number": (given(test=math.nan), "a share between 0 and 1"),
    "a share as text": (given(test="20%"), "a share between 0 and 1"),
    "a share as a flag": (given(test=True), "a share between 0 and 1"),
    "one test example": (given(test=1), "at least 5 examples"),
    "a tiny share": (given(validation=0.01), "at least 5 examples"),
    "shares of everything": (given(validation=0.5, test=0.5), "Change `validation` or `test`."),
    "more than there are": (given(test=1000), "Change `validation` or `test`."),
    "fewer than one for each class": (data(y=np.arange(90) % 30, x=X), "one for each of 30 classes"),
    "few examples": (data(X[:12], Y[:12]), "at least 5 examples"),
    "a test set that is all": (data(test=90), "to train on, for validation and for the test, got 0"),
    "a negative test set": (data(test=-1), "a whole number from 0 on"),
    "a test set as a share": (data(test=0.2), "a whole number from 0 on"),
    # labels
    "one-hot labels": (data(y=ONE_HOT), "`labels.argmax(1)`"),
    "one-hot integers": (data(y=ONE_HOT.astype(int)), "`labels.argmax(1)`"),
    "float labels for many outputs": (data(y=Y.astype(float)), "`labels.astype(int)`"),
    "float labels of two classes": (data(y=(Y > 0).astype(float)), "`labels.astype(int)`"),
    "float labels with the metric of classes": (
        lambda: problem(data=Data(X, Y + 0.5), metric=study.MISCLASSIFICATION),
        "`labels.astype(int)`",
    ),
    "labels in several columns": (data(y=np.stack([Y, Y], 1)), "shape (examples,)"),
    "labels from 1": (data(y=Y + 1), "counted from 0 without gaps, got 1 to 3"),
    "negative labels": (data(y=Y - 1), "counted from 0 without gaps, got -1 to 1"),
    "labels with gaps": (data(y=Y * 5), "np.unique(labels, return_inverse=True)[1]"),
    "one class": (data(y=Y * 0), "two classes or more"),
    "labels as text": (data(y=np.array(["a", "b", "c"])[Y]), "np.unique(labels, return_inverse=True)[1]"),
    "labels as categories": (data(y=pd.Series(["a", "b", "c"])[Y].astype("category")), "Number the classes"),
    "labels that are missing": (data(y=np.where(Y > 0, Y, np.nan)), "finite numbers in `labels`"),
    "no labels": (data(y=None), "`labels` to be an array of numbers"),
    "too few labels": (data(y=Y[:-1]), "a label for each example"),
    # inputs
    "NaN": (data(np.where(X > 2, np.nan, X)), "finite numbers in `inputs`"),
    "infinity": (data(np.where(X > 2, np.inf, X)), "finite numbers in `inputs`"),
    "complex inputs": (data(X + 1j), "`inputs` to be an array of numbers"),
    "dates": (data(np.arange(90).astype("datetime64[D]")), "`inputs` to be an array of numbers"),
    "a table with text": (data(pd.DataFrame({"a": X[:, 0], "b": "text"})), "text have to be encoded"),
    "an empty array": (data(X[:0], Y[:0]), "some examples in `inputs`, got none"),
    "no features": (data(X[:, :0]), "some examples in `inputs`, got none"),
    "masked values": (data(np.ma.masked_greater(X, 1)), "some that are masked"),
    "a dictionary": (data({"a": X}), "`inputs` to be an array of numbers"),
    "a generator": (data(row for row in X), "`inputs` to be an array of numbers"),
    "a deviation of zero": (data(std=(0.0,)), "`std` to be positive"),
    "one name of a change": (data(augment="flip"), '`augment=("crop",)`'),
    "what seeds draw, as one number": (data(drawn=0.2), "a pair"),
    # where the data come from
    "arrays as a pair": (given(data=(X, Y)), "`data=study.Data(inputs, labels)`"),
    "an array": (given(data=X), "`data=study.Data(inputs, labels)`"),
    "the class of data": (given(data=Data), "`data=study.Data(inputs, labels)`"),
    "a function that returns a pair": (given(data=lambda: (X, Y)), "Return `Data(inputs, labels)`."),
    "a file that is not there": (given(data="missing.npz"), "does not exist"),
    # models
    "an instance of a model": (given(model=Net(norms.get("none"))), "`model=Net`"),
    "an instance without norm": (given(model=Net(None)), "`model=Net`"),  # pyright: ignore[reportArgumentType]
    "an instance of NNX": (
        lambda: problem(model=NNXNet(norms.get("none"), rngs=nnx.Rngs(0))),
        "`model=NNXNet`",
    ),
    "a model without `train`": (given(model=WithoutTrain), "`WithoutTrain.__call__` to take `train`"),
    "one out of a function": (given(model=lambda norm: WithoutTrain(norm)), "`WithoutTrain.__call__` to take `train`"),
    "a model without a norm": (given(model=WithoutNorm), "to have a field `norm`"),
    "a function without arguments": (given(model=lambda: Net(norms.get("none"))), "`model` to take a norm"),
    "NNX without `rngs`": (given(model=NNXWithoutRngs), "`model` to take a norm and `rngs`"),
    "a name of a model": (given(model="mlp"), "makes a model from a norm"),
    "a model that returns a class": (given(model=lambda norm: Net), "to be a Linen module"),
    "too few outputs": (given(model=partial(Net, outputs=2)), "Give it 3 outputs."),
    "as many outputs as positions": (
        given(
            model=partial(Net, outputs=2), data=Data(X, X[:, :3]), metric=replace(study.MEAN_SQUARED_ERROR, margin=0.1)
        ),
        "shaped like `labels`, (batch, 3), got (4, 2)",
    ),
    # losses, metrics, optimizers
    "an optimizer, made": (given(optimizer=optax.adam(1e-3)), "`optimizer=optax.adamw`"),
    "an optimizer by name": (given(optimizer="adam"), "`optimizer=optax.adamw`"),
    "a learning rate": (given(optimizer=1e-3), "`optimizer=optax.adamw`"),
    "a function that makes no optimizer": (given(optimizer=lambda rate: rate), "`optax.GradientTransformation`"),
    "a function without learning rate": (given(optimizer=lambda: optax.adam(1e-3)), "a function of the learning rate"),
    "a loss by name": (given(loss="mse"), "a function of outputs and labels"),
    "a loss of one": (given(loss=lambda outputs: 0.0), "a function of outputs and labels"),
    "a metric by name": (given(metric="accuracy"), "Write `study.Error(...)`."),
    "chance as text": (given(chance="10 %"), "a finite number, or a function of the data"),
    "chance that is NaN": (given(chance=math.nan), "a finite number, or a function of the data"),
    "options of an unknown norm": (given(norm_options={"grop": {"num_groups": 2}}), "Did you mean 'group'?"),
    "options without a norm": (given(norm_options={"num_groups": 2}), '`{"group": {"num_groups": 8}}`'),
    "options as a list": (given(norm_options=["group"]), '`{"group": {"num_groups": 8}}`'),
    "spatial as text": (given(spatial="no"), "true or false"),
    "one extra metric": (given(extra_metrics=study.Metric(name="a")), "`extra_metrics=(metric,)`"),
    "a name with a slash": (given(name="mine/net"), "a short name"),
    "an empty name": (given(name=""), "a short name"),
    "a folder above": (given(name=".."), "a short name"),
    "no text": (given(title=5), "to be text"),
    # margins
    "a negative margin": (lambda: study.Metric(margin=-0.1), "a number from 0 on"),
    "a margin that is NaN": (lambda: study.Error(name="e", function=max, margin=math.nan), "a number from 0 on"),
    "a margin of the comparison": (compared(margin=-1), "a number from 0 on"),
    "an error without function": (lambda: study.Error(name="e", function=0.1), "a function of outputs"),  # pyright: ignore
    # comparisons
    "a class instead of a norm": (compared(norms=(nn.BatchNorm,)), "got the class `BatchNorm`"),
    "a module instead of a norm": (compared(norms=(nn.BatchNorm(),)), "the name of a norm"),
    "a norm without tuple": (compared(norms="batch"), '`norms=("batch",)`'),
    "an unknown norm": (compared(norms=("bacth",)), "Did you mean 'batch'?"),
    "a norm twice": (compared(norms=("batch", "layer", "batch")), "got `batch` twice"),
    "no norms": (compared(norms=()), "to name at least one"),
    "an unknown baseline": (compared(baseline="bacth"), "Did you mean 'batch'?"),
    "sizes instead of curves": (compared(curves=(2, 32)), "`curves=study.batch_size_curves(deployed=(2, 32))`"),
    "curves, not called": (compared(curves=study.batch_size_curves), "`curves=study.batch_size_curves(deployed"),
    "budgets, not called": (compared(tiers=study.tiers), "`tiers=study.tiers(epochs=20)`"),
    "one budget": (compared(tiers=tier()()), "`tiers=study.tiers(epochs=20)`"),
    "no budget": (compared(tiers={}), "`tiers=study.tiers(epochs=20)`"),
    "a budget of an unknown problem": (compared(tiers={"quick": tier(problems=("nte",))()}), "Did you mean `net`?"),
    "a budget of an unknown curve": (
        compared(tiers={"quick": tier(values={"deploid": (2,)})()}),
        "Did you mean `deployed`?",
    ),
    "a problem without tuple": (lambda: comparison(problems=problem()), "`problems=(problem,)`"),
    "a model instead of a problem": (compared(problems=(Net,)), "`study.supervised(...)`"),
    "two problems of one name": (lambda: comparison(problems=(problem(), problem())), "got `net` twice"),
    "a comparison in a folder": (compared(name="a/b"), "a short name"),
    "a sentence without tuple": (compared(fixed="All is the same."), "to be a list"),
    "an untuned rate of zero": (compared(default_learning_rate=0), "a positive number"),
    # curves, factors, budgets
    "one batch size": (curves(deployed=8), "`deployed=(2, 8, 32)`"),
    "no batch size": (curves(deployed=()), "to name at least one"),
    "a batch size of zero": (curves(deployed=(0, 2)), "a positive whole number"),
    "half a batch": (curves(deployed=(2.5,)), "a positive whole number"),
    "a batch size as text": (curves(deployed=("8",)), "a positive whole number"),
    "a batch size twice": (curves(deployed=(8, 8)), "got 8 twice"),
    "statistics of more than the batch": (curves(isolated=(8, 64), batch_size=32), "up to `batch_size`"),
    "a reference that is no value": (curves(deployed=(2, 8), reference=4), "Choose one of 2, 8"),
    "a factor without values": (lambda: factor(values=()), "to name at least one"),
    "a value that is none": (lambda: factor(values=(1, None)), "a number or text"),
    "a value that is NaN": (lambda: factor(values=(1, math.nan)), "a number or text"),
    "a flag without dashes": (lambda: factor(flag="widths"), "`--batch-sizes`"),
    "a reference elsewhere": (lambda: factor(reference=3), "Choose one of 1, 2"),
    "a logarithm of zero": (lambda: factor(values=(0, 1), log=True), "`log=False`"),
    "a curve without factor": (lambda: curve(factor="width"), "`factor=study.Factor(...)`"),
    "a curve of a dictionary": (lambda: curve(config={"batch_size": 2}), '`lambda value: {"batch_size": value}`'),
    "a curve that returns fields in fields": (
        compared(curves=(curve(config=lambda value: {"batch_size": value, "schedule": {"warmup": 2}}),)),
        "Return a dictionary",
    ),
    "a curve that returns a number": (compared(curves=(curve(config=lambda value: value),)), "Return a dictionary"),
    "half a batch from a curve": (
        compared(curves=(curve(config=lambda value: {"batch_size": 2.5}),)),
        "`batch_size` to be a positive whole number",
    ),
    "no epochs": (tier(epochs=0), "a positive whole number"),
    "half an epoch": (tier(epochs=0.5), "a positive whole number"),
    "a negative rate": (tier(learning_rates=(-0.1, 0.1)), "a positive number"),
    "a rate twice": (tier(learning_rates=(0.1, 0.1)), "got 0.1 twice"),
    "a rate as text": (tier(learning_rates=("0.1",)), "a positive number"),
    "a rate that is NaN": (tier(learning_rates=(math.nan,)), "a positive number"),
    "one rate": (tier(learning_rates=0.1), "to be a list"),
    "no rates": (lambda: study.tiers(learning_rates=()), "to name at least one"),
    "no epochs in all budgets": (lambda: study.tiers(epochs=0), "a positive whole number"),
    "negative seeds": (tier(seeds=-1), "a positive whole number"),
    "seeds as a flag": (tier(seeds=True), "a positive whole number"),
    "seeds as a float": (tier(seeds=5.0), "a positive whole number"),
    "more seeds than there are": (tier(seeds=1001), "1000"),
    "seeds of tuning": (tier(tuning_seeds=0), "a positive whole number"),
    # calls
    "a run of a class": (lambda: study.run(study.Comparison), "Make one with `study.Comparison(...)`."),  # pyright: ignore
    "a run of a problem": (lambda: study.run(problem()), "Make one with `study.Comparison(...)`."),  # pyright: ignore
    "a run of nothing": (lambda: study.run(""), "Make one with `study.Comparison(...)`."),
    "norms of a run as a word": (run(norms="batch"), "to be a list"),
    "a class as a norm of a run": (run(norms=[nn.BatchNorm]), "got the class `BatchNorm`"),
    "seeds of a run as a flag": (run(seeds=True), "a positive whole number"),
    "seeds of a run as a float": (run(seeds=2.0), "a positive whole number"),
    "seeds of a run that are numbered": (run(seeds=[0, 1]), "a positive whole number"),
    "rates of a run": (run(learning_rates=[0.1, math.nan]), "a positive number"),
    "an unknown budget": (run(tier="qick"), "Did you mean `quick`?"),
    "a budget instead of its name": (run(tier=tier()()), "to be text"),
    "jobs of a run": (run(jobs=-1), "a positive whole number"),
    "epochs of a run": (run(epochs=0), "a positive whole number"),
    "a folder that is a number": (run(output=5), "the path of a folder"),
    "progress as a number": (run(progress=2), "true or false"),
    "sizes of a run": (run(batch_sizes=4), "to be a list"),
    # streams
    "a stream instead of its source": (streaming(source=STREAM), "`streams.Source(name"),
    "a path instead of a source": (streaming(source="file.csv"), "`streams.from_file(path)`"),
    "a function that returns a stream": (streaming(source=lambda: STREAM), "Return `streams.Source(...)`."),
    "a metric of a stream as a function": (streaming(metric=max), "`study.Error(name=..., function=...)`"),
    "an optimizer of a stream": (streaming(optimizer=optax.sgd(0.1)), "`optimizer=optax.adamw`"),
    "an instance for a stream": (streaming(model=Net(norms.get("none"))), "`model=Net`"),
    "drifting as text": (streaming(drifting="yes"), "true or false"),
    "classes of a stream as a float": (stream(classes=2.5), "a whole number from 0 on"),
    "labels of a stream between classes": (stream(labels=Y + 0.5), "Number the classes"),
    "labels of a stream from 1": (stream(labels=Y + 1), "Count classes from 0."),
    "inputs of a stream as text": (stream(inputs=np.full((90, 2), "a")), "`inputs` to be an array of numbers"),
}

LINE = re.compile(r"(Expected .+, got .+|Unknown .+)[.?]? [A-Z].*[.?]")


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_trained_or_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedule, "records", lambda *_: pytest.fail("trained"))
    make, expected = BAD[case]
    with pytest.raises(BadInput, match=re.escape(expected)) as caught:
        made = make()
        if isinstance(made, Problem):
            made = comparison(problems=(made,))
        if isinstance(made, study.Comparison):
            study.run(made, tier=next(iter(made.tiers)), output=tmp_path / "out", progress=False)
    assert LINE.search(str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "--seeds 0": "a positive whole number",
    "--seeds -1": "a positive whole number",
    "--seeds 1e3": "a positive whole number",
    "--seeds 99999999999999999999": "at most 1000",
    "--batch-sizes 2.5,x": "each of `--batch-sizes` to be a positive whole number, got `2.5`",
    "--batch-sizes ,": "at least one",
    "--batch-sizes 1000000000000": "a batch of 1 to 1024",
    "--ghost-batch-sizes 1000": "up to the batch of 128",
    "--learning-rates nan": "a positive number, got `nan`",
    "--learning-rates 1e400": "a positive number",
    "--train-examples -1": "a positive whole number",
    "--train-examples 2": "leave examples to train on",
    "--train-examples 5": "at least 5 examples and one for each of 5 classes",
    "--train-examples 99999": "up to 1,797",
    "--epochs 1e9": "a positive whole number",
    "--epochs 2147483648": "fewer than 2^31 updates",
    "--norms foo": "See `normlab list norms`.",
    "--norms :": "See `normlab list norms`.",
    "--config broken.toml": "to be TOML",
    "--config table.toml": "`seeds` in `table.toml` to be a positive whole number",
    "--config numbers.toml": "each of `norms` in `numbers.toml` to be a norm, got 1",
    "--config empty.toml": "the path of a folder",
    "--config binary.toml": "to be TOML",
    "--shard 3/2": "1 <= i <= n",
    "--shard 1/2/3": "1 <= i <= n",
    "--devices 0": "a positive whole number",
    "--devices 3": "3 devices can share equally",
    "--jobs -1": "a positive whole number",
    "--output=": "the path of a folder",
    "--time-budget nan": "a duration",
    "--data foo": "`npz:PATH`",
    "--image-size 0": "a positive whole number",
    "--augment spin": "one of crop, flip",
    "--slurm foo": "KEY=VALUE",
    "--default-learning-rate -1": "a positive number or `none`",
    "--coordinator x": "`--coordinator`, `--process` and `--devices`",
}


@pytest.mark.parametrize("flags", COMMANDS)
def test_a_command_line_is_refused_in_one_line(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"broken": b"seeds = [\n", "table": b"[seeds]\n", "numbers": b"norms = [1]\n", "empty": b"output = ''\n"}
    for name, content in {**files, "binary": b"\xff\xfe"}.items():
        Path(f"{name}.toml").write_bytes(content)
    there = sorted(tmp_path.iterdir())
    norms_given = "norm" in flags or "numbers" in flags
    small = ["--problems", "mlp", *["--norms", "none", "batch"] * (not norms_given)]
    assert main(["run", "batch_size", *small, "--dry-run", *flags.split(" ")]) == 2
    out, err = capsys.readouterr()
    assert COMMANDS[flags] in err
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(tmp_path.iterdir()) == there


class TestWhatIsTaken:
    def test_numbers_of_numpy(self) -> None:
        made = tier(epochs=np.int64(3), seeds=np.uint8(5), learning_rates=np.array([0.1, 0.03]))()
        assert (made.epochs, made.seeds, made.learning_rates) == (3, 5, (0.03, 0.1))
        assert {type(value) for value in (made.epochs, made.seeds)} == {int}
        assert factor(values=np.array([1, 2])).values == (1, 2)
        assert factor(values=np.float32([0.5, 1])).values == (0.5, 1.0)
        assert type(study.Metric(margin=np.float32(0.5)).margin) is float
        assert study.batch_size_curves(deployed=np.array([2, 8]), isolated=[])[0].factor.values == (2, 8)

    def test_lists_where_tuples_are_meant(self) -> None:
        made = comparison(problems=[problem()], norms=["none", norms.get("group", num_groups=2)], fixed=["A."])
        assert made.norms == ("none", "group:num_groups=2")
        assert isinstance(made.problems, tuple)
        assert tier(values={"deployed": [2, 4]}, norms=["batch"])().values == {"deployed": (2, 4)}

    def test_rates_in_any_order(self) -> None:
        assert study.tiers(learning_rates=(1.0, 0.1, 0.01, 0.3, 0.03))["quick"].learning_rates == (0.03, 0.1, 0.3)

    def test_a_run_with_numbers_of_numpy(self) -> None:
        found = study.run(
            comparison(),
            tier="smoke",
            seeds=np.int32(1),
            learning_rates=np.array([0.1], np.float32),
            batch_sizes=np.array([4]),
            norms=(norms.get("batch"), "none"),
            progress=np.bool_(False),
        )
        assert {record.status for record in found.records} <= {"ok", "collapsed"}  # of a budget this small
        assert found.settings.values == {"deployed": (4,)}

    def test_shares_and_counts(self) -> None:
        assert sizes(DATA, 20, np.int64(15)) == (55, 20)
        assert sizes(DATA, np.float32(0.25), 0.2) == (50, 22)
        for options in ({"test": 10}, {"validation": 0.3, "test": np.int64(12)}, {"test": np.float64(0.2)}):
            problem(**options)

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            (X.tolist(), Y.tolist()),
            (pd.DataFrame(X), pd.Series(Y)),
            (jax.numpy.asarray(X), jax.numpy.asarray(Y)),
            (tuple(map(tuple, X)), Y.astype(np.uint8)),
            (np.ma.array(X), Y[:, None]),
            (X > 0, Y > 0),
        ],
    )
    def test_what_numpy_takes_as_an_array(self, x: Any, y: Any) -> None:
        found = Data(x, y)
        assert found.classes and found.labels.shape == (90,)
        problem(data=found)

    def test_numbers_to_predict(self) -> None:
        a_margin = replace(study.MEAN_SQUARED_ERROR, margin=0.1)
        problem(data=Data(X, X[:, 0]))
        problem(data=Data(X, np.eye(3)[Y] + np.eye(3)[Y[::-1]]))  # several targets, few values
        problem(data=Data(X, np.arange(90.0)))  # as many as examples: no classes
        problem(data=Data(X, Y.astype(float)), metric=a_margin)

    def test_one_hot_labels_with_a_loss_for_them(self) -> None:
        problem(data=Data(X, ONE_HOT), loss=lambda outputs, labels: optax.softmax_cross_entropy(outputs, labels))

    def test_a_budget_may_leave_out_a_class(self) -> None:
        labels = np.repeat(np.arange(5), 40)
        whole = Data(np.zeros((200, 4)), labels)
        found = study.supervised(
            name="net",
            model=Net,
            data=partial(_first, whole),
            metric=study.MISCLASSIFICATION,
            options=(TRAIN_EXAMPLES,),
        )
        found.norm_options("batch", {"batch_size": 4, "epochs": 1, "train_examples": 100})

    @pytest.mark.parametrize(
        "model",
        [
            Net,
            partial(Net, outputs=3),
            lambda norm: Net(norm),
            lambda norm, *, classes: Net(norm, outputs=classes),
            NNXNet,
            partial(NNXNet),
            lambda norm, rngs: NNXNet(norm, rngs=rngs),
        ],
    )
    def test_models(self, model: Any) -> None:
        made = problem(model=model)
        made.build(norms.get("batch"), {"batch_size": 4, "epochs": 1}).init(0)

    def test_optimizers(self) -> None:
        for optimizer in (optax.adam, partial(optax.sgd, momentum=0.9), lambda rate: optax.adamw(rate), None):
            problem(optimizer=optimizer)

    def test_a_path(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", inputs=X, labels=Y)
        problem(data=tmp_path / "data.npz")
        problem(data=str(tmp_path / "data.npz"))


TRAIN_EXAMPLES = study.Option(name="train_examples", kind=study.WHOLE, help="a budget", metavar="N")


def _first(whole: Data, train_examples: int | None = None) -> Data:
    return replace(whole, inputs=whole.inputs[-(train_examples or 0) :], labels=whole.labels[-(train_examples or 0) :])
