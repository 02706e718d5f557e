"""Defaults of norms that depend on the length of training."""

from normlab import norms
from normlab.norms import Ramp


def averages(norm: str, memory: int, batch_size: int) -> dict[str, float]:
    """Return the options by which the running statistics of a norm remember a number of examples.

    Args:
        norm: Name of the norm; a norm without running statistics gets no options.
        memory: Number of examples; older ones weigh less than 1 / e.
        batch_size: Examples per update.
    """
    seen = {"batch": batch_size, "example": 1, "": 0}[norms.get(norm).entry.averages]
    return {"momentum": max(0.0, 1 - seen / memory)} if seen else {}


def ramps_over(steps: int) -> dict[str, Ramp | bool]:
    """Return the limits of batch renorm, which open between 10 % and 35 % of the updates."""
    begin = round(0.1 * steps)
    end = max(begin + 1, round(0.35 * steps))
    return {
        "r_max": Ramp(1.0, 3.0, begin, end),
        "d_max": Ramp(0.0, 5.0, begin, end),
        "initialize_from_first_batch": True,
    }
