"""Examine a model: find its norms, measure them, and report what is wrong."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array
from jax.sharding import Mesh

from normlab import expect
from normlab.doctor.examination import Examination, chosen, pattern
from normlab.doctor.options import Options, Padding, Read, State, Step
from normlab.doctor.patient import Patient
from normlab.doctor.report import Report
from normlab.doctor.skip import Skip
from normlab.doctor.stepping import variables_of
from normlab.doctor.thresholds import Thresholds
from normlab.errors import BadInput, one_line
from normlab.introspect.applied import check_model
from normlab.introspect.calls import Module
from normlab.introspect.modes import Method
from normlab.tools import leaves, replicas
from normlab.tools.batches import Call, default_call

if TYPE_CHECKING:
    import optax

__all__ = ["examine"]


def examine(
    model: Module,
    variables: VariableDict | None = None,
    batches: Iterable[object] = (),
    *,
    call: Call = default_call,
    train: Mapping[str, object] | None = None,
    evaluate: Mapping[str, object] | None = None,
    method: Method = None,
    rngs: Mapping[str, Array] | None = None,
    step: Step | None = None,
    state: State = None,
    read: Read | None = None,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int | None = None,
    padding: Padding | None = None,
    mesh: Mesh | None = None,
    limit: int = 8,
    checks: Collection[str] | None = None,
    ignore: Collection[str] = (),
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> Report:
    """Examine the norms of a model, Flax's own and those of this package; the model stays as it is.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model; `None` takes those in `state`, or checks the structure alone.
        batches: Batches of training data, of which at most `limit` are read. One of `jax.ShapeDtypeStruct` does for
            the structure alone.
        call: `batch -> (args, kwargs)` of the model's call.
        train: Keyword arguments of the call in training; found in the signature where there are some.
        evaluate: Keyword arguments of the call at evaluation, likewise.
        method: The method to be called; `None` is `__call__`.
        rngs: Random streams of the call; `params` and `dropout` unless given.
        step: `(state, batch) -> state`, one step of the optimizer; a tuple's first element is the state. It runs on a
            copy of `state`.
        state: The state that the step is given.
        read: `state -> variables` of a Linen model, or the NNX module; found in the state unless given.
        optimizer: The optimizer, to see whether it shrinks parameters of norms.
        steps: Steps of the whole training.
        padding: `batch -> (batch, positions)` of bools, True where a position is padding.
        mesh: Devices over which the model trains, which bind the names of its axes.
        limit: Batches to read, at most.
        checks: Codes of the checks to make; `None` is all.
        ignore: Codes to leave out, each alone or with a glob of paths, such as `NL206@head*`.
        thresholds: Bounds of the checks.
        seed: Seed of everything random.

    Returns:
        The report: the same for the same input.

    Raises:
        BadInput: If the model is no Flax module, the variables are of another model, a code is unknown, or the model
            cannot be told to train.

    Example:
        >>> import jax
        >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(2)])
        >>> x = jax.random.normal(jax.random.key(1), (16, 4))
        >>> report = examine(model, model.init(jax.random.key(0), x), [x])
        >>> report.ok()
        True
    """
    check_model(model)
    bounds = thresholds or Thresholds()
    wanted, ignored = chosen(checks), [pattern(entry) for entry in ignore]
    options = Options(
        call=call,
        train=train,
        evaluate=evaluate,
        method=method,
        rngs=rngs,
        step=step,
        state=state,
        read=read,
        optimizer=optimizer,
        steps=expect.optional(expect.WHOLE).of("`steps`", steps),
        padding=padding,
        mesh=mesh,
        thresholds=bounds,
        seed=seed,
    )
    patient = _admitted(model, variables, _limited(batches, expect.WHOLE.of("`limit`", limit)), options)
    return Examination(patient, ignored).report(wanted)


def _admitted(model: Module, variables: VariableDict | None, batches: tuple[object, ...], options: Options) -> Patient:
    """Return the patient; variables of replicas are merged."""
    if isinstance(model, nnx.Module) and variables is not None:
        raise BadInput("Expected `variables=None` for an NNX model, which has its own, got some. Leave them out.")
    if (options.step is None) is not (options.state is None):
        raise BadInput("Expected `step` and `state` with each other, got one alone. Give both, or none.")
    if isinstance(model, nn.Module) and variables is None and options.state is not None:
        variables = (options.read or variables_of)(options.state)
    if spread := _spread(Patient(model, None, batches, options), variables):
        variables = replicas.reduce(variables)
    patient = Patient(model, variables, batches, options)
    patient.replicas = spread
    _check_called(patient)
    return patient


def _check_called(patient: Patient) -> None:
    """Refuse a model that cannot be called in either mode; calls that fail at a norm are for the checks to judge.

    Raises:
        BadInput: If a call fails elsewhere.
    """
    for mode in ("training", "evaluation"):
        try:
            getattr(patient, mode)
        except Skip:  # without batches
            return
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(
                f"Expected a model that can be called with these batches in {mode}, got {one_line(error, 200)} Give "
                "`call`, `train`, `evaluate` or `rngs`, as the model needs them."
            ) from error


def _spread(patient: Patient, variables: VariableDict | None) -> dict[str, float]:
    """Return how far replicas are apart, if all variables have one more axis in front than the model makes."""
    if not isinstance(patient.model, nn.Module) or variables is None or not patient.batches:
        return {}
    given = {path: np.shape(leaf) for path, leaf in leaves.by_path(variables).items()}
    if len({shape[:1] for shape in given.values()}) != 1 or () in given.values():
        return {}
    made = {path: np.shape(leaf) for path, leaf in leaves.by_path(patient.known_variables).items()}
    stacked = given.keys() == made.keys() and all(given[path][1:] == made[path] for path in given)
    return replicas.spread(variables) if stacked else {}


def _limited(batches: Iterable[object], limit: int) -> tuple[object, ...]:
    """Return the first batches."""
    if isinstance(batches, Mapping | str | Array | np.ndarray) or not isinstance(batches, Iterable):
        raise BadInput("Expected `batches` to be a list of batches, got one batch. Write `[batch]`.")
    several = batches if isinstance(batches, tuple | list) else ()
    arrays = [one for one in several if isinstance(one, np.ndarray | Array | jax.ShapeDtypeStruct)]
    if len({(len(one.shape), str(one.dtype)) for one in arrays}) > 1:
        raise BadInput(
            "Expected `batches` to be a list of batches that are alike, got arrays of shapes "
            f"{', '.join(str(one.shape) for one in arrays)}, which look like one batch. Write `[(inputs, labels)]`."
        )
    return tuple(itertools.islice(batches, limit))
