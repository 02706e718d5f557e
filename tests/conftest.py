"""Eight virtual CPU devices, and a strict JAX for the tests of the norms."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # unlike XLA_FLAGS, not inherited by the processes that studies start


@pytest.fixture
def strict() -> Iterator[None]:
    """Let no dtype or rank be promoted unseen."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
