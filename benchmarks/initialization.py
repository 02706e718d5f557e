"""Does a norm make training robust to the initial weights?

    normlab run initialization
    normlab run initialization --data tfds:mnist --image-size 14 --train-examples 22222 --epochs 2
    normlab run initialization --data tfds:cifar10 --problems conv --epochs 20

The initial kernels of all hidden layers are multiplied by one number. The norm's output does not depend on it, and the
size of a step does: the gradient shrinks as the kernels grow. So errors are reported with the learning rate tuned for
each scale, and untuned at 0.1. At scale 1 the table of learning rates shows how many of them a norm tolerates; standard
has ten seeds for each rate.
"""

from dataclasses import replace

from normlab import study
from normlab.study.design.budgets import HALF_DECADES
from normlab.study.problems import zoo

BATCH, RATE = 64, 0.1
_TIERS = study.tiers(epochs=40, learning_rates=(*HALF_DECADES, 3.0, 10.0), problems=("mlp",))

comparison = study.Comparison(
    name="initialization",
    title="Test error against the scale of the initial weights",
    question="Does a norm make training robust to the initial weights?",
    problems=(zoo.problem("mlp", zoo.mlp(3)), *zoo.CONVS),
    norms=("none", "batch", "layer"),
    curves=(
        study.Curve(
            name="scale",
            title="Scale of the initial kernels",
            factor=study.Factor(
                name="scale",
                label="initial kernels / those of He et al.",
                flag="--scales",
                values=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
                reference=1.0,
            ),
            config=lambda scale: {"batch_size": BATCH, "kernel_scale": float(scale) * zoo.HE},
            shows="How far initial weights may be off, with the learning rate tuned for them and at a fixed one.",
            hides="How far the scales of layers may differ from each other.",
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], norms=("none", "batch"), values={"scale": (0.1, 1.0, 10.0)}, untuned=True),
        "quick": replace(
            _TIERS["quick"],
            norms=("none", "batch"),
            values={"scale": (0.01, 0.1, 1.0, 10.0)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out layer norm and every second scale.",
        ),
        "standard": replace(_TIERS["standard"], tuning_seeds=10),
        "paper": replace(_TIERS["paper"], tuning_seeds=10),
    },
    default_learning_rate=RATE,
    fixed=("Scale: of the initial kernels of all layers but the head.", *zoo.LAYERS),
)
