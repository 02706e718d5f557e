"""What a comparison is, as values: frozen dataclasses, no JAX.

A *factor* is the x-axis of a comparison, a *problem* is data, a model and a metric, a *cell* is one (problem, norm,
factor value), a *run* is one trained model. Everything that decides a number is a field here, and goes into the run's
key.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.norms import Norm
    from normlab.study.train import Program

Value = int | float | str
"""A value of a factor: a batch size, a sequence length, the name of a drift."""

TUNE, EVALUATE = "tune", "evaluate"
FAILURES = ("diverged", "collapsed", "timeout", "oom", "error")
"""Statuses counted as failures. The others are `ok`, and `invalid` for what cannot be run at all."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The quantity a comparison varies.

    Attributes:
        name: The key in records and config files, e.g. `batch_size`.
        label: For axes and headings, with the unit, e.g. `batch size (examples)`.
        flag: The command-line flag that selects values, e.g. `--batch-sizes`.
        values: All values of the comparison, in the order they are shown.
        log: Whether plots use a logarithmic axis.
        reference: The value that a norm's errors at the others are compared with; `None` for no such comparison.
    """

    name: str
    label: str
    flag: str
    values: tuple[Value, ...]
    log: bool = True
    reference: Value | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A data set, a model family, a loss and a metric.

    Attributes:
        name: Short, for records and flags, e.g. `digits-mlp`.
        title: For people, e.g. `MLP 64-100-100-10 on digits`.
        build: `(norm, config) -> Program`: the pure `init`, `step` and `evaluate` of one cell; `config` holds the
            training fields of that cell (`epochs`, and what `Comparison.config` gives for the factor's value). It
            imports JAX inside and raises `ValueError` for what cannot be trained.
        norm_options: `(norm name, config) -> options` that a norm gets here unless its string names them, e.g. the
            number of groups that fits the width.
        spatial: Whether activations have spatial axes; norms that need them are recorded as `invalid` elsewhere.
        chance: The metric of a model that has learned nothing.
        metric: What is reported, lower is better, a fraction shown in percent.
    """

    name: str
    title: str
    build: "Callable[[Norm, Mapping[str, Any]], Program]"
    norm_options: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda norm, config: {}
    spatial: bool = False
    chance: float = 0.9
    metric: str = "test error"


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How much is spent. `claims` is False where the number of seeds allows none.

    Attributes:
        epochs: Passes over the training set.
        learning_rates: The grid, the same for every norm and factor value.
        tuning_seeds: Seeds per learning rate, never used again for evaluation.
        seeds: Evaluation seeds.
        values: The factor values of this tier; `None` is all.
        leaves_out: One sentence for the report: what a larger tier would add.
    """

    epochs: int
    learning_rates: tuple[float, ...]
    tuning_seeds: int
    seeds: int
    values: tuple[Value, ...] | None = None
    claims: bool = True
    leaves_out: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question over problems x norms x values of one factor.

    Attributes:
        name: Short, for the folder and the command, e.g. `batch_size`.
        title: The heading of the report.
        question: One sentence that ends in a question mark.
        fixed: Sentences that say what is the same in all runs; printed in the report.
        norms: Norm strings (see `normlab.norms.get`).
        config: `factor value -> fields of a run's config`.
        baseline: The norm others are compared with, in the same cell.
        margin: Differences of the metric below this are of no practical interest (a fraction).
    """

    name: str
    title: str
    question: str
    problems: tuple[Problem, ...]
    norms: tuple[str, ...]
    factor: Factor
    tiers: Mapping[str, Tier]
    config: Callable[[Value], Mapping[str, Any]]
    fixed: tuple[str, ...] = ()
    baseline: str = "batch"
    margin: float = 0.005


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one invocation asks for, every default resolved. Written to `comparison.json`; its fields are the flags.

    Attributes:
        comparison: Name of the comparison.
        source: What the user typed: `batch_size`, or the path of a file.
    """

    comparison: str
    source: str
    tier: str
    problems: tuple[str, ...]
    norms: tuple[str, ...]
    values: tuple[Value, ...]
    learning_rates: tuple[float, ...]
    epochs: int
    tuning_seeds: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One compile, many runs."""

    problem: str
    norm: str
    value: Value


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model.

    Attributes:
        cell: Where it belongs.
        stage: `tune` or `evaluate`.
        learning_rate: Peak learning rate.
        seed: Drives split, initialization and order; tuning and evaluation seeds are disjoint.
    """

    cell: Cell
    stage: str
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of a run: one JSON file.

    Attributes:
        key: sha256 of everything that decides the numbers (`run`, `config`, `identity`).
        run: The run, nested as dataclasses.
        config: All fields the training saw, the norm's resolved options included.
        identity: Code hash, versions, platform, data hash, strategy.
        status: `ok`, one of `FAILURES`, or `invalid`.
        reason: One line, empty when `ok`.
        metrics: `validation` (always), `test` (evaluation runs only), `train_loss`, ...; fractions; non-finite is None.
        timing: Seconds: `run`, and `compile` of the cell's program.
    """

    key: str
    run: Run
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    status: str
    reason: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys, the same text for equal values; dataclasses become objects, NaN is an error."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def content_key(*parts: Any) -> str:
    """The sha256 of the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **dataclasses.asdict(value)}
    raise TypeError(f"Expected something JSON can hold, got {value!r}.")
