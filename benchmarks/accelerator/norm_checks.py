"""Checks of every norm in the registry: output, state and gradients, on inputs that break norms."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks.accelerator.checks import Check, Draw, distance, slope_errors
from benchmarks.accelerator.stage import Row
from normlab import norms
from tests.support import reference, references
from tests.support.fuzz import variables_of

__all__ = ["norm_checks", "special_checks"]

SHAPE = (16, 8, 8, 96)
DATA = "data"
"""Name of the axis of devices."""

TOLERANCE = {"float32": 3e-5, "bfloat16": 1e-2}
OFFSETS = {"float32": [(0.0, 2.0), (1e4, 2.0)], "bfloat16": [(0.0, 2.0), (1e4, 300.0)]}
"""Means and deviations of the inputs. In bfloat16 numbers about 1e4 are 64 apart."""

OPTIONS = {"whiten": ":group_size=8"}
"""Options of norms whose defaults do not fit the inputs."""

GHOST = "batch:ghost_batch_size=5"
"""Ghost batches with a remainder."""

CLIPPED = "batch_renorm:r_max=1.25,d_max=0.0"
"""Batch renorm whose r and d are clipped everywhere: constants also to the differences of the reference."""

UNGUARDED = "online:guard=None"
"""Online norm whose backward pass is known in closed form."""

OWN_BACKWARD: Mapping[str, Callable[..., reference.Result]] = {
    "online": reference.online_vjp,
    "streaming": reference.streaming_vjp,
}
"""Backward passes that are no derivative of the forward pass, on purpose."""

FORWARD_ONLY = ("batch_renorm", "online")
"""Norms with default options whose gradients are compared with other options, above."""


@dataclass(frozen=True)
class Norm:
    """A norm in training, and how it runs.

    Attributes:
        text: As in the registry.
        dtype: Of the input and the output.
        case: `plain`, `masked` with NaN under the mask, or `axis_name`, with the batch over the devices there are.
    """

    text: str
    dtype: str
    case: str = "plain"

    @property
    def spec(self) -> norms.Norm:
        """The norm of the registry."""
        return norms.get(self.text)

    @property
    def columns(self) -> Row:
        """Columns of its rows."""
        return {"norm": self.text, "case": self.case, "dtype": self.dtype}

    @functools.cached_property
    def module(self) -> Any:
        """Its Linen module."""
        options = {"axis_name": DATA} if self.case == "axis_name" else {}
        module = self.spec.linen(train=True, **options)
        return module.clone(dtype=jnp.dtype(self.dtype)) if hasattr(module, "dtype") else module

    @functools.cached_property
    def variables(self) -> Any:
        """Parameters and state, all different from their initial values."""
        return variables_of(self.spec.linen(train=True), jnp.zeros(SHAPE))

    @functools.cached_property
    def mask(self) -> np.ndarray | None:
        """Mask of the positions that count."""
        return np.random.default_rng(2).random((*SHAPE[:-2], 1, 1)) < 0.67 if self.case == "masked" else None

    def draw(self, offset: float, size: float) -> Draw:
        """Draw an input, and the cotangent of the output."""
        rng = np.random.default_rng(1)
        x, dy = offset + size * rng.normal(size=SHAPE), rng.normal(size=SHAPE)
        if self.mask is not None:
            x, dy = np.where(self.mask, x, np.nan), np.where(self.mask, dy, 0)
        arguments = (self.variables, *(jnp.asarray(a, self.dtype) for a in (x, dy)), self.mask)
        return {"offset": offset}, arguments

    def program(self, variables: Any, x: jax.Array, dy: jax.Array, mask: Any) -> Any:
        """Return output, state, and gradients: of variables by collection, and of `x`."""
        state = {"batch_stats": variables.get("batch_stats", {})}
        learned = {name: part for name, part in variables.items() if name not in state}

        def forward(learned: Any, x: jax.Array) -> Any:
            return self.module.apply({**learned, **state}, x, mask=mask, mutable=["batch_stats"])

        y, pull, after = jax.vjp(forward, learned, x, has_aux=True)
        return y, after.get("batch_stats", {}), *pull(dy)

    def spread(self, variables: Any, x: jax.Array, dy: jax.Array, mask: Any) -> Any:
        """Run the program with the batch divided over devices."""
        mesh = Mesh(np.array(jax.devices()[: math.gcd(len(x), jax.device_count())]), (DATA,))
        inputs, outputs = (P(), P(DATA), P(DATA), P()), (P(DATA), P(), P(), P(DATA))
        run = jax.shard_map(self.program, mesh=mesh, in_specs=inputs, out_specs=outputs)
        return run(variables, x, dy, mask)

    def expected(self, at: Mapping[str, np.ndarray]) -> reference.Result:
        """Compute output and state in float64; outputs under the mask are 0."""
        options = {name: value for name, value in self.spec.options.items() if name not in ("use_scale", "use_bias")}
        y, state = references.NORMS[self.spec.name](at["x"], dict(at), self.mask, **options)
        return (y if self.mask is None else np.where(self.mask, y, 0)), state

    def errors(self, outputs: Any, arguments: Any) -> dict[str, float]:
        """Compare outputs of the program."""
        y, after, learned, dx = outputs
        variables, x, dy, _ = arguments
        at = by_name({**variables, "input": {"x": x}})
        dy = np.asarray(dy, np.float64)
        if self.mask is not None:
            y, at["x"] = np.where(self.mask, y, 0), np.where(self.mask, at["x"], 0)
        right, state = self.expected(at)
        largest = float(np.abs(at["x"]).max())
        errors = {"y": distance(y, right)}
        for name, value in after.items():  # a mean may be small beside its numbers, a variance is not
            errors[name] = distance(value, np.asarray(state[name]), largest if "mean" in name else 0.0)
        if self.text in FORWARD_ONLY:
            return errors
        gradients = {"x": dx, **learned.get("params", {})}
        if self.spec.name in OWN_BACKWARD:
            errors |= self.backward_errors(at, dy, {"dx": gradients.pop("x"), **learned[OVERWRITE_WITH_GRADIENT]})
        slopes = slope_errors(gradients, lambda at: float(np.vdot(self.expected(at)[0], dy)), at)
        return errors | {f"d{name}": error for name, error in slopes.items()}

    def backward_errors(
        self, at: Mapping[str, np.ndarray], dy: np.ndarray, found: Mapping[str, Any]
    ) -> dict[str, float]:
        """Compare a backward pass with a state of its own, which averages numbers of the size of the gradient."""
        options = {name: value for name, value in self.spec.options.items() if name != "guard"}
        dx, state = OWN_BACKWARD[self.spec.name](at["x"], dict(at), dy, self.mask, **options)
        right = {"dx": dx, **state}
        largest = float(np.abs(dx).max())
        return {name: distance(value, np.asarray(right[name]), largest) for name, value in found.items()}

    def check(self) -> Check:
        """Return the check of the norm."""
        offsets = OFFSETS[self.dtype] if self.case == "plain" else OFFSETS[self.dtype][:1]
        return Check(
            columns=self.columns,
            program=self.spread if self.case == "axis_name" else self.program,
            draws=[self.draw(*offset) for offset in offsets],
            errors=dataclasses.replace(self).errors,  # without what is cached, to travel to another process
            tolerance=TOLERANCE[self.dtype],
        )


@dataclass(frozen=True)
class Exported(Norm):
    """A norm that was exported with symbolic sizes; its output alone."""

    def program(self, variables: Any, x: jax.Array, dy: jax.Array, mask: Any) -> Any:
        """Export, and call what was exported."""
        sizes = jax.ShapeDtypeStruct(export.symbolic_shape(f"b, h, w, {SHAPE[-1]}"), x.dtype)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
        run = jax.jit(functools.partial(self.module.apply, mutable=["batch_stats"]))
        return export.export(run)(shapes, sizes).call(variables, x)[0]

    def errors(self, outputs: Any, arguments: Any) -> dict[str, float]:
        """Compare the output."""
        at = by_name({**arguments[0], "input": {"x": arguments[1]}})
        return {"y": distance(outputs, self.expected(at)[0])}


def norm_checks(tiny: bool = False) -> Iterator[Check]:
    """Yield the checks of one norm after the other; `tiny` keeps two norms."""
    for name in ("batch", "streaming") if tiny else (*norms.names(), GHOST, CLIPPED, UNGUARDED):
        spec = name + OPTIONS.get(name, "")
        yield from (Norm(spec, dtype).check() for dtype in TOLERANCE)
        if name not in (CLIPPED, UNGUARDED):
            yield Norm(spec, "float32", "masked").check()


def special_checks(tiny: bool = False) -> Iterator[Check]:
    """Yield checks of what few norms have: statistics over devices, and export; `tiny` keeps one of each."""
    of_batch, exported = (("batch",), ("layer",)) if tiny else (("batch", CLIPPED), ("batch", "layer", "group"))
    yield from (Norm(name, "float32", "axis_name").check() for name in of_batch)
    yield from (Exported(name, "float32", "symbolic export").check() for name in exported)


def by_name(variables: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return variables by name in float64, whatever their collection."""
    return {name: np.asarray(value, np.float64) for part in variables.values() for name, value in part.items()}
