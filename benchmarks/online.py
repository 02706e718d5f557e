"""Which norm for a drifting stream, if examples arrive one at a time?

    normlab run online
    normlab run online --problems file --stream PATH

Each example is first predicted, then learned from, once. Besides the error, the report shows the size and duration of
the effect of a drift, forgetting of earlier tasks, the distance of running statistics from the true ones, and baselines
without a network: the majority class, the previous class, river's logistic regression and its Hoeffding adaptive tree.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from normlab import study
from normlab.norms import Norm
from normlab.study.data.tabular import DELIMITERS
from normlab.study.problems.streaming import MEMORY, averages
from normlab.study.streams.protocol import PARTS, PREFIX, RECOVERED_WITHIN, SETTLED
from normlab.study.streams.recorded import bundled, from_file, recorded
from normlab.study.streams.stream import Source
from normlab.study.streams.synthetic import synthetic
from normlab.study.streams.tasks import permuted_digits, split_digits

HIDDEN = (64, 64)
LENGTH = 10_000
LATE = 200
"""Number of examples by which labels are delayed."""


def _mlp(norm: Norm, outputs: int) -> Any:
    from normlab.models.mlp import MLP

    return MLP(norm, hidden=HIDDEN, classes=outputs)


def _problem(name: str, title: str, source: Any, **fields: Any) -> study.Problem:
    shares = {"mix": (0.7, 0.3), "backward_mix": (0.7, 0.0, 0.3)}  # the paper's for online learning
    options = {"group": {"num_groups": 8}, "continual": {"num_groups": 8}, "streaming": shares}
    return study.streaming(name=name, title=title, model=_mlp, source=source, norm_options=options, **fields)


def _synthetic(name: str, title: str, kind: str, *, drift: str) -> study.Problem:
    source = synthetic(kind, n=LENGTH, drift=drift)
    return _problem(name, title, source, drifting=drift in ("abrupt", "recurring"))


def _file(stream: str = "", **options: Any) -> Source:
    if not stream:
        raise ValueError("Expected the problem `file` with `--stream PATH`, got none. Name a .csv or .npz file.")
    return from_file(stream, **options)


def _delimiter(value: Any) -> str:
    if value not in DELIMITERS:
        raise ValueError(value)
    return value


_OPTIONS = (
    study.Option(
        name="stream",
        kind=study.FILE,
        metavar="PATH",
        help="stream for the problem `file`: .csv with column names, or .npz with `inputs` and `labels`",
    ),
    study.Option(name="label", kind=study.TEXT, metavar="COLUMN", help="column of the labels (default: the last one)"),
    study.Option(
        name="drop", kind=study.TEXT, metavar="COLUMN", many=True, help="ignore columns, whatever they contain"
    ),
    study.Option(
        name="header",
        kind=study.YES_NO,
        help="whether the first line contains the column names; otherwise columns are counted from 1 (default: yes)",
    ),
    study.Option(
        name="delimiter",
        kind=study.Kind(f"one of {', '.join(DELIMITERS)}", _delimiter),
        metavar="CHARACTER",
        help="delimiter of values: `,` (the default), `;`, `|` or `tab`",
    ),
    study.Option(
        name="classes",
        kind=study.TEXT,
        metavar="NAME",
        many=True,
        help="all possible labels (default: the labels in the file)",
    ),
    study.Option(name="drifts", kind=study.WHOLE, metavar="N", many=True, help="number of examples before each drift"),
    study.Option(
        name="skip_nonfinite", kind=study.YES_NO, help="leave out examples with a missing, NaN or infinite value"
    ),
)


def _arrival(value: Any) -> dict[str, Any]:
    return {"batch_size": 8, "varying": True} if value == "varying" else {"batch_size": 1, "delay": LATE}


_TIERS = study.tiers(
    epochs=1,
    problems=("sea", "agrawal", "agrawal-recurring", "hyperplane", "rbf", "led", "split-digits", "permuted-digits"),
)

comparison = study.Comparison(
    name="online",
    title="Error on streams against how examples arrive",
    question="Which norm for a drifting stream, if examples arrive one at a time?",
    problems=(
        _synthetic("sea", "MLP on SEA, one abrupt drift", "sea", drift="abrupt"),
        _synthetic("agrawal", "MLP on Agrawal's loans, one abrupt drift", "agrawal", drift="abrupt"),
        _synthetic("agrawal-recurring", "MLP on Agrawal's loans, a recurring concept", "agrawal", drift="recurring"),
        _synthetic("hyperplane", "MLP on a rotating hyperplane", "hyperplane", drift="incremental"),
        _synthetic("rbf", "MLP on radial basis functions, a gradual drift", "rbf", drift="gradual"),
        _synthetic("led", "MLP on LED digits, one abrupt drift", "led", drift="abrupt"),
        _problem("split-digits", "MLP on digits, two at a time", split_digits(), tasks=True),
        _problem(
            "permuted-digits",
            "MLP on digits, five orders of pixels",
            permuted_digits(),
            drifting=True,
            tasks=True,
        ),
        _problem("phishing", "MLP on phishing sites (1,250)", bundled("phishing")),
        _problem("weather", "MLP on weather (18,159 days)", partial(recorded, "weather")),
        _problem("outdoor", "MLP on outdoor objects (4,000)", partial(recorded, "outdoor")),
        _problem(
            "file",
            "MLP on a stream of your own",
            _file,
            drifting=True,
            options=_OPTIONS,
        ),
    ),
    norms=(
        "none",
        "batch",
        "batch:statistics='running'",
        "continual:statistics='running'",
        "streaming",
        "streaming:momentum=0.7",
        "online",
        "layer",
        "rms",
        "group",
    ),
    baseline="none",
    curves=(
        study.Curve(
            name="burst",
            title="Examples that arrive together",
            factor=study.Factor(
                name="batch_size",
                label="examples that arrive together",
                flag="--bursts",
                values=(1, 8, 32),
                reference=1,
            ),
            config=lambda size: {"batch_size": size},
            shows="The cost of learning from one example at a time, and the norms that can, with tuned learning rates.",
            hides="The cause: larger bursts also mean fewer updates and older predictions.",
        ),
        study.Curve(
            name="memory",
            title="Memory of running statistics, one example at a time",
            factor=study.Factor(
                name="memory", label="memory (examples)", flag="--memories", values=(20, MEMORY, 2000), reference=MEMORY
            ),
            config=lambda memory: {"batch_size": 1},
            norm_options=lambda norm, memory: averages(norm, int(memory), 1),
            shows="Noise against lag: short memories are noisy, long ones lag behind a drifting stream.",
            hides="The effect of other time constants of a norm, such as that of online norm's backward pass.",
            advises=False,
        ),
        study.Curve(
            name="arrival",
            title="Bursts of varying size, and delayed labels",
            factor=study.Factor(
                name="arrival", label="arrival", flag="--arrivals", values=("varying", "late"), log=False
            ),
            config=_arrival,
            shows="Varying: bursts of 1 to 15 examples, 8 on average. Late: one example at a time, labels known "
            f"{LATE} examples later.",
            hides="Labels that never arrive.",
            advises=False,
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(
            _TIERS["smoke"],
            problems=("sea", "split-digits"),
            norms=("none", "batch", "batch:statistics='running'", "online"),
            values={"burst": (1,), "memory": (MEMORY,), "arrival": ("varying",)},
        ),
        "quick": replace(
            _TIERS["quick"],
            problems=("agrawal", "led", "permuted-digits"),
            values={"burst": (1, 32), "memory": (MEMORY, 2000), "arrival": ("varying",)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out five streams, bursts of 8, the shortest "
            "memory and delayed labels.",
        ),
    },
    fixed=(
        f"Streams: river's generators, {LENGTH:,} examples each, or scikit-learn's digits as sequences of tasks. Each "
        "seed is a stream; learning rates are chosen on other streams than the reported ones.",
        "For a single real stream (phishing, weather, outdoor, file) seeds are initial weights, learning rates are "
        f"chosen on its first {PREFIX:.0%}, which is not reported, and intervals do not extend to other streams.",
        "Inputs: each feature is standardized by the mean and standard deviation of the examples so far, for networks "
        "and river's models alike; pixels are divided by 16.",
        f"Model: dense layers of {' and '.join(map(str, HIDDEN))} units, each with norm and ReLU, and a dense layer to "
        "the classes; one update for each burst by plain SGD at a constant learning rate; no weight decay.",
        f"Running statistics, and the long memory of streaming norm, remember {MEMORY} examples; `momentum=0.7`, about "
        "3 examples, is the published value. Predictions use running statistics from before the burst. Batch renorm "
        "with running statistics is not included, because it equals batch norm with running statistics up to rounding.",
        f"The level before a drift is the error over {100 * SETTLED // PARTS} % of the stream. Recovery is at the "
        f"first {100 // PARTS} % whose error, and the error from there to the next drift, are within "
        f"{RECOVERED_WITHIN:.0%} of this level; without recovery, all examples until the next drift are counted. "
        "Additional errors are the errors until recovery beyond the level before. Only abrupt drifts are measured.",
        "Baselines use river's defaults without tuning, and learn from one example at a time at every burst size.",
        "Digits: all seeds, including those of tuning, divide and order the same 1,797 examples.",
        "Step times include their share of the measurements along the stream.",
    ),
)
