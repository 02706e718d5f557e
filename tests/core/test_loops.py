import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax

from normlab import functional
from normlab._core import reduction

SHAPE = (16, 64, 64)
NORMS = {
    "batch": lambda x: functional.batch_norm(x)[0],
    "instance": functional.instance_norm,
    "layer": functional.layer_norm,
}


def drawn() -> Array:
    return jnp.asarray(np.random.default_rng(0).normal(3, 2, SHAPE), jnp.float32)


@pytest.mark.parametrize("norm", NORMS)
def test_a_loop_does_not_copy_its_input(norm: str) -> None:
    loop = jax.jit(lambda x: lax.fori_loop(0, 20, lambda _, x: NORMS[norm](x), x))
    steps, _, entry = (loop.lower(drawn()).compile().as_text() or "").partition("ENTRY")
    copy = r"f32\[16,64,64\]\S* copy\("
    assert re.search(copy, entry)
    assert not re.search(copy, steps)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("first", [0.0, -0.0, 1e-40, 1e30, np.inf, -np.inf, np.nan])
def test_writing_members_to_memory_keeps_all_bits(norm: str, first: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn().at[0].set(first)
    written = jax.jit(lambda x: NORMS[norm](x))(x)
    monkeypatch.setattr(reduction, "_in_memory", lambda x: x)
    assert written.tobytes() == jax.jit(lambda x: NORMS[norm](x))(x).tobytes()
