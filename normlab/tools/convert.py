"""Replace the norms of a trained model by others, and keep of their variables what the others can use."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, cast

import jax
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

from normlab.errors import BadInput
from normlab.expect import refusal
from normlab.introspect.applied import check_model
from normlab.tools.conversion.linen import convert_linen
from normlab.tools.conversion.moments import new_moments
from normlab.tools.conversion.nnx import convert_nnx, nnx_sites
from normlab.tools.conversion.report import Converted, Report, Row
from normlab.tools.conversion.targets import Target, To, targets
from normlab.tools.select import Where
from normlab.tools.sites import Sites, sites

__all__ = ["Converted", "Report", "Row", "convert", "convert_state"]

State = TypeVar("State")
KEPT = ("epsilon", "momentum", "axis_name", "dtype")
_KEPT = (*KEPT, "affine")


def convert(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    to: To = "normlab",
    *,
    args: tuple[object, ...] = (),
    rngs: Mapping[str, jax.Array] | None = None,
    where: Where = None,
    keep: Collection[str] = KEPT,
    fresh: Literal["raise", "init"] = "raise",
) -> Converted[Any]:
    """Replace the norms of a model by others.

    Between norms of one kind everything is carried: scale, bias, running statistics and options. Batch renorm is of the
    kind of batch norm; it keeps `std = sqrt(var + epsilon)`. Other norms start anew, unless `keep` has `affine`, which
    carries scale and bias. Feature axes, `use_scale`, `use_bias`, `param_dtype`, initializers, the mode and metadata
    such as sharding are always kept.

    Args:
        model: A model of Linen or NNX, which stays as it is.
        variables: Of a Linen model, as from `model.init`; `None` for NNX.
        to: A norm such as `batch_renorm` or `group:num_groups=8`; `flax` or `normlab` for the same norms of that
            library; or a mapping from globs of paths to such.
        args: Inputs of a call of a Linen model; only shapes count.
        rngs: Random streams of this call.
        where: Norms that are replaced: a glob over paths, several of them, or a function of a
            `normlab.tools.sites.Site`; `None` is all norms of activations.
        keep: Options that are kept: `epsilon`, `momentum`, `axis_name` and `dtype`; and `affine`.
        fresh: Whether variables may start anew: `raise` refuses, `init` gives scale 1, bias 0 and statistics 0 and 1.

    Returns:
        The model, its variables, and a report.

    Raises:
        BadInput: If nothing is to be replaced, a norm does not fit, or variables would start anew.

    Example:
        >>> model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
        >>> x = jax.numpy.ones((2, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> converted = convert(model, variables, "batch_renorm", args=(x,))
        >>> print(converted.report.table())
        path      before  after         how      carried                 fresh  dropped
        layers_1  batch   batch_renorm  wrapper  scale, bias, mean, std  step   -
        layers_1: Start with `r_max=1, d_max=0`, then let them grow, as `normlab.norms.Ramp` does.
        >>> converted.model.apply(converted.variables, x).shape
        (2, 4)
    """
    check_model(model)
    _check_options(keep, fresh)
    found = model_sites(model, variables, args, rngs)
    return converted_to(model, variables, found, targets(found, to, where), args=args, keep=keep, fresh=fresh)


def converted_to(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None,
    found: Sites,
    chosen: Mapping[str, Target],
    *,
    args: tuple[object, ...],
    keep: Collection[str] = KEPT,
    fresh: Literal["raise", "init"] = "raise",
) -> Converted[Any]:
    """Replace norms of a model by chosen ones; see `convert`.

    Args:
        model: The model.
        variables: Of a Linen model.
        found: The norms of the model.
        chosen: The new norms, by path.
        args: Inputs of a call of a Linen model.
        keep: See `convert`.
        fresh: See `convert`.
    """
    if isinstance(model, nnx.Module):
        converted: Converted[Any] = convert_nnx(model, found, chosen, keep)
    else:
        converted = convert_linen(model, cast(VariableDict, variables), found, chosen, args, keep)
    if fresh == "raise":
        _check_carried(converted.report)
    return converted


def model_sites(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None,
    args: tuple[object, ...],
    rngs: Mapping[str, jax.Array] | None = None,
) -> Sites:
    """Return the norms of a model; those of NNX without a call."""
    check_model(model)
    if isinstance(model, nnx.Module):
        return nnx_sites(model)
    if variables is not None and not args:
        raise refusal("the inputs of a call of a Linen model", args, "Give them, as in `args=(x,)`; only shapes count.")
    return sites(model, variables, *args, rngs=rngs)


def _check_options(keep: Collection[str], fresh: str) -> None:
    unknown = [name for name in keep if name not in _KEPT] if not isinstance(keep, str) else [keep]
    if unknown:
        raise refusal(f"`keep` to be a list of names among {', '.join(_KEPT)}", unknown[0], "Choose some of them.")
    if fresh not in ("raise", "init"):
        raise refusal("`fresh` to be `raise` or `init`", fresh, "Choose one of them.")


def _check_carried(report: Report) -> None:
    for row in report:
        lost = [name for name in row.fresh if name != "step"]
        if lost:
            raise BadInput(
                f"Expected variables that `{row.after}` takes over from `{row.before}`, got none for {', '.join(lost)} "
                f"of `{row.path}`. Pass `fresh='init'` to start anew; `keep=('affine', ...)` carries scale and bias."
            )


def convert_state(opt_state: State, report: Report) -> State:
    """Return the state of an optimizer for a converted model: moments of parameters that start anew are zero.

    Args:
        opt_state: As from `optimizer.init` for the parameters of the model before: of Linen `variables["params"]`, of
            NNX `nnx.state(model, nnx.Param)`.
        report: Of the conversion.

    Returns:
        The state with moments for the new parameters, and none for those that are no longer there.

    Example:
        >>> import optax
        >>> model, x = nn.BatchNorm(use_running_average=True), jax.numpy.ones((2, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> state = optax.adam(0.1).init(variables["params"])
        >>> converted = convert(model, variables, "rms", args=(x,), fresh="init")
        >>> convert_state(state, converted.report)[0].mu
        {'scale': Array([0., 0., 0.], dtype=float32)}
    """
    return new_moments(opt_state, report)
