"""Which norm, if the examples of a batch resemble each other?

    normlab run batch_composition

Batch norm assumes that a batch looks like the data. Here a batch of 32 examples contains 10, 8, 4, 2 or 1 classes,
drawn again for each batch. Sorted files, streams, and sampling by class or by user give such batches in training. The
test is not affected.
"""

from dataclasses import replace
from typing import Any

from normlab import study
from normlab.study.problems import zoo

BATCH = 32
REESTIMATED, ALIKE, LEAK = (
    "test error by statistics re-estimated from a random order",
    "test error in batches composed as in training, by their own statistics",
    "leak: training error as deployed minus that in batches as in training",
)


def _assess(model: Any, outputs: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    of_training, of_test = model.composed
    own, deployed = inference_measures.in_batches(model, of_training)
    return {ALIKE: inference_measures.in_batches(model, of_test)[0], LEAK: deployed - own}


def _examine(model: Any) -> dict[str, Any]:
    from normlab.study.training import inference_measures

    state = inference_measures.reestimated(model)
    return {} if state is None else {REESTIMATED: model.error(model.evaluate(state), model.test[1]).mean()}


_TIERS = study.tiers(problems=("mlp", "conv"))

comparison = study.Comparison(
    name="batch_composition",
    title=f"Test error against the classes in a batch of {BATCH}",
    question="Which norm, if the examples of a batch resemble each other?",
    problems=zoo.problems(
        "mlp",
        "conv",
        "resnet20",
        extra_metrics=tuple(study.Metric(name=name) for name in (REESTIMATED, ALIKE, LEAK)),
        assess=_assess,
        examine=_examine,
    ),
    norms=("none", "batch", "batch_renorm", "layer", "group", "instance"),
    curves=(
        study.Curve(
            name="classes",
            title=f"Classes in a batch of {BATCH}",
            factor=study.Factor(
                name="classes_per_batch",
                label="classes in a batch",
                flag="--classes-per-batch",
                values=(1, 2, 4, 8, 10),
                reference=10,
            ),
            config=lambda classes: {"batch_size": BATCH, "classes_per_batch": classes},
            shows="The cost of statistics and gradients of batches that differ from the test: for norms within an "
            "example, only that of the gradients.",
            hides="The cost of sorted data in which every class occurs once an epoch, in consecutive batches.",
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], problems=("mlp",), values={"classes": (1, 10)}),
        "quick": replace(
            _TIERS["quick"],
            problems=("mlp",),
            values={"classes": (1, 2, 4, 10)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out the conv net and 8 classes.",
        ),
    },
    fixed=(
        f"Batches: {BATCH} examples of the given number of classes, drawn again for each batch, in equal shares as far "
        "as possible; examples are drawn independently from their class, so an epoch has as many examples as the "
        "training set, but not each of them once. With all ten classes, a batch is more balanced than by chance.",
        "Validation and test are not composed: they are evaluated with running statistics, as deployed.",
        *zoo.FIXED,
    ),
)
