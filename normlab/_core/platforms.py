"""The platform for which a formulation is chosen."""

import jax

__all__ = ["on_accelerator"]


def on_accelerator() -> bool:
    """Check whether JAX computes on a GPU or a TPU by default.

    Formulations give the same numbers to rounding on every platform: the choice is one of speed alone.
    """
    return jax.default_backend() != "cpu"
