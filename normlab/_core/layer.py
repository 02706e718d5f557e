"""A norm with its options and without Flax: the base of all layers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import ArrayLike, DTypeLike

from normlab._core.checks import check_real, check_where
from normlab._core.dtypes import output_dtype
from normlab._core.modulation import modulated, separated
from normlab._core.reduction import canonical_axes

State = Mapping[str, Array]
"""Arrays by the names of Flax's variables."""

Parameters = Mapping[str, Array | None]
"""Parameters by name; `None`, as no entry, is none."""


@dataclass(frozen=True)
class Layer(ABC):
    """A norm with its options: a value that the Linen and the NNX module of the norm both run.

    A module makes its layer from its own attributes of the same names. State is known by name alone; the modules check
    that no name is missing and none is unknown. What is here is a norm without state that has no parameters but `scale`
    and `bias`.

    Attributes:
        feature_option: Name of the attribute that has the feature axes.
        parameters: Names of parameters that are neither `scale` nor `bias`.
        switches: Names of options that say whether one of `parameters` is there, by its name.
        affine_sets: Name of the attribute that says how many sets of `scale` and `bias` there are, along a first axis
            of theirs; 0 is a single one without such an axis.
        stateful: Whether there is state.
        gradient_state_names: Names of the state whose gradient is its new value.
        activates: Whether `activated` follows scale and bias.
    """

    feature_option: ClassVar[str] = "feature_axes"
    parameters: ClassVar[Sequence[str]] = ()
    switches: ClassVar[Mapping[str, str]] = {}
    affine_sets: ClassVar[str] = ""
    stateful: ClassVar[bool] = False
    gradient_state_names: ClassVar[Sequence[str]] = ()
    activates: ClassVar[bool] = False

    def parameter(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return the initial value of one of `parameters`, for features of `shape`."""
        raise KeyError(name)

    def affine_initializer(self, name: str, given: Initializer) -> Initializer:
        """Return the initializer of `scale` or `bias` by the one that the module has."""
        return given

    def parameter_of(self, ndim: int, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return `parameter` for inputs of a known rank, on which few depend."""
        return self.parameter(name, shape, dtype)

    def names(self, train: bool) -> tuple[Sequence[str], Sequence[str]]:
        """Return names of the state that the forward pass changes, and those that may be missing or in excess."""
        return (), ()

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return the state at the start, for features of `shape`."""
        return {}

    def gradient_state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return the state at the start whose gradient is its new value."""
        return {}

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm and the mode to run while a module is initialized, where no mapped axis is bound."""
        return self, train

    @abstractmethod
    def apply(
        self,
        x: Array,
        parameters: Parameters,
        state: State,
        gradient_state: State,
        *,
        features: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Normalize `x`.

        Args:
            x: Activations, of a real dtype.
            parameters: By name, and what a call gives beside `x`; `scale` and `bias` have the shape of the features,
                after an axis of `affine_sets` where there is one.
            state: By `names`.
            gradient_state: By `gradient_state_names`; may be empty where `train` is False.
            features: Feature axes, canonical.
            train: Whether the statistics of `x` count.
            mask: True where an element counts, broadcastable to `x`.

        Returns:
            The output, in the dtype of `x` or wider, and the state after it: `state` itself where nothing changes.
        """

    def activated(self, y: Array, parameters: Parameters, features: tuple[int, ...]) -> Array:
        """Return the activation of the output after every scale and bias, of a norm that `activates`."""
        return y


def run(
    layer: Layer,
    x: ArrayLike,
    where: Array | None,
    scale: Array | None = None,
    bias: Array | None = None,
    **parameters: Array | None,
) -> Array:
    """Run a norm without state as a function of arrays.

    Args:
        layer: The norm.
        x: Activations.
        where: True where an element counts, broadcastable to `x`.
        scale: Gain for each feature; for each example and feature; or broadcastable to `x`.
        bias: Shift of the same kind.
        **parameters: The norm's own, by name.

    Returns:
        The output, with the shape and dtype of `x` (float32 for whole numbers).
    """
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    features = canonical_axes(getattr(layer, layer.feature_option), x.ndim, layer.feature_option)
    own, by = separated(scale, bias, x.shape, features)
    y, _ = layer.apply(x, own | parameters, {}, {}, features=features, train=True, mask=where)
    y = modulated(y, by, features, where)
    return (layer.activated(y, parameters, features) if layer.activates else y).astype(output_dtype(x))
