"""How much does batch norm lose between training and inference?

    normlab run inference_gap

In training batch norm uses statistics of the batch, at inference running statistics from training. Each trained network
is evaluated with its running statistics; with statistics that are estimated again from training examples, for the same
weights; and with statistics of test batches of 1 to 128 examples. Running statistics are updated at a reasonable rate,
much too fast, too slowly, as a plain average, and with an unbiased variance.
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


def _measure(model: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    outputs = model.network.evaluate(model.params, model.model_state, model.test[0][: inference_measures.EVALUATED])
    return {"by_batch": 100 * inference_measures.changes_by_size(model, outputs, SIZES)}


def _assess(model: Any, outputs: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    found = inference_measures.compared(model, outputs, model.evaluate(inference_measures.reestimated(model)))
    size = len(model.batch[1])
    return {
        REESTIMATED: found["error"],
        GAP: found["gap"],
        LOGIT: found["logit"],
        FLIPPED: found["flipped"],
        OWN: inference_measures.changes_by_size(model, outputs, (size,))[0],
    }


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
            study.Metric(name=name, percent=name != LOGIT) for name in (REESTIMATED, GAP, LOGIT, FLIPPED, OWN)
        ),
        assess=_assess,
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
        *zoo.FIXED,
    ),
)
