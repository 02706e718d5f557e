"""Models that `jax.vmap` stacks, such as the runs that an accelerator trains together.

An operation that is fast for one model may be slow for many at once. Under `jax.vmap(..., axis_name=AXIS)` it can ask.
"""

from jax import lax

__all__ = ["AXIS", "stacked"]

AXIS = "models"
"""Name of the axis along which models are stacked."""


def stacked() -> bool:
    """Return whether several models are traced at once.

    >>> import jax
    >>> jax.vmap(lambda x: x + stacked(), axis_name=AXIS)(jax.numpy.zeros(2)).tolist()
    [1.0, 1.0]
    """
    try:
        return lax.axis_size(AXIS) > 1
    except NameError:  # outside of such a `vmap`
        return False
