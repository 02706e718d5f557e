"""A claim, who makes it, and the verdict of a study."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from experiments.claims.estimates import Interval


class Verdict(StrEnum):
    """Verdict on a claim by the numbers of a study."""

    HOLDS = "holds"
    HOLDS_WHEN = "holds when"
    FAILS = "does not hold"
    UNSEEN = "not visible here"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that articles make.

    Attributes:
        key: Name, unique in its study.
        text: The claim, one sentence.
        source: Who makes it, with the year.
        published: Published numbers, which stand beside ours and are never mixed with them.
    """

    key: str
    text: str
    source: str
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict on a claim; all of it is computed from measurements.

    Attributes:
        claim: The claim.
        verdict: The verdict.
        when: The condition of `HOLDS_WHEN`, or what a reader must know beside the verdict.
        effect: Name of the quantity that decides, with its unit, e.g. `steps to the same accuracy, without / with`.
        seen: The effect over seeds.
        network: Network.
        data: Data set.
    """

    claim: Claim
    verdict: Verdict
    effect: str
    seen: Interval
    network: str
    data: str
    when: str = ""


class Bar(NamedTuple):
    """An expectation that was written down before the numbers were made.

    Attributes:
        text: The expectation.
        seen: What was seen.
        met: Whether it was met.
    """

    text: str
    seen: str
    met: bool

    @classmethod
    def of(cls, text: str, seen: Interval, form: str, *, least: float = -math.inf, most: float = math.inf) -> Self:
        """Expect all of an interval within bounds; without an interval an expectation is not met.

        Args:
            text: The expectation.
            seen: Mean over seeds with its interval.
            form: Format of a number.
            least: Lower bound, inclusive.
            most: Upper bound, inclusive.
        """
        return cls(text, seen.text(form), least <= seen.low and seen.high <= most)


class Row(NamedTuple):
    """One measured number, as a study's table has it."""

    quantity: str
    arm: str
    setting: str
    seed: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All that a study says.

    Attributes:
        findings: Verdicts, one for each claim.
        bars: Expectations.
        sentences: The paragraph "what was seen".
    """

    findings: tuple[Finding, ...]
    bars: tuple[Bar, ...]
    sentences: tuple[str, ...]


def signed(seen: Interval, threshold: float = 0.0) -> Verdict:
    """Return HOLDS for an effect above a threshold, FAILS for one below it."""
    return Verdict.HOLDS if seen.above(threshold) else Verdict.FAILS if seen.below(threshold) else Verdict.UNSEEN


Key = tuple[str, str]
"""Name of a network and a condition, such as a shift or a batch size."""


def judged(
    claim: Claim,
    effect: str,
    seen: Mapping[Key, Interval],
    keys: Sequence[Key],
    *,
    good: Callable[[Interval], bool],
    bad: Callable[[Interval], bool],
    headline: Key,
    titles: Mapping[str, str],
    data: str,
    opposite: str = "the opposite",
) -> Finding:
    """Judge a claim that may hold in some networks and conditions and not in others.

    Args:
        claim: The claim.
        effect: Name of the effect.
        seen: The effect by network and condition.
        keys: Networks and conditions for which the claim is made.
        good: Whether an effect shows that the claim holds.
        bad: Whether an effect shows the opposite; neither of them is "not visible here".
        headline: Network and condition whose effect stands for all.
        titles: Titles of all networks by name.
        data: Data set.
        opposite: Words for the conditions whose effects are bad.
    """
    holds, fails = ([key for key in keys if side(seen[key])] for side in (good, bad))
    if holds and len(holds) == len(keys):
        verdict = Verdict.HOLDS
    elif holds:
        verdict = Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.FAILS if fails else Verdict.UNSEEN
    said = [f"for {named(holds, titles)}"] if verdict is Verdict.HOLDS_WHEN else []
    said += [f"{opposite} for {named(fails, titles)}"] if fails and len(fails) < len(keys) else []
    return Finding(
        claim=claim,
        verdict=verdict,
        when="; ".join([*said, f"the effect is that of {headline[1]}"]),
        effect=effect,
        seen=seen[headline],
        network=titles[headline[0]],
        data=data,
    )


def named(keys: Sequence[Key], titles: Mapping[str, str]) -> str:
    """Name conditions, with the networks where not all of them are meant."""
    words = []
    for condition in dict.fromkeys(condition for _, condition in keys):
        meant = [name for name, other in keys if other == condition]
        nets = " and ".join(titles[name] for name in meant)
        words.append(condition if len(meant) == len(titles) else f"{condition} ({nets})")
    return ", ".join(words)
