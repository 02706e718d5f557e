"""How deep may a network be with a norm, plain and with skip connections?

    normlab run depth
    normlab run depth --data tfds:mnist --image-size 14 --train-examples 14222 --epochs 2

Yang et al. (2019) show that batch norm makes gradients explode with depth, so that plain networks of about 50 layers do
not train whatever the batch; skip connections help. Hidden layers are narrow, and SGD has no momentum, as calibrated.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from normlab import study
from normlab.study.problems import zoo

if TYPE_CHECKING:
    import optax

BATCH, WIDTH = 64, 64
DEPTHS = (4, 16, 32, 48)


def _sgd(schedule: "optax.Schedule") -> "optax.GradientTransformation":
    import optax

    return optax.sgd(schedule)


def _curve(name: str, title: str, flag: str, *, residual: bool) -> study.Curve:
    return study.Curve(
        name=name,
        title=title,
        factor=study.Factor(name="depth", label="hidden layers", flag=flag, values=DEPTHS, reference=DEPTHS[0]),
        config=lambda depth: {"batch_size": BATCH, "hidden": (WIDTH,) * int(depth), "residual": residual},
        shows="The depth to which a network trains in a fixed number of updates.",
        hides="The depth to which it trains with more of them.",
        advises=False,
    )


_NET = zoo.mlp(DEPTHS[0], WIDTH, optimizer=_sgd)._replace(title=f"MLP of {WIDTH} units a layer", groups=8, whitened=8)
_TIERS = study.tiers(epochs=25)

comparison = study.Comparison(
    name="depth",
    title="Test error against depth",
    question="How deep may a network be with a norm, plain and with skip connections?",
    problems=(zoo.problem("mlp", _NET),),
    norms=("none", "batch", "layer"),
    curves=(
        _curve("plain", "Plain: dense, norm, ReLU", "--depths", residual=False),
        _curve("residual", "Residual: each layer is added to its input", "--depths-residual", residual=True),
    ),
    tiers={
        **_TIERS,
        "smoke": replace(_TIERS["smoke"], norms=("none", "batch"), values={"plain": (4, 16), "residual": (4, 16)}),
        "quick": replace(
            _TIERS["quick"],
            norms=("none", "batch"),
            values={"plain": (4, 16, 48), "residual": (4, 48)},
            leaves_out=f"{_TIERS['quick'].leaves_out} Quick also leaves out layer norm and 32 layers.",
        ),
    },
    fixed=(
        f"Network: hidden layers of {WIDTH} units, dense, norm, ReLU; initial kernels after He et al. (2015). In the "
        "residual one the ReLU's output is added to the layer's input, except in the first layer.",
        f"Training: softmax cross entropy, batches of {BATCH}, SGD without momentum, cosine decay from the tuned "
        "learning rate to zero, no weight decay. Batch norm: running statistics with momentum 0.9. Split, initial "
        "weights and order are the same for every norm.",
    ),
)
