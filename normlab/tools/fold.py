"""Fold batch norms that evaluate by running statistics into the layers around them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import jax
from flax.typing import VariableDict

from normlab.expect import POSITIVE, refusal
from normlab.introspect.calls import Module
from normlab.tools.folding.calls import evaluates
from normlab.tools.folding.layouts import is_known
from normlab.tools.folding.network import Network
from normlab.tools.folding.notes import notes_on
from normlab.tools.folding.plan import Decision, Form, Planner
from normlab.tools.folding.reasons import FOLDED
from normlab.tools.folding.replacement import in_training
from normlab.tools.folding.report import FoldError, FoldReport, FoldRow, How
from normlab.tools.folding.shift import Shift
from normlab.tools.folding.target import Target, Variables, called, target_of
from normlab.tools.folding.values import Values, new_values
from normlab.tools.folding.verify import Comparison, compare, default_tolerance, first_bad
from normlab.tools.select import Where, select
from normlab.tools.sites import Site

__all__ = ["FoldError", "Folded", "How", "FoldReport", "FoldRow", "Shift", "fold"]


@dataclass(frozen=True, eq=False)
class Folded:
    """A model whose batch norms are in its layers; called with inputs, it evaluates, also in `jax.jit`.

    Attributes:
        model: The model. That of Linen has the paths of the model before, and runs no norm that was folded; that of NNX
            is a copy.
        variables: Its variables: those of a Linen model, or the state of a model of NNX.
        report: A row for each norm: where it went, and why not.
        difference: Largest difference of the outputs from those before; `None` without a check.
        options: Keywords of a call, such as `{"train": False}`.
    """

    model: Module
    variables: Variables
    report: FoldReport
    difference: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def apply(self, variables: Variables, *args: object, **kwargs: object) -> object:
        """Call the model with variables; keywords that say the mode need not be given."""
        return called(self.model, variables, args, {**self.options, **kwargs})

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the model with its variables."""
        return self.apply(self.variables, *args, **kwargs)


def fold(
    model: Module,
    variables: VariableDict | None,
    *args: object,
    where: Where = None,
    form: Form = "model",
    follow: bool = True,
    check: bool = True,
    tolerance: float | None = None,
    evaluate: Mapping[str, object] | None = None,
    **kwargs: object,
) -> Folded:
    """Fold batch norms into the layers before them, or behind them, for a model that only evaluates.

    With a = scale / sqrt(var + epsilon) and c = bias - mean * a, the layer before takes `kernel * a` and
    `bias * a + c`. If another operation is before the norm and a layer right behind it, this layer takes them on its
    input axis. A norm between other operations becomes one multiplication and one addition. The arithmetic is in
    float64.

    Args:
        model: A module of Linen or NNX; it stays as it is, as its variables do.
        variables: Variables of a Linen model; `None` for NNX.
        *args: Inputs of a call; with `check=False` their shapes are enough.
        where: Norms to be folded: a glob over paths, several of them, or a function of a site; `None` is all.
        form: `model`: folded norms run no more. `variables`: the model stays as it is, and the norms add a shift.
        follow: Whether a norm may go into the layer behind it.
        check: Whether the outputs for `args` are compared with those before.
        tolerance: Largest difference, in units of the largest output or of 1. The default is 1e-5; 5e-2 where
            activations are in half precision, 1e-12 where all are float64.
        evaluate: Keywords of the call that say that the model evaluates; found in its signature unless given.
        **kwargs: Other keywords of the call; also `method`, and in Linen `rngs`.

    Returns:
        The model, its variables, a report on each norm, and the difference of the outputs.

    Raises:
        BadInput: If the model trains, or an argument is of another kind.
        FoldError: If the outputs differ and no norm is the cause.

    Example:
        >>> import numpy as np
        >>> from flax import linen as nn
        >>> net, x = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.relu]), np.ones((2, 4))
        >>> folded = fold(net, net.init(jax.random.key(0), x), x)
        >>> print(folded.report)
        path      into      how       reason
        layers_1  layers_0  identity
        >>> jax.tree.map(np.shape, folded.variables)
        {'params': {'layers_0': {'bias': (3,), 'kernel': (4, 3)}}}

    References:
        Jacob et al. Quantization and Training of Neural Networks. CVPR 2018. https://arxiv.org/abs/1712.05877
    """
    if form not in ("model", "variables"):
        raise refusal("`form` to be `model` or `variables`", form, "Write one of them.")
    bound = None if tolerance is None else POSITIVE.of("`tolerance`", tolerance)
    target = target_of(model, variables, args, evaluate, kwargs)
    found = target.sites()
    chosen = {site.path for site in select(found, where)}
    _check_modes([site for site in found if site.path in chosen])
    attempt = _Attempt(target, Planner(target.network(found, form), frozenset(chosen), form, follow))
    if not check:
        return attempt.folded({}, None)
    target.check_arrays()
    return _checked(attempt, bound)


def _check_modes(found: Collection[Site]) -> None:
    """Refuse norms in training mode."""
    for site in found:
        of_batch = getattr(site.module, "statistics", "auto") == "batch"
        if site.kind in FOLDED and not of_batch and not evaluates(site.module, site.running):
            raise in_training(site.path)


@dataclass(frozen=True)
class _Attempt:
    """Folds of one model, each without some of its norms."""

    target: Target
    planner: Planner

    def folded(self, refused: Mapping[str, str], difference: float | None) -> Folded:
        """Return the fold without norms that are refused for a reason."""
        network = self.planner.network
        decisions = self.planner.plan(refused)
        values = new_values(decisions, network)
        model, variables = self.target.built(decisions, values)
        rows = tuple(_row(one, network, values, difference is not None) for one in decisions)
        options = {**self.target.options, **self.target.evaluate}
        return Folded(model, variables, FoldReport(rows), difference, options)

    def compared(self, expected: object, refused: Mapping[str, str], tolerance: float) -> Comparison:
        """Compare the outputs of a fold with others."""
        new = self.folded(refused, None)
        return compare(expected, self.target.outputs(new.model, new.variables), tolerance)


def _checked(attempt: _Attempt, tolerance: float | None) -> Folded:
    """Return the fold without the norms that change outputs."""
    target, refused = attempt.target, dict[str, str]()
    expected = target.outputs(target.model, target.state())
    bound = _tolerance(attempt.planner.network, expected) if tolerance is None else tolerance
    while not (found := attempt.compared(expected, refused, bound)).close:
        paths = [one.site.path for one in attempt.planner.plan(refused) if one.how != "kept"]

        def is_bad(first: Collection[str], paths: list[str] = paths) -> bool:
            others = {path: "later" for path in paths if path not in first}
            return not attempt.compared(expected, {**refused, **others}, bound).close

        guilty = first_bad(paths, is_bad)
        if guilty is None:
            raise FoldError(
                f"Expected outputs within {found.limit:.3g} of those before the fold, got a difference of "
                f"{found.difference:.3g} that no norm is the cause of. Look for operations that are random, or raise "
                "`tolerance`."
            )
        refused[guilty] = (
            f"The fold of `{guilty}` changes the outputs by {found.difference:.3g}, above {found.limit:.3g}."
        )
    return attempt.folded(refused, found.difference)


def _tolerance(network: Network, expected: object) -> float:
    """Return the tolerance for the least precise of the norms' inputs and the outputs."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(expected)]
    return default_tolerance([*dtypes, *(site.dtype for site in network.sites)])


def _row(decision: Decision, network: Network, values: Mapping[str, Values], checked: bool) -> FoldRow:
    """Return the row of a report for a norm."""
    notes: tuple[str, ...] = ()
    path, into = decision.site.path, decision.into
    if into and decision.affine is not None:
        name = network.kernel_name(into)
        kernel = network.read(into, name)
        assert kernel is not None
        notes = notes_on(into, decision.affine, values[into][name], kernel.dtype)
        if not checked and not is_known(network.seen[into].module):
            notes = (*notes, f"Nothing shows that outputs are the last axis of the kernel of `{into}`; check the fold.")
    if decision.how == "variables":
        notes = (*notes, f"`{path}` still runs, as one addition.")
    return FoldRow(path, into, decision.how, decision.reason, notes)
