"""Which norm inside a recurrent cell?

    normlab run recurrent
    normlab run recurrent --problems text --text tfds:tiny_shakespeare

An LSTM reads digits row by row or pixel by pixel, in order and under a fixed permutation; sequences of different
lengths of the adding problem; and text. Besides the error, the report shows gradients along a sequence, the statistics
of batch norm at each step, errors on sequences longer than in training, and whether examples give the same outputs
alone and in a batch.

Rows with `epsilon=1e-05` are the norms as published. From a zero state with zero inputs, their gradients grow at each
step; the defaults of the cells prevent this.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from normlab import study
from normlab.norms import Norm
from normlab.study.data import sequences
from normlab.study.data.dataset import TEST, TRAIN, VALIDATION
from normlab.study.data.options import TEXT_OPTION
from normlab.study.training.objectives import BITS_PER_CHARACTER, mean_cross_entropy

BATCH, WIDTH, TEXT_WIDTH = 64, 32, 64
LONGER = (8, 9, 10, 12, 16)
"""Lengths of evaluated sequences, in eighths of the length in training."""

NAMES = {
    "blank": study.Metric(name="one by one, others blank: largest change of outputs", percent=False),
    "alone": study.Metric(name="batch of 1: largest change of outputs", percent=False),
}


def _net(norm: Norm, depth: int, **fields: Any) -> Any:
    from normlab.models.lstm import LSTMNet

    return LSTMNet(norm, depth=depth, **{"features": WIDTH, **fields})


def _adam(schedule: Any) -> Any:
    import optax

    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)))  # flat: compiles faster


def _series(steps: int, error: study.Series) -> tuple[study.Series, ...]:
    along: dict[str, Any] = {"x_label": "time step", "x": tuple(range(1, steps + 1))}
    once: dict[str, Any] = {"x_label": "", "x": (0,), "y_label": "gradient norm", "log": True}
    return (
        study.Series(
            name="gradient",
            title="Gradient along the sequence",
            y_label="gradient norm",
            log=True,
            during=True,
            shows="Norm over batch and features of the gradient of the loss with respect to the first cell's hidden "
            "state at each step, on the first batch, as in training: whether the loss at the end reaches the start.",
            **along,
        ),
        study.Series(
            name="parameter_gradient",
            title="Gradient of all parameters",
            shows="On the first batch, as in training: from a noisy state, before clipping.",
            **once,
        ),
        study.Series(
            name="from_zero",
            title="Gradient of all parameters, from a zero state",
            shows="The same from a zero state. Blank pixels then have no variance, and a norm divides by the root of "
            "its epsilon at each step. Values beyond float32 are drawn at its largest number, 3e38.",
            **once,
        ),
        study.Series(
            name="activation",
            title="Size of the hidden state",
            x_label="time step",
            y_label="root mean square",
            x=tuple(range(1, int(error.x[-1]) + 1)),
            shows=f"First cell, at each step of test sequences longer than the {steps} steps of training.",
        ),
        study.Series(
            name="statistics",
            title="Running variance of the recurrent path",
            y_label="running variance",
            log=True,
            shows="Mean over the features of the first cell's product with its hidden state, as stored for evaluation.",
            **along,
        ),
        error,
    )


def _measure(model: Any, beyond: Any) -> dict[str, Any]:
    from normlab.study.training import sequence_measures

    return {
        **sequence_measures.gradients(model),
        "statistics": sequence_measures.running_variance(model),
        **beyond(sequence_measures, model),
    }


def _with_blanks(measures: Any, model: Any, lengths: tuple[int, ...]) -> Any:
    found = measures.with_blanks(model, lengths)
    return {**found, "error_at_length": 100 * found["error_at_length"]}


def _joined(measures: Any, model: Any, ends: tuple[int, ...]) -> Any:
    return measures.joined(model, ends)


def _longer_sums(measures: Any, model: Any, lengths: tuple[int, ...]) -> Any:
    each = [length for length in lengths for _ in range(BATCH)]
    return measures.longer(model, *sequences.sums(each, max(lengths), seed=2), lengths)


def _assess(model: Any, outputs: Any, metric: study.Error) -> dict[str, Any]:
    from normlab.study.training import sequence_measures

    found, (changed, gap) = sequence_measures.one_by_one(model, outputs), _errors(metric)
    named = {NAMES[name].name: found[name] for name in NAMES}
    return {**named, changed.name: found["error"], gap.name: sequence_measures.gap(model, outputs)}


def _errors(metric: study.Error) -> tuple[study.Metric, study.Metric]:
    return (
        study.Metric(name=f"batch of 1: change of {metric.name}", percent=metric.percent),
        study.Metric(name=f"{metric.name} by running statistics minus by the batch's own", percent=metric.percent),
    )


def _problem(
    name: str, title: str, data: Any, steps: int, metric: study.Error, error: study.Series, beyond: Any, **fields: Any
) -> study.Problem:
    step = {"max_steps": steps}
    return study.supervised(
        name=name,
        title=title,
        data=data,
        metric=metric,
        optimizer=_adam,
        recurrent=True,
        norm_options={"batch_step": step, "batch_input": step, "group": {"num_groups": 4}},
        series=_series(steps, error),
        measure=partial(_measure, beyond=beyond),
        extra_metrics=(*NAMES.values(), *_errors(metric)),
        assess=partial(_assess, metric=metric),
        **fields,
    )


def _digits(name: str, title: str, data: Any, steps: int) -> study.Problem:
    lengths = tuple(steps * eighths // 8 for eighths in LONGER)
    error = study.Series(
        name="error_at_length",
        title="Error at lengths beyond training",
        x_label="time steps",
        y_label="test error (%)",
        x=lengths,
        shows=f"Blank steps follow the {steps} of training. Steps beyond use the statistics of the last one.",
    )
    return _problem(
        name,
        title,
        data,
        steps,
        study.MISCLASSIFICATION,
        error,
        partial(_with_blanks, lengths=lengths),
        model=_net,
        validation=VALIDATION,
        test=TEST,
    )


def _text() -> study.Problem:
    window = sequences.WINDOW
    ends = tuple(range(window // 4, 4 * window + 1, window // 4))
    error = study.Series(
        name="error_at_length",
        title="Bits per character along sequences longer than in training",
        x_label="time steps, up to",
        y_label="bits per character",
        x=ends,
        shows=f"Four windows of the test read as one; training ends at {window}. There is little context at the start "
        "of a text.",
    )
    return _problem(
        "text",
        f"LSTM-{TEXT_WIDTH}, text by character",
        sequences.characters,
        window,
        BITS_PER_CHARACTER,
        error,
        partial(_joined, ends=ends),
        model=partial(_net, features=TEXT_WIDTH, outputs=sequences.SYMBOLS, symbols=sequences.SYMBOLS, every_step=True),
        loss=mean_cross_entropy,
        chance=sequences.unigram_bits,
        options=(TEXT_OPTION,),
    )


def _adding(steps: int = 64) -> study.Problem:
    lengths = tuple(steps * eighths // 8 for eighths in LONGER)
    error = study.Series(
        name="error_at_length",
        title="Error at lengths beyond training",
        x_label="time steps",
        y_label="mean squared error",
        x=lengths,
        shows=f"New sequences, all of the given length; training sequences have {steps // 2} to {steps} steps.",
    )
    return _problem(
        "adding",
        f"LSTM-{WIDTH}, the adding problem, {steps // 2} to {steps} steps",
        sequences.adding,
        steps,
        study.Error(name="mean squared error", function=study.MEAN_SQUARED_ERROR.function, margin=0.01),
        error,
        partial(_longer_sums, lengths=lengths),
        model=partial(_net, outputs=1, padded=True),
        chance=1 / 6,
        validation=VALIDATION,
        test=512,
    )


_TIERS = study.tiers(learning_rates=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1))

comparison = study.Comparison(
    name="recurrent",
    title="Test error against the norm inside an LSTM",
    question="Which norm inside a recurrent cell, and when does each fail?",
    problems=(
        _digits("rows", f"LSTM-{WIDTH}, digits row by row", sequences.rows, 8),
        _digits("pixels", f"LSTM-{WIDTH}, digits pixel by pixel", sequences.pixels, 64),
        _digits("permuted", f"LSTM-{WIDTH}, digits pixel by pixel, permuted", sequences.permuted, 64),
        _adding(),
        _text(),
    ),
    norms=(
        "none",
        "layer",
        "layer:epsilon=1e-05",
        "layer_per_gate",
        "rms",
        "group",
        "batch_step",
        "batch_step:epsilon=1e-05",
        "batch_step:epsilon=1e-05,initial_scale=1.0",
        "batch_shared",
        "batch_input",
        "batch_input:over='step'",
    ),
    baseline="none",
    curves=(
        study.Curve(
            name="depth",
            title="Stacked LSTMs",
            factor=study.Factor(name="depth", label="cells", flag="--depths", values=(1, 2), log=False, reference=1),
            config=lambda depth: {"batch_size": BATCH, "depth": depth},
            shows="The benefit of a norm inside the cell, with one cell and with two, each with a tuned learning rate.",
            hides="Its benefit in larger cells, longer training or larger batches.",
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], problems=("rows",), norms=("none", "batch_step"), values={"depth": (1,)}),
        "quick": replace(
            _TIERS["quick"],
            problems=("rows", "permuted", "text"),
            values={"depth": (1,)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out pixels in order, the adding problem and "
            "two cells.",
        ),
    },
    fixed=(
        f"Digits: scikit-learn's 1,797 of 8 x 8 pixels; each seed has its own split into {TRAIN:,} for training, "
        f"{VALIDATION} for validation and {TEST} for the test. Permuted: one permutation of the 64 pixels, NumPy's "
        f"`default_rng({sequences.PERMUTATION_SEED}).permutation(64)`.",
        "Adding: 4,096 sequences for training, 256 for validation, 512 for the test; lengths are even from half the "
        "longest to the longest, and a sequence that has ended enters no statistic. Error without learning: 1/6.",
        f"Text: windows of {sequences.WINDOW} characters, each read from a fresh state; {sequences.SYMBOLS - 1} "
        "characters are distinguished, all others are one symbol. The split is the same for every seed.",
        f"Model: LSTMs with {WIDTH} units ({TEXT_WIDTH} for text) and a dense layer; split, initial weights and order "
        "are the same for every norm.",
        f"Training: batches of {BATCH}, Adam, gradients clipped at norm 1, cosine decay from the tuned learning rate "
        "to zero; no weight decay. For all norms the state starts from noise of standard deviation 0.1, only in "
        "training: if all sequences begin with the same pixels, batch norm's variance would be zero.",
        "Batch norms: running statistics with a time constant of one epoch of examples, updated once an update; "
        "one row for each step of training; later steps use the last row.",
        "Step times include their share of the measurements, which are taken five times in a run.",
    ),
)
