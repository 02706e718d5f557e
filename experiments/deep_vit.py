"""Does a deep ViT train without a warm-up of the learning rate, by the place of its layer norms (Kim et al., 2025)?

A ViT of 24 layers (width 192, patches of 8) learns CIFAR-10 with AdamW at a constant learning rate. For each place and
rate, the script prints the training loss over the last fifth of the updates: that of guessing is log(10) = 2.30. At the
best rate of each place it trains further seeds, and prints the variance of the residual stream layer by layer.

    python experiments/deep_vit.py --data-dir DIR                     # 20 minutes on 2 cores
    python experiments/deep_vit.py --data digits --depth 2 --steps 5  # a minute: shows that it works
"""

import argparse
from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.claims import images
from normlab import norms
from normlab.errors import BadInput
from normlab.introspect.pure import Network, network
from normlab.models import ViTTiny
from normlab.models.transformer import OBSERVED, Placement

PLACES: tuple[Placement, ...] = ("post", "pre", "peri")
RATES = (3e-4, 1e-3, 3e-3)
BATCH, WEIGHT_DECAY = 32, 0.05


def trainer(net: Network, part: images.Part, steps: int) -> Callable[[float, int], tuple[np.ndarray, dict]]:
    """Return `(rate, seed) -> (loss of each batch, parameters)`, which trains at a constant rate; one program."""
    inputs, labels = jnp.asarray(part.inputs), jnp.asarray(part.labels)

    @jax.jit
    def scanned(params: dict, state: tuple, batches: Array, rate: Array) -> tuple[Array, dict]:
        optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)

        def step(carry: tuple, chosen: Array) -> tuple[tuple, Array]:
            params, state, optimized, t = carry

            def objective(logits: Array) -> tuple[Array, None]:
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean(), None

            (loss, _), gradients, state = net.gradients(objective, params, state, inputs[chosen], t)
            updates, optimized = optimizer.update(gradients, optimized, params)
            return (optax.apply_updates(params, updates), state, optimized, t + 1), loss

        (params, *_), losses = jax.lax.scan(step, (params, state, optimizer.init(params), 0), batches)
        return losses, params

    def trained(rate: float, seed: int) -> tuple[np.ndarray, dict]:
        batches = np.random.default_rng(seed).integers(len(labels), size=(steps, BATCH))
        losses, params = scanned(*net.init(seed), batches, jnp.float32(rate))
        return np.asarray(losses), params

    return trained


def variances(net: Network, params: dict, inputs: np.ndarray) -> np.ndarray:
    """Return the variance of the residual stream before the first layer and after each, [layers + 1]."""
    _, found = net.module.apply({"params": params}, inputs, train=False, mutable=[OBSERVED])
    layers = [found[OBSERVED][f"layer_{i}"]["variance"] for i in range(len(found[OBSERVED]))]
    return np.array([layers[0][0], *(layer[1] for layer in layers)])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tfds:cifar10", help="images, as in `normlab run --data`")
    parser.add_argument("--data-dir", help="folder of TensorFlow Datasets")
    parser.add_argument("--depth", type=int, default=24, help="layers")
    parser.add_argument("--steps", type=int, default=100, help="updates of a run")
    parser.add_argument("--seeds", type=int, default=3, help="runs at the best rate")
    parser.add_argument("--places", nargs="+", choices=get_args(Placement), default=PLACES, metavar="PLACE")
    args = parser.parse_args()
    if (least := min(args.depth, args.steps, args.seeds)) < 1:
        parser.error(f"Expected `--depth`, `--steps` and `--seeds` to be at least 1, got {least}.")
    try:
        found = images.load(args.data, args.data_dir, side=32)
    except BadInput as error:
        parser.error(str(error))
    last = -(-args.steps // 5)
    print(f"{found.name}, {args.depth} layers, {args.steps} updates of {BATCH} images, layer norm")
    for place in args.places:
        fields = {"classes": found.classes, "patch": 8, "depth": args.depth, "placement": place}
        net = network(ViTTiny, norms.get("layer"), found.train.inputs[:2], **fields)
        trained = trainer(net, found.train, args.steps)
        losses = {rate: trained(rate, 0)[0][-last:].mean() for rate in RATES}
        print(f"{place:5} loss by rate   " + "  ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items()))
        best = min(losses, key=lambda rate: np.nan_to_num(losses[rate], nan=np.inf))
        runs = [trained(best, seed) for seed in range(1, args.seeds + 1)]
        print(f"{place:5} other seeds    " + "  ".join(f"{run[-last:].mean():.3f}" for run, _ in runs), flush=True)
        by_layer = np.mean([variances(net, params, found.test.inputs[:64]) for _, params in runs], axis=0)
        print(f"{place:5} variance by layer " + " ".join(f"{value:.3g}" for value in by_layer), flush=True)


if __name__ == "__main__":
    main()
