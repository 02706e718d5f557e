"""Why does batch norm break when two examples share statistics?

The script draws one feature of a dense layer from a normal distribution and applies batch norm as in training and at
inference, to batches of n. For each n, it prints over 100,000 batches:

- `kept`: the correlation between a value and its normalized value in training. The rest is noise from other examples.
- `at +-1`: the share of normalized values within 0.01 of 1 or -1. At n = 2 nearly all are: only the order is left.
- `gap`: the mean distance between the outputs of an example in training and at inference, in standard deviations.
- `running var`: the limit of the running variance, biased as in Flax, and unbiased; the truth is 1.

    python experiments/two_examples.py
"""

import jax
import jax.numpy as jnp

from normlab.functional import batch_norm, normalize

BATCHES = 100_000


def study(n: int, key: jax.Array) -> dict[str, float]:
    """Normalize `BATCHES` batches of `n` draws, with their own statistics and with the true ones."""
    x = jax.random.normal(key, (BATCHES, n, 1))
    training, moments = jax.vmap(batch_norm)(x)
    inference = normalize(x, jnp.zeros(1), jnp.ones(1))
    return {
        "kept": float(jnp.corrcoef(x.ravel(), training.ravel())[0, 1]),
        "at +-1": float((jnp.abs(jnp.abs(training) - 1) < 0.01).mean()),
        "gap": float(jnp.abs(training - inference).mean()),
        "running var, biased": float(moments.var.mean()),
        "running var, unbiased": float(moments.unbiased_var.mean()),
    }


def main() -> None:
    """Print the table."""
    rows = {n: study(n, jax.random.key(n)) for n in (2, 3, 4, 8, 16, 32, 128)}
    print(f"{'n':>4}" + "".join(f"{name:>24}" for name in rows[2]))
    for n, row in rows.items():
        print(f"{n:>4}" + "".join(f"{value:>24.3f}" for value in row.values()))
    two, eight = rows[2], rows[8]
    print(
        f"\nWith two examples, {two['at +-1']:.0%} of the values are 1 or -1: a feature of a dense layer keeps only "
        f"its order, {two['gap']:.2f} standard deviations from the output at inference.\nWith eight, the "
        f"correlation with the input is {eight['kept']:.2f} and the gap {eight['gap']:.2f}. Convolutions also average "
        "over positions, so their n is larger than the batch."
    )


if __name__ == "__main__":
    main()
