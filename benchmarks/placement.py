"""Does the norm belong before the activation, or after it?

    normlab run placement
    normlab run placement --data tfds:mnist --image-size 14 --train-examples 22222 --epochs 2

A hidden layer of each placement, from its input to its output:

    before    dense -> norm -> activation
    after     dense -> activation -> norm
    none      dense -> activation

Pre-activation (norm, activation, dense, and a last norm before the head) is no third placement in a chain of layers: it
is `before` with the first dense layer named apart. Only beside a skip connection it differs: `normlab run batch_size
--problems resnet20 resnet20-pre`.
"""

from dataclasses import replace

from normlab import study
from normlab.study.problems import zoo

BATCH = 64
_TIERS = study.tiers(epochs=40, problems=("mlp", "mlp-sigmoid"))

comparison = study.Comparison(
    name="placement",
    title="Test error against the place of the norm",
    question="Does the norm belong before the activation, or after it?",
    problems=(
        zoo.problem("mlp", zoo.mlp(4)),
        zoo.problem("mlp-sigmoid", zoo.mlp(4, activation="sigmoid")),
        *zoo.CONVS,
    ),
    norms=("none", "batch", "layer"),
    curves=(
        study.Curve(
            name="placement",
            title="Place of the norm",
            factor=study.Factor(
                name="placement",
                label="place of the norm",
                flag="--placements",
                values=("before", "after"),
                log=False,
                reference="before",
            ),
            config=lambda place: {"batch_size": BATCH, "placement": place},
            shows="The error with the norm at each place, with the learning rate tuned for it.",
            hides="The error in residual networks, where pre-activation is a place of its own.",
        ),
    ),
    tiers={**_TIERS, "quick": replace(_TIERS["quick"], norms=("none", "batch"))},
    fixed=(
        "Places: before is dense, norm, activation; after is dense, activation, norm. The activation is ReLU, or the "
        "sigmoid in the problem of that name. The head has no norm of its own. No norm is the same network at both.",
        *zoo.LAYERS,
    ),
)
