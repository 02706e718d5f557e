"""Does batch norm replace dropout?

    normlab run dropout
    normlab run dropout --data tfds:mnist --image-size 14 --train-examples 22222 --epochs 2
    normlab run dropout --data tfds:cifar10 --problems conv --epochs 20

Dropout helps where a network overfits, so one training set cannot answer: each norm is trained with dropout at several
rates, with all examples and with a tenth of them at the same number of updates. Networks with dropout also want longer
training: a third curve has four times the updates. Learning rates are tuned in every cell.
"""

from dataclasses import replace

from normlab import study
from normlab.study.problems import zoo

BATCH, FEW, LONGER = 64, 0.1, 4
RATES = (0.0, 0.1, 0.3, 0.5)


def _curve(name: str, title: str, flag: str, shows: str, hides: str, **config: float) -> study.Curve:
    return study.Curve(
        name=name,
        title=title,
        factor=study.Factor(
            name="dropout", label="dropout rate", flag=flag, values=RATES, log=False, reference=RATES[0]
        ),
        config=lambda rate: {"batch_size": BATCH, "dropout": rate, **config},
        shows=shows,
        hides=hides,
        advises=name == "all",
    )


_TIERS = study.tiers(epochs=40, problems=("mlp",))
_ENDS = {name: RATES[::2] for name in ("all", "few", "longer")}

comparison = study.Comparison(
    name="dropout",
    title="Test error against the dropout rate",
    question="Does batch norm replace dropout?",
    problems=(zoo.problem("mlp", zoo.mlp(3)), *zoo.CONVS),
    norms=("none", "batch", "layer"),
    curves=(
        _curve(
            *("all", "All training examples", "--dropouts"),
            shows="Whether dropout helps a norm where each example is seen a few times.",
            hides="The same where a network overfits.",
        ),
        _curve(
            *("few", f"{FEW:.0%} of the training examples, as many updates", "--dropouts-of-few"),
            shows="Whether dropout helps a norm where few examples are seen often.",
            hides="The same where there are enough examples.",
            training_size=FEW,
        ),
        _curve(
            *("longer", f"All training examples, {LONGER} times the updates", "--dropouts-longer"),
            shows="Whether dropout costs only time.",
            hides="The same with few examples.",
            longer=LONGER,
        ),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], norms=("none", "batch"), values=_ENDS),
        "quick": replace(
            _TIERS["quick"],
            norms=("none", "batch"),
            values=_ENDS,
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out layer norm and two dropout rates.",
        ),
    },
    fixed=(
        "Dropout: after each ReLU, in training; what stays is divided by the share that stays.",
        "A tenth of the examples: the first of the training set of each seed, so another tenth each. They are seen as "
        "often as it takes for the same number of updates.",
        *zoo.LAYERS,
    ),
)
