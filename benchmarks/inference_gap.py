"""How much does batch norm lose between training and inference?

    normlab run inference_gap

In training batch norm uses statistics of the batch, at inference running statistics from training. Each trained network
is evaluated with its running statistics, many examples or one at a time; with statistics that are estimated again from
training examples, for the same weights; with statistics of test batches of 1 to 128 examples; with its norms folded
into the layers around them; and with its norms deleted. Running statistics are updated at a reasonable rate, much too
fast, too slowly, as a plain average, and with an unbiased variance.
"""

from dataclasses import replace
from typing import Any

from normlab import study
from normlab.study.problems import zoo

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
TOO_FAST, TOO_SLOW = 0.5, 0.998
"""Momenta, the weights of the old value."""

REESTIMATED, GAP, LOGIT, FLIPPED = (
    "test error by re-estimated statistics",
    "test error as deployed minus that",
    "mean change of an output by re-estimating",
    "predictions changed by re-estimating",
)
OWN = "test error by statistics of test batches as large as in training, minus as deployed"
ALONE = "test error by statistics of one test example, minus as deployed"
SINGLY = "largest change of an output, one example at a time"
FOLDED, FOLDED_LARGEST, FOLDED_FLIPPED = (
    "test error with norms folded into layers",
    "largest change of an output by folding",
    "predictions changed by folding",
)
REMOVED, COST, REMOVED_FLIPPED = (
    "test error with norms deleted",
    "test error with norms deleted minus as deployed",
    "predictions changed by deleting",
)
NUMBERS = (LOGIT, SINGLY, FOLDED_LARGEST)
"""Metrics that are no shares."""


def _measure(model: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    outputs = model.network.evaluate(model.params, model.model_state, model.test[0][: inference_measures.EVALUATED])
    return {"by_batch": 100 * inference_measures.changes_by_size(model, outputs, SIZES)}


def _assess(model: Any, outputs: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    inputs, _ = model.test
    removed = inference_measures.compared(model, outputs, inference_measures.without_norms(model, inputs))
    singly = inference_measures.compared(model, outputs, inference_measures.one_by_one(model, inputs))
    own, alone = inference_measures.changes_by_size(model, outputs, (len(model.batch[1]), 1))
    return {
        OWN: own,
        ALONE: alone,
        SINGLY: singly["largest"],
        REMOVED: removed["error"],
        COST: -removed["gap"],
        REMOVED_FLIPPED: removed["flipped"],
    }


def _examine(model: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    outputs, state = model.evaluate(model.model_state), inference_measures.reestimated(model)
    folded = inference_measures.compared(model, outputs, inference_measures.folded(model))
    found = {FOLDED: folded["error"], FOLDED_LARGEST: folded["largest"], FOLDED_FLIPPED: folded["flipped"]}
    if state is None:
        return found
    again = inference_measures.compared(model, outputs, model.evaluate(state))
    return {**found, REESTIMATED: again["error"], GAP: again["gap"], LOGIT: again["logit"], FLIPPED: again["flipped"]}


_BY_BATCH = study.Series(
    name="by_batch",
    title="Error with statistics of the test batch",
    x_label="examples in the test batch",
    y_label="change of the test error (points)",
    x=SIZES,
    log_x=True,
    at_end=True,
    shows="Error with statistics of test batches of the given size, in random order, minus the error of the same "
    "examples with running statistics; exactly zero for norms within an example. In a dense layer, a batch of one has "
    "nothing to average over.",
)
_TIERS = study.tiers(problems=("mlp", "conv"))

comparison = study.Comparison(
    name="inference_gap",
    title="Test error as deployed, and the part due to running statistics",
    question="How much does a norm lose between training and inference?",
    problems=zoo.problems(
        "mlp",
        "conv",
        "resnet20",
        series=(_BY_BATCH,),
        measure=_measure,
        extra_metrics=tuple(
            study.Metric(name=name, percent=name not in NUMBERS)
            for name in (
                *(REESTIMATED, GAP, LOGIT, FLIPPED, OWN, ALONE, SINGLY),
                *(FOLDED, FOLDED_LARGEST, FOLDED_FLIPPED, REMOVED, COST, REMOVED_FLIPPED),
            )
        ),
        assess=_assess,
        examine=_examine,
    ),
    norms=(
        "batch",
        "batch:unbiased_running_var=True",
        "batch:momentum=None",
        f"batch:momentum={TOO_FAST}",
        f"batch:momentum={TOO_SLOW}",
        "batch_renorm",
        "layer",
        "group",
    ),
    curves=(study.batch_size_curves(reference=32)[0],),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], problems=("mlp",), values={"deployed": (8, 32)}),
        "quick": replace(
            _TIERS["quick"],
            values={"deployed": (2, 4, 32, 128)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out batch size 8.",
        ),
    },
    fixed=(
        "As deployed: running statistics with a time constant of one epoch of examples, or with the given `momentum`, "
        f"the weight of the old value: {TOO_FAST} remembers two updates and {TOO_SLOW} five hundred, `None` is the "
        "plain average of all batches. Running statistics do not affect training; learning rates are tuned for each.",
        "Re-estimated statistics: from up to 4,096 training examples in batches as large as in training, with the same "
        "weights (PreciseBN). Up to 2,048 test examples are evaluated in batches.",
        "Folded: running statistics, scale and shift of a norm are in the weights of the layer before it or behind it; "
        "norms that take statistics of their input stay. Deleted: norms are left out, and layers keep their weights. "
        "Largest changes are in units of the largest output, or of 1.",
        *zoo.FIXED,
    ),
)
