"""The options of an examination."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from jax import Array
from jax.sharding import Mesh

from normlab.doctor.thresholds import Thresholds
from normlab.introspect.modes import Method
from normlab.tools.batches import Call, default_call

if TYPE_CHECKING:
    import optax

__all__ = ["Options", "Padding", "Read", "State", "Step"]

State: TypeAlias = Any
"""A state of training, as the user has it."""

Step: TypeAlias = Callable[[State, Any], State]
"""`(state, batch) -> state`, or a tuple whose first element is the state."""

Read: TypeAlias = Callable[[State], Any]
"""`state -> variables` of Linen, or a module of NNX."""

Padding: TypeAlias = Callable[[Any], Array]
"""`batch -> (batch, positions)`, True where a position is padding."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an examination; see `examine`."""

    call: Call = default_call
    train: Mapping[str, object] | None = None
    evaluate: Mapping[str, object] | None = None
    method: Method = None
    rngs: Mapping[str, Array] | None = None
    step: Step | None = None
    state: State = None
    read: Read | None = None
    optimizer: "optax.GradientTransformation | None" = None
    steps: int | None = None
    padding: Padding | None = None
    mesh: Mesh | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    seed: int = 0
