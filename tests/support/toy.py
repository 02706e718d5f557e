"""A comparison whose runs take no time; its norms do nothing but choose what goes wrong."""

import os
import signal
import time
from pathlib import Path

from normlab.study import Comparison, Curve, Factor, Problem, Tier


def build(norm, config):
    import jax.numpy as jnp
    import numpy as np

    from normlab.study.design.program import Program

    def init(seed):
        if norm.name == "rms" and seed == 1:
            raise RuntimeError("seed 1 always fails\nand this line is not in the reason")
        if norm.name == "layer" and seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if norm.name == "batch_renorm" and seed == 1 and not KILLED.exists():
            KILLED.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(PAUSE)
        return {"w": np.float32(np.random.default_rng(seed).normal())}

    def step(state, t, learning_rate, data):
        w = state["w"] - learning_rate * (state["w"] - data["target"])
        loss = (w - data["target"]) ** 2 + 1e-9 * sum(norm.name.encode())  # so that the norm is not ignored
        return {"w": w}, jnp.nan * loss if norm.name == "group" else loss

    def evaluate(state, data):
        examples = norm.options.get("ghost_batch_size", config["batch_size"])
        error = jnp.clip(jnp.abs(state["w"] - data["target"]) / examples, 0, 1)
        return {"validation": error, "test": error + 0.01, "finite": jnp.isfinite(error)}

    return Program(
        data={"target": np.float32(0.5)}, init=init, step=step, evaluate=evaluate, steps=config["epochs"], last=1
    )


PAUSE = 0.0
KILLED = Path(__file__).with_suffix(".killed")
comparison = Comparison(
    name="toy",
    title="Toy",
    question="Does the engine work?",
    problems=(Problem(name="scalar", title="one number", build=build),),
    norms=("none", "batch"),
    curves=(
        Curve(
            name="deployed",
            title="the batch",
            factor=Factor(name="batch_size", label="batch size", flag="--batch-sizes", values=(2, 4)),
            config=lambda value: {"batch_size": value},
        ),
        Curve(
            name="isolated",
            title="its statistics",
            factor=Factor(name="ghost", label="ghost batch size", flag="--ghost-batch-sizes", values=(2, 4)),
            config=lambda value: {"batch_size": 4},
            norm_options=lambda norm, value: {"ghost_batch_size": value} if (norm, value) == ("batch", 2) else {},
            advises=False,
        ),
    ),
    tiers={"quick": Tier(epochs=3, learning_rates=(0.01, 0.1, 0.3), tuning_seeds=2, seeds=4)},
)
