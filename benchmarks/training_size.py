r"""Does a network with a norm need fewer examples?

    normlab run training_size
    normlab run training_size --training-sizes 100 500 2000 20000 \
        --data tfds:mnist --image-size 14 --train-examples 22222 --epochs 2
    normlab run training_size --training-sizes 500 5000 45000 --data tfds:cifar10 --problems resnet20

The number of updates is the same at every size, so that only the examples become fewer; each seed has other ones.
"""

from dataclasses import replace

from normlab import study
from normlab.study.problems import zoo

BATCH = 64
_TIERS = study.tiers(epochs=40, problems=("mlp",))

comparison = study.Comparison(
    name="training_size",
    title="Test error against the number of training examples",
    question="Does a network with a norm need fewer examples?",
    problems=(zoo.problem("mlp", zoo.mlp(3)), *zoo.CONVS, *zoo.problems("resnet20")),
    norms=("none", "batch", "layer"),
    curves=(
        study.Curve(
            name="size",
            title="Training examples, as many updates",
            factor=study.Factor(
                name="training_size",
                label="training examples",
                flag="--training-sizes",
                values=(100, 200, 500, 1000),
                reference=1000,
            ),
            config=lambda size: {"batch_size": BATCH, "training_size": size},
            shows="The gain of a norm with few examples and with many, at the same number of updates.",
            hides="The gain of training until the error stops falling.",
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], norms=("none", "batch"), values={"size": (100, 1000)}),
        "quick": replace(
            _TIERS["quick"],
            norms=("none", "batch"),
            values={"size": (100, 500, 1000)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out layer norm and 200 examples.",
        ),
    },
    fixed=(
        "Examples: the first of the training set of each seed, in random order. They are seen as often as it takes for "
        "the number of updates with all of them. Validation and test have all their examples at every size.",
        *zoo.LAYERS,
        "ResNet-20: as in `batch_size`, with weight decay.",
    ),
)
