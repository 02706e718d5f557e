"""river's generators of drifting streams: which concepts follow each other, and what each of them is seeded with."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from normlab.errors import BadInput

if TYPE_CHECKING:
    from river.datasets.base import SyntheticDataset


Example = tuple[Mapping[Hashable, float], object]
"""Features and label of an example of river."""


class RiverGenerator(NamedTuple):
    """A kind of generator.

    Attributes:
        generator: Name of the class of river.
        options: Options of the class; a tuple has a value for one concept after the other.
        moving: Options with which the concept itself moves; none if it cannot.
    """

    generator: str
    options: Mapping[str, object] = {}
    moving: Mapping[str, object] = {}


KINDS = {
    "sea": RiverGenerator("SEA", {"variant": (2, 3)}),
    "agrawal": RiverGenerator("Agrawal", {"classification_function": (0, 5, 2, 6)}),
    "hyperplane": RiverGenerator("Hyperplane", moving={"mag_change": 0.003}),
    "rbf": RiverGenerator("RandomRBFDrift", moving={"change_speed": 0.0001}),
    "led": RiverGenerator(
        "LEDDrift", {"n_drift_features": (0, 7), "irrelevant_features": True, "noise_percentage": 0.1}
    ),
}
"""Concepts follow each other such that much of what was learned becomes wrong.

Neighbours disagree about the label of 20.6 % of all inputs (`sea`: thresholds 7 and 9.5), of 72, 51, 50 and 51 %
(`agrawal`), of 23 % (`hyperplane`, mean of 50 pairs of seeds, from 13 to 35 %). A random forest that has learned from
1,000 examples of the first concept errs on `rbf` at about 8 % of others of it and at half of those of the second, on
`led` at 27 % and at 90 %, which is chance: what showed the digit becomes noise.
"""


def changing_options(kind: str) -> set[str]:
    """Return the options that distinguish the concepts of a kind; none if their seeds do."""
    return {name for name, value in KINDS[kind].options.items() if isinstance(value, tuple)}


def drifting(
    kind: str,
    seed: int,
    positions: Sequence[int],
    *,
    recurring: bool = False,
    moving: bool = False,
    width: int | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
) -> "Running":
    """Begin an endless stream in which one concept follows another.

    Args:
        kind: One of `KINDS`.
        seed: Seed of the stream.
        positions: Index of the first example of each new concept.
        recurring: Whether two concepts alternate.
        moving: Whether the concept itself moves.
        width: Width of a change, in examples; `None` for abrupt changes.
        options: Options of river's generator.

    Raises:
        BadInput: If river has no such option.
    """
    concepts = min(2, len(positions) + 1) if recurring else len(positions) + 1
    given = {**KINDS[kind].options, **(KINDS[kind].moving if moving else {}), **options}
    generators = [Running(_generator(kind, seed, concept, given)) for concept in range(concepts)]
    examples = generators[0]
    for change, first in enumerate(positions, start=1):
        examples = _changing(examples, generators[change % concepts], first, width, river_seed(seed, change, 2))
    return examples


def river_seed(seed: int, concept: int, part: int = 0) -> int:
    """Derive a seed for Python's `random`.

    Args:
        seed: Seed of the stream.
        concept: Number of the concept; for a change, of the one that begins.
        part: 0 for the concept, and its examples where river has one seed for both; 1 for the examples alone; 2 for the
            change.
    """
    return int(np.random.SeedSequence((seed, concept, part)).generate_state(1, np.uint64)[0])


class Running:
    """A data set of river that every iteration resumes where the last one stopped."""

    def __init__(self, dataset: "SyntheticDataset", examples: Iterator[Example] | None = None) -> None:
        self.dataset = dataset
        self.examples = iter(dataset) if examples is None else examples

    def __iter__(self) -> Iterator[Example]:
        return self.examples

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


def _changing(before: Running, after: Running, first: int, width: int | None, seed: int) -> Running:
    """Join examples of `before` and of `after`; river mixes them if there is a width."""
    from river.datasets import synth

    # river computes exp(4 * distance / width), which overflows beyond 177 widths, and so for any abrupt change.
    alone = first if width is None else max(0, first - 170 * width)

    def examples() -> Iterator[Example]:
        yield from islice(before, alone)
        if width is None:
            yield from after
        else:
            mixture: Any = synth.ConceptDriftStream
            yield from mixture(before, after, position=first - alone + 1, width=width, seed=seed)  # counted from 1

    return Running(before.dataset, examples())


def _generator(kind: str, seed: int, concept: int, options: Mapping[str, object]) -> "SyntheticDataset":
    """Make the generator of a concept: two of one kind never yield the same examples, nor do two seeds."""
    from river.datasets import synth

    given = {
        name: value[concept % len(value)] if isinstance(value, tuple) else value for name, value in options.items()
    }
    if kind == "hyperplane":  # all of it moves, as in the other generators
        given = {"n_drift_features": given.get("n_features", 10), **given}
    seeds = {"seed": river_seed(seed, concept)}
    if kind == "rbf":
        given = {"n_drift_centroids": given.get("n_centroids", 50), **given}
        seeds = {"seed_model": river_seed(seed, concept), "seed_sample": river_seed(seed, concept, 1)}
    name = KINDS[kind].generator
    try:
        return getattr(synth, name)(**given, **seeds)
    except (TypeError, ValueError) as error:
        raise BadInput(f"Expected options of river's `{name}`, got {dict(options)}: {error}.") from error
