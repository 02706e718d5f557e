"""Streams of river's generators, with drifts of every kind."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from normlab.errors import BadInput, nearest
from normlab.study.streams.generators import KINDS, changing_options, drifting
from normlab.study.streams.preprocessing import features_of
from normlab.study.streams.recorded import materialized
from normlab.study.streams.stream import Source, Stream, check_positions, describe, river_version, source_of

DRIFTS = ("none", "abrupt", "gradual", "recurring", "incremental")


def synthetic(
    kind: str,
    *,
    n: int = 10_000,
    drift: str = "abrupt",
    positions: Sequence[int] | None = None,
    width: int | None = None,
    standardize: bool = True,
    **options: object,
) -> Source:
    """Make a stream of one of river's generators, with drift.

    Each concept is a generator with a seed of its own, so that none repeats the examples of another, and resumes where
    it stopped when it returns.

    Args:
        kind: `sea`, `agrawal`, `hyperplane`, `rbf` or `led`.
        n: Number of examples.
        drift: `abrupt`: from one example to the next. `gradual`: more and more examples of the new concept among those
            of the old one, by river's `ConceptDriftStream`. `recurring`: from one concept to another and back, abruptly
            unless `width` is given. `incremental`: the concept moves on a little at every example; `hyperplane` and
            `rbf` only. `none`.
        positions: Index of the first example of each new concept; unless given, the changes divide the stream into
            equal parts: two, or three if concepts recur.
        width: Width of a change, in examples: half a width before the position 12 % are of the new concept, half a
            width after it 88 %. A tenth of the stream for `gradual` unless given.
        standardize: Whether features are standardized online; see `standardized`.
        **options: Options of river's generator; a tuple has a value for one concept after the other. Unless
            given, the concepts are `variant=(2, 3)` of `sea`, `classification_function=(0, 5, 2, 6)` of `agrawal`,
            `n_drift_features=(0, 7)` of `led`, and another seed for the others.

    Raises:
        BadInput: If there is no such stream.
    """
    _check_synthetic(kind, n, drift, positions, width, options)
    parts = {"abrupt": 2, "gradual": 2, "recurring": 3}.get(drift, 1)
    given = [n * part // parts for part in range(1, parts)] if positions is None else positions
    spread = max(1, n // 10) if drift == "gradual" and width is None else width
    return source_of(
        f"{kind}-{drift}",
        partial(
            _synthetic,
            kind=kind,
            n=n,
            drift=_Drift(drift, check_positions(given, n), spread),
            standardize=standardize,
            options=options,
        ),
        replicated=True,
        libraries=("river",),
    )


class _Drift(NamedTuple):
    """Drift of a stream; see `synthetic`."""

    kind: str
    positions: Sequence[int]
    width: int | None


def _check_synthetic(
    kind: str, n: int, drift: str, positions: Sequence[int] | None, width: int | None, options: Mapping[str, object]
) -> None:
    """Refuse invalid options; see `synthetic`."""
    if kind not in KINDS:
        raise BadInput(f"Expected a kind of stream, got `{kind}`. {nearest(kind, KINDS)}")
    if drift not in DRIFTS:
        raise BadInput(f"Expected a kind of drift, got `{drift}`. {nearest(drift, DRIFTS)}")
    if n < 1:
        raise BadInput(f"Expected `n` to be at least 1 example, got {n}.")
    if drift == "incremental" and not KINDS[kind].moving:
        moving = " or ".join(f"`{name}`" for name in KINDS if KINDS[name].moving)
        raise BadInput(f"Expected a generator that moves by itself for incremental drift, {moving}, got `{kind}`.")
    if positions is not None and bool(positions) != (drift in ("abrupt", "gradual", "recurring")):
        raise BadInput(f"Expected `positions` for abrupt, gradual or recurring drift, got {positions} for `{drift}`.")
    if width is not None and (width < 1 or drift not in ("gradual", "recurring")):
        raise BadInput(f"Expected `width` from 1 on, for gradual or recurring drift, got {width} for `{drift}`.")
    alike = {name for name in changing_options(kind) & set(options) if not isinstance(options[name], tuple)}
    if alike and drift != "none":
        raise BadInput(f"Expected a tuple of different values of `{min(alike)}`, got the same for every concept.")


def _synthetic(
    seed: int,
    *,
    kind: str,
    n: int,
    drift: _Drift,
    standardize: bool,
    options: Mapping[str, object],
) -> Stream:
    examples = drifting(
        kind,
        seed,
        drift.positions,
        recurring=drift.kind == "recurring",
        moving=drift.kind == "incremental",
        width=drift.width,
        options=options,
    )
    inputs, labels = materialized(examples, n)
    where = f" at {', '.join(f'{position:,}' for position in drift.positions)}" if drift.positions else ""
    given = "".join(f", {name}={value}" for name, value in options.items())
    drifts = "no drift" if drift.kind == "none" else f"{drift.kind} drift{where}"
    what = f"{KINDS[kind].generator} of river {river_version()}, {n:,} examples, {drifts}{given}"
    return Stream(
        name=kind,
        inputs=features_of(inputs, standardize),
        labels=labels,
        classes=examples.n_classes or 2,  # river does not say where there are two
        drifts=tuple(drift.positions),
        description=describe(what, standardize),
    )
