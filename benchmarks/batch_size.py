"""Which norm, at which batch size?

    normlab run batch_size
    normlab run batch_size --data tfds:cifar10 --data-dir DIR --problems resnet20 --augment crop flip
    normlab run batch_size --problems gpt --text tfds:tiny_shakespeare

Statistics over several examples are noisier in smaller batches, and so is the gradient. The curve `deployed` shrinks
both together, as on an accelerator whose memory fits only a few examples; the curve `isolated` shrinks only the
statistics. Every norm gets its own learning rate in every column, chosen from one grid by the validation error of seeds
that are not used for evaluation; within a run, validation and test examples are disjoint.
"""

from dataclasses import replace

from normlab import study
from normlab.study.problems import text, zoo

_TIERS = study.tiers(problems=("mlp", "conv"))

comparison = study.Comparison(
    name="batch_size",
    title="Test error against batch size",
    problems=(*zoo.problems(*zoo.MEMBERS), text.gpt(rate=zoo.VIT_RATE)),
    norms=("none", "batch", "batch_renorm", "layer", "rms", "group", "instance"),
    curves=study.batch_size_curves(reference=32),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], values={"deployed": (8, 32), "isolated": (8, 128)}),
        "quick": replace(
            _TIERS["quick"],
            values={"deployed": (2, 4, 32, 128), "isolated": (2, 8, 32, 128)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out batch size 8, and 4 examples in the "
            "statistics.",
        ),
    },
    default_learning_rate=0.1,
    fixed=(
        "The number of epochs is the same at every batch size, so larger batches mean fewer updates.",
        "Batch norm and batch renorm: running statistics with a time constant of one epoch of examples (momentum = 1 - "
        "batch size / training examples), used at evaluation.",
        *zoo.FIXED,
    ),
)
