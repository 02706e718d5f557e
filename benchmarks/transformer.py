"""Which norm in a transformer, and where?

    normlab run transformer
    normlab run transformer --text tfds:tiny_shakespeare

A small GPT learns a text by character. The norm stands before each branch, after it, at both ends, or after the sum;
without a norm, or with one, branches may start at zero (ReZero). Each norm is tuned at each place, from one grid of
learning rates, at equal budget; the table of learning rates shows the largest that trains. Besides the error, the
report shows how logits of attention and outputs grow in training, and the variance of the residual stream layer by
layer. A second curve adds a norm of queries and keys.
"""

from dataclasses import replace
from typing import Any

from normlab import study
from normlab.study.data import sequences
from normlab.study.problems import text

BATCH = 16
PLACES = ("pre", "post", "peri", "res_post", "deep", "scaled", "parallel")
REZERO = "rezero"
"""Place of norms as with `pre`, and branches that start at zero."""

_OVER_TRAINING: dict[str, Any] = {"x_label": "", "x": (0,), "log": True}
_SERIES = (
    study.Series(
        name="attention_logit",
        title="Largest logit of attention",
        y_label="largest absolute logit",
        shows="Over all layers, heads and pairs of characters of up to 128 test windows. Attention to a single "
        "character, and then instability, follows large ones.",
        **_OVER_TRAINING,
    ),
    study.Series(
        name="output_logit",
        title="Largest output logit",
        y_label="largest absolute logit",
        shows="Over the outputs for the same windows.",
        **_OVER_TRAINING,
    ),
    study.Series(
        name="variance",
        title="Variance of the residual stream",
        x_label="layers, from 0 before the first",
        y_label="variance",
        x=tuple(range(text.DEPTH + 1)),
        log=True,
        during=True,
        shows="Variance over the features of a character, as a mean over the same windows. Where no norm stands after "
        "the sum, each layer adds to it.",
    ),
)


def _measure(model: Any) -> dict[str, Any]:
    from normlab.study.training import transformer_measures

    return transformer_measures.observed(model)


def _placed(place: Any) -> dict[str, object]:
    residual = {"residual": "rezero"} if place == REZERO else {}
    return {"batch_size": BATCH, "placement": "pre" if residual else place, **residual}


def _with_qk_norm(norm: Any) -> dict[str, object]:
    return {**_placed("pre"), **({} if norm == "none" else {"qk_norm": norm})}


_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_TIERS = study.tiers(epochs=5, learning_rates=_RATES)

comparison = study.Comparison(
    name="transformer",
    title="Bits per character against the place of the norm",
    question="Which norm in a transformer, and where?",
    problems=(text.gpt(series=_SERIES, measure=_measure),),
    norms=("none", "layer", "rms", "dyt", "derf", "seednorm"),
    baseline="rms",
    curves=(
        study.Curve(
            name="placement",
            title="Places of the norm",
            factor=study.Factor(
                name="placement", label="placement", flag="--placements", values=(*PLACES, REZERO), log=False
            ),
            config=_placed,
            shows="The benefit of a norm at each place, with the learning rate tuned for it, at the same budget.",
            hides="Its benefit in larger models, in longer training and with a warm-up of the learning rate.",
        ),
        study.Curve(
            name="qk_norm",
            title="Norm of queries and keys, with norms before the branches",
            factor=study.Factor(
                name="qk_norm", label="norm of queries and keys", flag="--qk-norms", values=("none", "rms"), log=False
            ),
            config=_with_qk_norm,
            shows="Whether larger learning rates train where logits of attention are bounded.",
            hides="Its benefit in models with more features in a head.",
            advises=False,
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(
            _TIERS["smoke"],
            epochs=1,
            norms=("none", "rms"),
            values={"placement": ("pre",), "qk_norm": ("none",)},
        ),
        "quick": replace(
            _TIERS["quick"],
            values={"placement": ("pre", "post", "peri", REZERO), "qk_norm": ("none", "rms")},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out the places res_post, deep, scaled and "
            "parallel.",
        ),
    },
    fixed=(
        "Places, for a branch f (attention, then an MLP) and the norm N: pre x + f(N(x)); post N(x + f(x)); peri "
        "x + N2(f(N1(x))); res_post x + N(f(x)); deep N(a x + f(x)) with a = (2 L)^(1/4) for L layers and initial "
        "weights (8 L)^(-1/4) times as large; scaled x + f(N(x) / sqrt(l)) in layer l; parallel x + attention(N(x)) + "
        "MLP(N(x)). All except post and deep have a norm after the last layer, and peri one after the embedding. With "
        "rezero, f is multiplied by a learned number that starts at 0, dense layers have no biases, and norms stand as "
        "with pre.",
        f"Model: {text.DEPTH} layers, width {text.WIDTH}, {text.HEADS} heads, rotary positions, GELU, tied "
        "embedding; initial weights as in GPT-2. Split, initial weights and order are the same for every norm. Each "
        "character is an example for a norm.",
        f"Text: windows of {sequences.WINDOW} characters; {sequences.SYMBOLS - 1} characters are distinguished, all "
        "others are one symbol. The split is the same for every seed.",
        f"Training: batches of {BATCH} windows, AdamW with b2 = 0.95 and weight decay {text.WEIGHT_DECAY:g}, cosine "
        "decay from the tuned learning rate to zero; no warm-up and no clipping of gradients, which would hide "
        "instability.",
        "Step times include their share of the measurements, which are taken five times in a run.",
    ),
)
