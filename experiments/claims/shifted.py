"""Networks that train on one kind of images and meet another: sources, changes of images, runs for the tools."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import jax
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax import Array
from PIL import Image

from experiments.claims import images, networks
from experiments.claims.images import Images, Part
from experiments.claims.trainer import Budget, Settings, Trained, Tree, best_rate, grid, trainer
from normlab.introspect.pure import Network

AFFINE = {"contrast": (0.3, 0.35), "brightness": (1.0, 0.3)}
"""Factor and summand of changes that are the same for every pixel."""

NOISE, QUALITY = 0.3, 10
"""Standard deviation of the noise on pixels in [0, 1]; quality of JPEG."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network that trains on the source.

    Attributes:
        network: Name, see `networks.described`.
        title: Name for sentences.
        budget: Length of the training.
        rates: Learning rates to choose from.
        side: Height and width of the images.
        crop: Height and width of the centre that is kept before.
    """

    network: str
    title: str
    budget: Budget
    rates: tuple[float, ...] = (0.03, 0.1)
    side: int = 8
    crop: int | None = 20

    @property
    def together(self) -> bool:
        """Report whether runs train together, see `trainer.train`."""
        return networks.dense(self.network)

    def load(self, data: str, data_dir: str | None, examples: int) -> Images:
        """Load the source, pixels in [0, 1], with the first examples for training."""
        found = images.load(data, data_dir, side=self.side, crop=self.crop, standardized=False)
        return Images(
            train=found.train.first(examples),
            validation=found.validation,
            test=found.test,
            classes=found.classes,
            name=found.name,
        )


_SMALL, _LARGE = (
    Budget(steps=800, batch=64, every=800, cosine=True),
    Budget(steps=16_000, batch=128, every=16_000, cosine=True),
)
_SHORT = Budget(steps=2_400, batch=64, every=2_400, cosine=True)
_MIDDLE = Budget(steps=8_000, batch=128, every=8_000, cosine=True)
RECIPES = {
    recipe.network: recipe
    for recipe in (
        Recipe(network="mlp-2", title="MLP 100-100", budget=_SMALL),
        Recipe(network="conv", title="ConvNet 16-16-32", budget=_SMALL),
        Recipe(network="conv-16-32-64", title="ConvNet 16-32-64", budget=_SHORT, side=16, crop=None),
        Recipe(network="conv-32-64-128-128", title="ConvNet 32-64-128-128", budget=_MIDDLE, side=32, crop=None),
        Recipe(network="resnet-20", title="ResNet-20", budget=_LARGE, side=32, crop=None),
    )
}
"""Recipes by the names of their networks."""


def pretrained(
    recipe: Recipe, norm: str, data: Images, seeds: Sequence[int], tuning: Sequence[int], steps: int = 0
) -> tuple[Network, Trained]:
    """Train on the source, at the learning rate that is best on validation images.

    Args:
        recipe: Network and training.
        norm: Norm.
        data: The source.
        seeds: Seeds of the runs.
        tuning: Seeds by which the rate is chosen; runs of them come after the others.
        steps: Updates in place of the recipe's, at the largest rate: a smoke test.
    """
    net = networks.made(recipe.network, norm, data)
    short, steps = bool(steps), steps or recipe.budget.steps
    budget = Budget(steps=steps, batch=recipe.budget.batch, every=steps, cosine=recipe.budget.cosine)
    run, rate = trainer(net, data, budget, together=recipe.together), recipe.rates[-1]
    if not short:
        tried = run(grid(tuning, recipe.rates))
        wrong = Runs.of(net, tried.params, tried.state).errors(data.validation)
        rate = best_rate(wrong.reshape(len(recipe.rates), -1), recipe.rates)
    return net, run(Settings([*seeds, *tuning], rate))


class _Each(nn.Module):
    """Networks with the same layers, one after the other: tools for one network adapt all of them in one program."""

    model: nn.Module
    runs: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Map images (batch, height, width, channels) to logits (batch, runs, classes)."""

        def one(model: nn.Module, carry: tuple[()], x: Array) -> tuple[tuple[()], Array]:
            return carry, model(x, train=train)

        collections = {"params": 0, "batch_stats": 0}
        options = {"in_axes": nn.broadcast, "out_axes": 1, "length": self.runs, "split_rngs": {"params": True}}
        return nn.scan(one, variable_axes=collections, **options)(self.model, (), x)[1]


@dataclass(frozen=True, eq=False)
class Runs:
    """Trained runs of a network as one module with its variables.

    Attributes:
        module: Module that maps images to logits (batch, runs, classes).
        variables: Its variables.
    """

    module: nn.Module
    variables: VariableDict

    @classmethod
    def of(cls, net: Network, params: Tree, state: Tree) -> "Runs":
        """Take parameters and state with a leading axis of runs."""
        assert net.module is not None
        runs = len(jax.tree.leaves(params)[0])
        variables = {name: {"model": tree} for name, tree in {"params": params, **state[0]}.items()}
        return cls(_Each(net.module, runs), variables)

    def errors(self, part: Part) -> np.ndarray:
        """Return the share of wrong classes by running statistics, [runs]."""
        return 1 - self.right(part).mean(0)

    def right(self, part: Part) -> np.ndarray:
        """Return whether classes by running statistics are right, [images, runs]."""
        outputs = np.asarray(self._evaluate(self.variables, part.inputs))
        return outputs.argmax(-1) == part.labels[:, None]

    def errors_by_batch(self, part: Part, n: int) -> np.ndarray:
        """Return the share of wrong classes where batches of `n` images have statistics of their own, [runs]."""
        places = batches(len(part.labels), n)
        outputs = np.asarray(self._in_training(self.variables, part.inputs[places]))
        return wrong(joined(list(outputs), places), part.labels)

    @property
    def count(self) -> int:
        """Number of runs, the leading axis of all variables."""
        return len(jax.tree.leaves(self.variables)[0])

    @cached_property
    def _evaluate(self) -> Callable[[VariableDict, np.ndarray], Array]:
        return jax.jit(lambda variables, x: self.module.apply(variables, x, train=False))

    @cached_property
    def _in_training(self) -> Callable[[VariableDict, np.ndarray], Array]:
        def one(variables: VariableDict, x: Array) -> Array:
            return self.module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

        return jax.jit(lambda variables, xs: jax.lax.map(lambda x: one(variables, x), xs))


def wrong(outputs: Array | np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of wrong classes, [runs], of logits (images, runs, classes)."""
    return (np.asarray(outputs).argmax(-1) != labels[:, None]).mean(0)


def batches(images: int, n: int) -> np.ndarray:
    """Divide images into batches, indices [batches, n]; the last one reaches back to be as large as the others."""
    n = min(n, images)
    starts = np.minimum(np.arange(0, images, n), images - n)
    return starts[:, None] + np.arange(n)


def joined(outputs: Sequence[Array | np.ndarray], places: np.ndarray) -> np.ndarray:
    """Join the outputs of `batches`; images in two batches count as in the later one."""
    first = np.asarray(outputs[0])
    whole = np.empty((places.max() + 1, *first.shape[1:]), first.dtype)
    for output, place in zip(outputs, places, strict=True):
        whole[place] = output
    return whole


def changes(seed: int = 0) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return changes of images (examples, height, width, channels) in [0, 1], by name."""
    noise = np.random.default_rng(seed)
    affine = {name: _affine(*numbers) for name, numbers in AFFINE.items()}
    return {
        **affine,
        "noise": lambda x: (x + NOISE * noise.standard_normal(x.shape)).astype(np.float32),
        "one pixel right": one_pixel_right,
        "blur": blur,
        "JPEG": jpeg,
    }


def one_pixel_right(x: np.ndarray) -> np.ndarray:
    """Move images to the right by a pixel; a black column enters."""
    return np.concatenate([np.zeros_like(x[:, :, :1]), x[:, :, :-1]], axis=2)


def blur(x: np.ndarray) -> np.ndarray:
    """Average each pixel with its neighbours, by 1 2 1 in both directions."""
    for axis in (1, 2):
        padded = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
        a, b, c = (np.take(padded, range(i, i + x.shape[axis]), axis) for i in range(3))
        x = ((a + 2 * b + c) / 4).astype(np.float32)
    return x


def jpeg(x: np.ndarray) -> np.ndarray:
    """Write images as JPEG of low quality, and read them again."""

    def one(image: np.ndarray) -> np.ndarray:
        file, pixels = io.BytesIO(), np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "JPEG", quality=QUALITY)
        return np.asarray(Image.open(file), np.float32).reshape(image.shape) / 255

    return np.stack([one(image) for image in x])


def is_mnist(data: str) -> bool:
    """Report whether data are MNIST, by their name: scikit-learn's digits are the same classes by other writers."""
    return PurePath(data.partition(":")[2]).stem == "mnist"


def shuffled(part: Part, seed: int = 0) -> Part:
    """Shuffle images: stored digits come in turns of the ten classes."""
    order = np.random.default_rng(seed).permutation(len(part.labels))
    return Part(part.inputs[order], part.labels[order])


def whole(data: Images) -> Part:
    """Join all parts."""
    return united(data.train, data.validation, data.test)


def united(*parts: Part) -> Part:
    """Join parts."""
    return Part(np.concatenate([p.inputs for p in parts]), np.concatenate([p.labels for p in parts]))


def _affine(factor: float, summand: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: (factor * x + summand).astype(np.float32)
