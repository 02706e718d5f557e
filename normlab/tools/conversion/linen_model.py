"""A Linen model inside which other norms take the places of some."""

import inspect
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from flax.linen.module import InterceptorContext
from jax.experimental.xla_metadata import set_xla_metadata

from normlab.errors import BadInput
from normlab.introspect.modes import Method, modes
from normlab.introspect.replaced import Path, Standing, is_replaced, placed, replacing

__all__ = ["Place", "Plan", "WithNorms"]


@dataclass(frozen=True)
class Place:
    """A place in a model where another norm is.

    Attributes:
        path: Path of the place in the model.
        norm: The norm, not bound to variables.
    """

    path: Path
    norm: nn.Module


@dataclass(frozen=True)
class Plan:
    """A model, and the norms that are inside it in the places of others.

    Attributes:
        model: The model.
        places: The places, and the norms that are there.
    """

    model: nn.Module
    places: tuple[Place, ...]


class WithNorms(Standing):
    """A model inside which other norms are in the places of some.

    The paths of variables are those of the model, and so are fields and public methods; `apply`, `init` and `tabulate`
    take a method of the model, too.

    Attributes:
        plan: The model and its norms, which are no submodules of this module: they have its variables.
    """

    plan: Plan

    @property
    def original(self) -> nn.Module:
        """The model."""
        return self.plan.model

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the model."""
        return self._called("__call__", args, kwargs)

    @nn.nowrap
    def __getattr__(self, name: str) -> object:
        """Return a field or a public method of the model."""
        plan = vars(self).get("plan")
        if isinstance(plan, Plan) and not name.startswith("_") and hasattr(plan.model, name):
            found = getattr(plan.model, name)
            method = callable(getattr(type(plan.model), name, None))
            return (lambda *args, **kwargs: self._called(name, args, kwargs)) if method else found
        return super().__getattr__(name)

    @nn.nowrap
    def apply(self, *args: Any, method: Method = None, **kwargs: Any) -> Any:
        """Apply the model, or a method of it; see `flax.linen.Module.apply`."""
        return super().apply(*args, method=_inside(method), **kwargs)

    @nn.nowrap
    def init_with_output(self, *args: Any, method: Method = None, **kwargs: Any) -> Any:
        """Initialize the model by a call, or by a call of a method; see `flax.linen.Module.init_with_output`."""
        return super().init_with_output(*args, method=_inside(method), **kwargs)

    @nn.nowrap
    def _called(self, method: Method, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        """Call a method of the model with the norms in their places."""
        if self.scope is None:
            raise BadInput("Expected a model with variables, got one without. Call it by `apply`, or after `bind`.")
        norms = {(*self.path, *place.path): place.norm for place in self.plan.places}
        model = self.plan.model.clone(parent=self.scope.rewound())
        function = method.__get__(model) if callable(method) else getattr(model, method or "__call__")
        known = set_xla_metadata(normlab_norms=_mark(self.plan))  # `nn.jit` is not to use what other norms had compiled
        with replacing(norms), known, nn.intercept_methods(_interceptor(norms)):
            return function(*args, **kwargs)


def _mark(plan: Plan) -> str:
    """Return a number that is the same in every process, and another for other norms in a model."""
    described = (f"{place.path}{place.norm}" for place in plan.places)
    return str(zlib.crc32(re.sub(" at 0x[0-9a-f]+", "", "".join(described)).encode()))


def _inside(method: Method) -> Callable[..., object] | None:
    """Return a method of the wrapper that calls one of the model."""
    return None if method is None else lambda module, *args, **kwargs: module._called(method, args, kwargs)


@dataclass(frozen=True)
class _Running:
    """A call that is under way."""

    module: nn.Module
    method: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def evaluates(self) -> bool | None:
        """Return whether the call says that the model evaluates; `None` where it says nothing."""
        training = modes(self.module, self.method).train
        bound = inspect.signature(getattr(type(self.module), self.method)).bind(self.module, *self.args, **self.kwargs)
        bound.apply_defaults()
        given = {name: bound.arguments.get(name) for name in training}
        said = [value != training[name] for name, value in given.items() if isinstance(value, bool)]
        return said[0] if said else None


def _interceptor(norms: Mapping[Path, nn.Module]) -> Callable[..., object]:
    """Return an interceptor that runs norms in the places of others."""
    running: list[_Running] = []

    def intercept(
        call: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        module, path = context.module, context.module.path
        if context.method_name == "__call__" and path in norms and is_replaced(path):
            new = norms[path].clone(parent=module.scope)
            with placed(path):
                given = _arguments(module, args, kwargs)
                return new(given.pop("x"), **_taken(new, given, running, "/".join(path)))
        running.append(_Running(module, context.method_name, args, kwargs))
        try:
            return call(*args, **kwargs)
        finally:
            running.pop()

    return intercept


def _arguments(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of a call of a norm by name, the first as `x`, and the mode that the norm has."""
    bound = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    (_, _), (_, x), *others = bound.items()
    flat: dict[str, object] = {"x": x, "use_running_average": getattr(module, "use_running_average", None)}
    for name, value in others:
        flat |= value if isinstance(value, dict) else {name: value} if value is not None else {}
    return flat


def _taken(new: nn.Module, given: Mapping[str, object], running: Sequence[_Running], path: str) -> dict[str, object]:
    """Return the arguments that a norm takes from the call of the one before it.

    Raises:
        BadInput: If the norm cannot know its mode, or does not take an array of the call.
    """
    names = inspect.signature(type(new).__call__).parameters
    lost = [name for name, value in given.items() if name not in names and isinstance(value, jax.Array)]
    if lost:
        raise BadInput(
            f"Expected norms that take `{lost[0]}` of their calls, `{path}` would be a `{type(new).__name__}`, which "
            "does not. Leave it out by `where=`."
        )
    taken = {name: value for name, value in given.items() if name in names and value is not None}
    if "use_running_average" in names and "use_running_average" not in taken:
        taken["use_running_average"] = _told(running, path)
    return taken


def _told(running: Sequence[_Running], path: str) -> bool:
    """Return whether the calls around a norm say that the model evaluates, the nearest first."""
    for one in reversed(running):
        if (said := one.evaluates()) is not None:
            return said
    raise BadInput(
        f"Expected to know whether `{path}` trains, got no `train` or the like in the calls around it. Let the call of "
        "the model or of a block take `train`."
    )
