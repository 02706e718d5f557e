"""Comparison as large as the standard one with simulated records: noise that pairs share, and planted results.

On the MLP batch norm breaks at batch size 2 and batch renorm half as much; instance norm cannot be run. At batch size
128 two of ten runs without a norm diverge, and the best learning rate lies beyond the grid.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.results import Analysis
from normlab.study.design.budgets import Tier
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Factor
from normlab.study.design.plan import Plan
from normlab.study.design.problem import Problem
from normlab.study.design.records import EVALUATE, Configuration, Record, Run, content_key

NORMS = ("none", "batch", "batch_renorm", "layer", "rms", "group", "instance")
VALUES = (2, 4, 8, 32, 128)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
STEPS = {"none": 100e-6, "rms": 130e-6, "batch": 130e-6, "layer": 135e-6, "batch_renorm": 180e-6}
IDENTITY = {"code": "0123abc", "versions": {"jax": "0.10.2", "flax": "0.12.8"}, "platform": "cpu, 2 cores"}

Change = Callable[[Record], Record]


def build(norm: object, config: Mapping[str, Any]) -> Any:
    """Fail: nothing here is trained."""
    raise NotImplementedError


def problems(title: str = "MLP on digits", **fields: Any) -> tuple[Problem, ...]:
    return (
        Problem(name="digits-mlp", title=title, build=build, **fields),
        Problem(name="digits-conv", title="conv net on digits", build=build, spatial=True, **fields),
    )


DEPLOYED = Curve(
    name="deployed",
    title="As deployed: the batch of the optimizer is the batch of the statistics",
    factor=Factor(name="batch_size", label="batch size (examples)", flag="--batch-sizes", values=VALUES, reference=32),
    config=lambda value: {"batch_size": value},
    shows="What error to expect from a norm at the batch size that fits the machine.",
    hides="Whether the gradient's noise or that of the statistics is behind a difference.",
)
ISOLATED = Curve(
    name="isolated",
    title="Isolated: optimizer batch 128, statistics over fewer examples",
    factor=Factor(
        name="ghost_batch_size",
        label="ghost batch size (examples)",
        flag="--ghost-batch-sizes",
        values=VALUES,
        reference=32,
    ),
    config=lambda value: {"batch_size": 128},
    norm_options=lambda norm, value: {"ghost_batch_size": value} if norm in ("batch", "batch_renorm") else {},
    shows="What noisier statistics alone do to a norm; norms within one example are flat references.",
    hides="What to use at a small batch, where the optimizer's gradient is noisier, too.",
    advises=False,
)


def a_comparison(**changes: Any) -> Comparison:
    tier = Tier(epochs=20, learning_rates=RATES, tuning_seeds=1, seeds=10, leaves_out="A second tuning seed.")
    fields: dict[str, Any] = dict(
        name="batch_size",
        title="Test error against batch size",
        question="How does test error depend on the batch?",
        problems=problems(),
        norms=NORMS,
        curves=(DEPLOYED, ISOLATED),
        tiers={
            "standard": tier,
            "quick": dataclasses.replace(tier, seeds=5),
            "smoke": dataclasses.replace(tier, seeds=2, claims=False),
        },
        fixed=("SGD with momentum 0.9, cosine schedule.", "Every seed has its own split, the same for every norm."),
        default_learning_rate=0.1,
    )
    return Comparison(**{**fields, **changes})


def some_settings(comparison: Comparison, tier: str = "standard", **changes: Any) -> Settings:
    spent = comparison.tiers[tier]
    fields = dict(
        comparison=comparison.name,
        source=comparison.name,
        tier=tier,
        problems=tuple(problem.name for problem in comparison.problems),
        norms=comparison.norms,
        curves=tuple(curve.name for curve in comparison.curves),
        values={curve.name: curve.factor.values for curve in comparison.curves},
        learning_rates=spent.learning_rates,
        epochs=spent.epochs,
        tuning_seeds=spent.tuning_seeds,
        seeds=spent.seeds,
        default_learning_rate=comparison.default_learning_rate,
    )
    return Settings(**{**fields, **changes})


def examples(configuration: Configuration) -> int:
    """Over how many examples the statistics of a batch go."""
    config = dict(configuration.config)
    _, _, ghost = str(config["norm"]).partition("ghost_batch_size=")
    return int(ghost.partition(",")[0]) if ghost else config.get("batch_size", 32)


def level(configuration: Configuration) -> float:
    """The true error of a configuration."""
    base = 0.026 if configuration.problem == "digits-mlp" else 0.016
    broken = {"batch": 0.154, "batch_renorm": 0.042} if configuration.problem == "digits-mlp" else {}
    if examples(configuration) == 2 and configuration.norm in broken:
        return base + broken[configuration.norm]
    return (
        base
        + 0.012 * (configuration.norm == "none")
        - 0.003 * (configuration.norm == "batch" and examples(configuration) != 2)
    )


def best_rate(configuration: Configuration) -> float:
    return 1.0 if configuration.norm == "none" and examples(configuration) == 128 else 0.1


def made_up(run: Run) -> Record:
    """A record that ends well."""
    distance = abs(math.log10(run.learning_rate / best_rate(run.configuration)))
    cost = {"compile": 2.5, "run": 0.4, "step": STEPS.get(run.configuration.norm, 150e-6), "memory": 1.5e6}
    shared = np.random.default_rng(run.seed).normal(0, 0.004)
    spread = 0.0025 + 0.1 * max(0.0, level(run.configuration) - 0.05)
    configuration = dataclasses.replace(
        run.configuration, config=tuple(item for item in run.configuration.config if item[0] != "statistics")
    )  # told by others
    own = np.random.default_rng(int(content_key(dataclasses.replace(run, configuration=configuration))[:8], 16)).normal(
        0, spread
    )
    test = max(0.001, level(run.configuration) + shared + own + 0.008 * distance**2)
    metrics: dict[str, float | None] = {"validation": level(run.configuration) + 0.01 * distance**2, "chance": 0.9}
    metrics |= {"test": test, "train_loss": test**2} if run.stage == EVALUATE else {"train_loss": 0.1}
    return Record(key=content_key(run), run=run, identity={}, status="ok", metrics=metrics, cost=cost)


def failed(record: Record, reason: str = "The loss is not finite from step 12.") -> Record:
    metrics = {"validation": None, "test": None, "train_loss": None, "chance": 0.9}
    return dataclasses.replace(record, status="diverged", reason=reason, metrics=metrics)


def two_diverge(record: Record) -> Record:
    run = record.run
    there = (run.configuration.problem, run.configuration.norm, examples(run.configuration)) == (
        "digits-mlp",
        "none",
        128,
    )
    return failed(record) if there and run.stage == EVALUATE and run.seed in (1, 4) else record


def simulate(comparison: Comparison, settings: Settings, change: Change = two_diverge) -> list[Record]:
    """Return all records of a comparison, each changed by `change`."""
    plan, records = Plan(comparison, settings), []
    while runs := plan.pending(records):
        for run in runs:
            record = made_up(run)
            if reason := plan.incompatible(run.configuration):
                record = dataclasses.replace(record, status="invalid", reason=reason, metrics={}, cost={})
            records.append(change(record))
    return records


def analysis_of(
    change: Change = two_diverge, tier: str = "standard", settings: Mapping[str, Any] | None = None, **comparison: Any
) -> Analysis:
    """Analyse a comparison with some fields and settings replaced."""
    compared = a_comparison(**comparison)
    chosen = some_settings(compared, tier, **(settings or {}))
    return analyse(compared, chosen, simulate(compared, chosen, change))
