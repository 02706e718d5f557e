"""A claim, who makes it, and the verdict of a study."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from experiments.claims.estimates import Interval


class Verdict(StrEnum):
    """What the numbers of a study say of a claim."""

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
