"""Do the weights of switchable norm move away from the batch as the batch shrinks (Luo et al., 2019)?

The conv net of the comparison `batch_size` learns handwritten digits for 20 epochs, at the learning rates that this
comparison chose. For each batch size and three seeds, the script prints the shares of instance, layer and batch in the
mean and in the variance, averaged over the three norms: a third each at the start.

    python experiments/switchable_shares.py    # 5 minutes on 2 cores
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from normlab import norms
from normlab.introspect.pure import network
from normlab.models import ConvNet
from normlab.study.data.dataset import digits

RATES = {2: 0.01, 8: 0.1, 32: 0.1, 128: 1.0}
"""Learning rate of each batch size, as `benchmarks/results/batch_size-digits-every-norm.csv` has it."""

EPOCHS, SEEDS = 20, 3


def shares(batch: int, rate: float, seed: int) -> dict[str, np.ndarray]:
    """Train, and return the shares of instance, layer and batch, (norms, 3), by `mean_weight` and `var_weight`."""
    data = digits()
    images, labels = data.inputs, data.labels
    net = network(ConvNet, norms.get("switchable"), images[:2], classes=10)
    steps = len(images) // batch
    optimizer = optax.sgd(optax.cosine_decay_schedule(rate, EPOCHS * steps), momentum=0.9)

    def step(carry: tuple, chosen: Array) -> tuple[tuple, None]:
        params, state, optimized, t = carry

        def objective(logits: Array) -> tuple[Array, None]:
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)[chosen]).mean(), None

        _, gradients, state = net.gradients(objective, params, state, jnp.asarray(images)[chosen], t)
        updates, optimized = optimizer.update(gradients, optimized, params)
        return (optax.apply_updates(params, updates), state, optimized, t + 1), None

    params, state = net.init(seed)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(len(images)), (EPOCHS, 1)), axis=1)
    batches = order[:, : steps * batch].reshape(-1, batch)
    (params, *_), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))(
        (params, state, optimizer.init(params), 0)
    )
    return {
        name: np.stack([np.asarray(jax.nn.softmax(layer[name])) for layer in params.values() if name in layer])
        for name in ("mean_weight", "var_weight")
    }


def main() -> None:
    """Print the table."""
    print("batch  statistic  instance  layer  batch   share of the batch by seed")
    for batch, rate in RATES.items():
        found = [shares(batch, rate, seed) for seed in range(SEEDS)]
        for name in ("mean_weight", "var_weight"):
            of_seeds = np.stack([one[name].mean(0) for one in found])
            instance, layer, of_batch = of_seeds.mean(0)
            seeds = " ".join(f"{share:.3f}" for share in of_seeds[:, 2])
            print(f"{batch:>5}  {name[:-7]:<9}  {instance:8.3f}  {layer:5.3f}  {of_batch:5.3f}   {seeds}")


if __name__ == "__main__":
    main()
