"""Estimate the cost of a program from its text, without compiling it.

The constants are fits to the 1,051 runs of `batch_size --tier quick` in single-thread processes of a server (2026, jax
0.10), from MLPs at batch 2 to conv nets at batch 128. Estimates of an update were 0.6 to 2.1 times its time.
"""

import jax
import jax.numpy as jnp

from normlab.study.design.program import Program
from normlab.study.driver.estimate import Cost

__all__ = ["estimated"]

COMPILE, COMPILE_OPERATION = 0.9, 0.0011
"""Seconds to compile a program, and those for each of the operations of a step."""
STEP, BANDWIDTH = 5e-6, 40e9
"""Seconds of a step, and the bytes a second that its operations read and write."""


def estimated(program: Program) -> Cost | None:
    """Estimate the cost of a program on one thread; `None` where the backend cannot analyse its step."""
    state, t = jax.eval_shape(lambda: program.init(0)), jax.ShapeDtypeStruct((), jnp.int32)
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32)
    lowered = jax.jit(program.step).lower(state, t, learning_rate, program.sees())
    moved = (lowered.cost_analysis() or {}).get("bytes accessed")
    if moved is None:
        return None
    operations = lowered.as_text().count("stablehlo.")
    return Cost(
        compile=COMPILE + COMPILE_OPERATION * operations,
        run=program.steps * (STEP + moved / BANDWIDTH),
    )
