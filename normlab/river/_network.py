"""A network in training that makes room for new inputs and outputs, all it has learned staying in place."""

import functools
import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normlab import norms
from normlab.introspect.pure import network
from normlab.models.mlp import MLP

FORBIDDEN = -1e9
"""The output of a class that has not been seen: finite, so that losses and their gradients stay so."""

SMALL = 256
"""Arrays of at most as many numbers travel together: each array of a call costs microseconds, however small."""

Leaves = list[Any]


class Recipe(NamedTuple):
    """What a network is made from; two that are equal share their compiled programs.

    Attributes:
        model: `model(norm, outputs=k)`, see `normlab.introspect.pure.network`; it is also given `inputs` where it takes
            them. `None` is a multilayer perceptron with two hidden layers of 64.
        norm: For the model.
        optimizer: Made from a learning rate.
        learning_rate: For the optimizer.
        loss: `(outputs, targets) -> number, or one for each example`.
        classify: Whether outputs are logits of classes, of which some may not have been seen.
    """

    model: Callable[..., Any] | None
    norm: str | norms.Norm
    optimizer: Callable[[float], optax.GradientTransformation]
    learning_rate: float
    loss: Callable[[Any, Any], Any]
    classify: bool


class Programs(NamedTuple):
    """A network as functions of its state, which is packed into few arrays.

    Attributes:
        init: `seed -> packed`.
        learn: `(packed, inputs, targets, known, weights) -> packed`; what it is given is used up. The weights of the
            examples, `None` where each counts once, multiply their losses.
        predict: `(packed, inputs) -> outputs`.
        packing: How the state is packed.
    """

    init: Callable[[int], Leaves]
    learn: Callable[[Leaves, np.ndarray, np.ndarray, jax.Array, np.ndarray | None], Leaves]
    predict: Callable[[Leaves, np.ndarray], jax.Array]
    packing: "Packing"


class State(NamedTuple):
    """State of a network. Saved files contain the names of the fields.

    Attributes:
        params: Parameters that the optimizer trains.
        rest: Model state; see `normlab.introspect.pure.Network`.
        moments: State of the optimizer.
        steps: Updates so far.
    """

    params: Any
    rest: Any
    moments: Any
    steps: Any


class Packing:
    """The leaves of a tree in few arrays: large ones alone, small ones of the same dtype behind each other.

    Attributes:
        shapes: Shape and dtype of each leaf, by its place in the tree.
    """

    def __init__(self, tree: Any) -> None:
        self.shapes = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        self._tree = jax.tree.structure(tree)
        together: dict[Any, list[int]] = {}
        for i, leaf in enumerate(self.shapes.values()):
            together.setdefault(leaf.dtype if leaf.size <= SMALL else i, []).append(i)
        self._together = list(together.values())

    def pack(self, tree: Any) -> Leaves:
        """Pack a tree."""
        leaves = jax.tree.leaves(tree)
        join = np.concatenate if isinstance(leaves[0], np.ndarray) else jnp.concatenate
        groups = [[leaves[i] for i in places] for places in self._together]
        return [group[0] if len(group) == 1 else join([leaf.ravel() for leaf in group]) for group in groups]

    def leaves(self, packed: Sequence[Any]) -> Leaves:
        """Return the leaves of the tree that was packed."""
        shapes, leaves = list(self.shapes.values()), {}
        for places, array in zip(self._together, packed, strict=True):
            ends = np.cumsum([shapes[i].size for i in places])
            for i, end in zip(places, ends, strict=True):
                leaves[i] = array.ravel()[end - shapes[i].size : end].reshape(shapes[i].shape)
        return [leaves[i] for i in range(len(shapes))]

    def unpack(self, packed: Sequence[Any]) -> Any:
        """Return the tree that was packed."""
        return jax.tree.unflatten(self._tree, self.leaves(packed))


@functools.lru_cache(maxsize=32)
def programs(recipe: Recipe, inputs: int, outputs: int) -> Programs:
    """Make a network of this many inputs and outputs; shared between models of one recipe, so compiled once."""
    net = network(_model(recipe.model, inputs, outputs), norms.get(recipe.norm), np.zeros((1, inputs), np.float32))
    optimizer = recipe.optimizer(recipe.learning_rate)

    def start(seed: int) -> State:
        params, model_state = net.init(seed)
        return State(params, model_state, optimizer.init(params), np.int32(0))

    packing = Packing(jax.eval_shape(lambda: start(0)))

    def init(seed: int) -> Leaves:
        return packing.pack(jax.tree.map(np.array, start(seed)))  # copies: leaves that share memory cannot be donated

    def learn(packed: Leaves, inputs: Any, targets: Any, known: Any, weights: Any) -> Leaves:
        state: State = packing.unpack(packed)

        def objective(outputs: Any) -> tuple[jax.Array, None]:
            outputs = _of_shape(outputs, (len(targets), width))
            if recipe.classify:
                outputs = jnp.where(jnp.arange(width) < known, outputs, FORBIDDEN)
            losses = recipe.loss(outputs, targets)
            return jnp.mean(losses if weights is None else _weighted(losses, weights)), None

        _, gradients, model_state = net.gradients(objective, state.params, state.rest, inputs, state.steps)
        updates, opt_state = optimizer.update(gradients, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        return packing.pack(State(params, model_state, opt_state, state.steps + 1))

    def predict(packed: Leaves, inputs: Any) -> jax.Array:
        state: State = packing.unpack(packed)
        return _of_shape(net.evaluate(state.params, state.rest, inputs), (len(inputs), width))

    width = outputs
    return Programs(init, jax.jit(learn, donate_argnums=0), jax.jit(predict), packing)


class Learned:
    """What a network has learned, and what its inputs and outputs stand for.

    Attributes:
        recipe: What it is made from.
        seed: Of the initial weights.
        features: The place of each among the inputs.
        targets: The place of each class among the outputs; nothing where the output is a number.
        inputs: For how many features there is room.
        outputs: For how many classes there is; 1 for a number.
        packed: The state; see `Programs`.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        features: Iterable[Hashable],
        targets: Iterable[Any],
        room: tuple[int, int],
        packed: Leaves | None = None,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.features = {name: i for i, name in enumerate(features)}
        self.targets: dict[Any, int] = {name: i for i, name in enumerate(targets)}
        self.inputs, self.outputs = room
        self._link()
        self.packed = self._programs.init(seed) if packed is None else packed

    def _link(self) -> None:
        """Fetch what is not part of what was learned."""
        self._programs = programs(self.recipe, self.inputs, self.outputs)
        self._known = jnp.int32(len(self.targets))

    def with_room(self, features: Iterable[Hashable], targets: Iterable[Hashable]) -> "Learned":
        """Add what is new among features and targets; where there is no room for it, make twice as much.

        Features of one example have no order, so that theirs must not matter.
        """
        more = sorted(set(features) - self.features.keys(), key=repr)
        others = [target for target in dict.fromkeys(targets) if target not in self.targets]
        if not more and not others:
            return self
        every = [*self.features, *more], [*self.targets, *others]
        room = _room(len(every[0]), self.inputs), _room(len(every[1]), self.outputs)
        if room == (self.inputs, self.outputs):
            return Learned(self.recipe, self.seed, *every, room, self.packed)
        grown = Learned(self.recipe, self.seed, *every, room)
        grown._pack(_pasted(self.arrays(), grown.arrays()))
        return grown

    def learn(self, inputs: np.ndarray, targets: Sequence[Any], weights: Sequence[float]) -> None:
        """Take one step; where the network cannot be traced, nothing has changed."""
        if self.recipe.classify:
            aims = np.array([self.targets[target] for target in targets], np.int32)
        else:
            aims = np.array(targets, np.float32)
        counts = None if all(weight == 1.0 for weight in weights) else np.array(weights, np.float32)
        self.packed = self._programs.learn(self.packed, inputs, aims, self._known, counts)

    def predict(self, inputs: np.ndarray) -> list[list[float]]:
        """Outputs of each example for what is known; few numbers of examples are compiled, the rest filled up.

        Raises:
            ValueError: If one is not finite.
        """
        n = len(inputs)
        if more := (1 << max(n - 1, 0).bit_length()) - n:
            inputs = np.concatenate([inputs, np.zeros((more, inputs.shape[1]), np.float32)])
        found = np.asarray(self._programs.predict(self.packed, inputs))[:n, : len(self.targets) or 1].tolist()
        if not all(math.isfinite(sum(row)) for row in found):
            raise ValueError(
                "Expected finite outputs, got some that are not: the model has diverged. Scale features before it, as "
                "in `preprocessing.StandardScaler() | model`, or lower `learning_rate`, and begin anew."
            )
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all arrays of the state, by their place in it."""
        packing = self._programs.packing
        leaves = packing.leaves([np.array(array) for array in self.packed])
        return dict(zip(packing.shapes, leaves, strict=True))

    def restore(self, arrays: Mapping[str, np.ndarray], origin: str) -> None:
        """Take the leaves from elsewhere.

        Raises:
            ValueError: If they are not those of this network.
        """
        shapes = self._programs.packing.shapes
        for name in (*shapes, *arrays):
            if name not in shapes or name not in arrays:
                where = "the file" if name in arrays else "the network"
                raise ValueError(f"Expected `model` to be that of `{origin}`, got another: only {where} has {name}.")
        for name, leaf in shapes.items():
            found = arrays[name]
            if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(
                    f"Expected `model` to be that of `{origin}`, where {name} has shape {found.shape} ({found.dtype}), "
                    f"got {leaf.shape} ({leaf.dtype})."
                )
        if arrays[".steps"] < 0:
            raise ValueError(f"Expected updates to be counted from 0 in `{origin}`, got {arrays['.steps']}.")
        self._pack(arrays)

    def _pack(self, arrays: Mapping[str, np.ndarray]) -> None:
        packing = self._programs.packing
        self.packed = packing.pack([arrays[name] for name in packing.shapes])

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but compiled programs, arrays as NumPy's."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_programs", "_known")}
        return kept | {"packed": [np.array(array) for array in self.packed]}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        vars(self).update(kept)
        self._link()


def _room(needed: int, there: int) -> int:
    return there if needed <= there else max(needed, 2 * there)


def _pasted(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """New arrays, each with the old one in its first places."""
    for name in sorted(old.keys() ^ new.keys()):
        raise ValueError(f"Expected `model` to have the same arrays at every width, got {name} at one width only.")
    for name, array in new.items():
        before = old[name].shape
        if len(before) != array.ndim or any(a > b for a, b in zip(before, array.shape, strict=True)):
            raise ValueError(
                f"Expected arrays of `model` to grow with its inputs and outputs, got {name} of shape {array.shape} "
                f"after {before}."
            )
        array[tuple(map(slice, before))] = old[name]
    return new


def _of_shape(outputs: Any, shape: tuple[int, int]) -> jax.Array:
    """Check the outputs of a model; numbers may come without an axis of their own.

    Raises:
        ValueError: When traced, if they are of another shape.
    """
    found = jnp.shape(outputs)
    if found == shape or (shape[1] == 1 and found == shape[:1]):
        return outputs.reshape(shape)
    raise ValueError(
        f"Expected `model(norm, outputs={shape[1]})` to give outputs of shape {shape} for {shape[0]} examples, got "
        f"{found}."
    )


def _weighted(losses: Any, weights: jax.Array) -> jax.Array:
    """The loss of each example times its weight.

    Raises:
        ValueError: When traced, if there is one loss for several examples.
    """
    if jnp.ndim(losses) == 0 and len(weights) > 1:
        raise ValueError(
            f"Expected `loss` to give a number for each of {len(weights)} examples, which have weights, got one number "
            "for all. Leave out its mean, or the weights."
        )
    return jnp.reshape(losses, (len(weights), -1)) * weights[:, None]


def _model(model: Callable[..., Any] | None, inputs: int, outputs: int) -> Callable[..., Any]:
    if model is None:
        return functools.partial(MLP, hidden=(64, 64), classes=outputs)
    return functools.partial(model, outputs=outputs, **({"inputs": inputs} if _takes_inputs(model) else {}))


def _takes_inputs(model: Callable[..., Any]) -> bool:
    while isinstance(model, functools.partial):
        model = model.func
    made = model.__init__ if isinstance(model, type) else model  # Flax's metaclass hides the arguments of classes
    return "inputs" in inspect.signature(made).parameters
