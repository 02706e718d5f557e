"""Does every layer need a norm?

    normlab run every_layer
    normlab run every_layer --data tfds:mnist --image-size 14 --train-examples 22222 --epochs 2
    normlab run every_layer --data tfds:cifar10 --problems conv --epochs 20

Only layers k, 2k, 3k, ... have a norm. The table of learning rates shows the other side of the answer: the rates that
still train.
"""

from dataclasses import replace

from normlab import study
from normlab.study.problems import zoo

BATCH = 64
_TIERS = study.tiers(epochs=40, problems=("mlp", "mlp20"))

comparison = study.Comparison(
    name="every_layer",
    title="Test error against the number of layers to a norm",
    question="Does every layer need a norm?",
    problems=(
        zoo.problem("mlp", zoo.mlp(6)),
        zoo.problem("mlp20", zoo.mlp(20)),
        *zoo.CONVS,
    ),
    norms=("none", "batch", "layer"),
    curves=(
        study.Curve(
            name="every",
            title="Layers to a norm",
            factor=study.Factor(
                name="every", label="layers to a norm", flag="--every", values=(1, 2, 3, 6), log=False, reference=1
            ),
            config=lambda every: {"batch_size": BATCH, "every": every},
            shows="The cost of leaving norms out, with the learning rate tuned for what is left.",
            hides="The layers in which norms matter most.",
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], problems=("mlp",), norms=("none", "batch"), values={"every": (1, 2)}),
        "quick": replace(
            _TIERS["quick"],
            problems=("mlp",),
            norms=("none", "batch"),
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out layer norm and the network of 20 layers.",
        ),
    },
    fixed=(
        "Layers k, 2k, 3k, ... have a norm, and the head none. Without a norm the network is the same at every k.",
        *zoo.LAYERS,
    ),
)
