"""Checks of the content of the file of a run, which others may have written."""

from collections.abc import Mapping
from functools import lru_cache

from normlab.study.design import schema
from normlab.study.design.records import EVALUATE, STATUSES, TUNE, Configuration, frozen

__all__ = [
    "CODE",
    "COST",
    "KEY",
    "LEARNING_RATE",
    "METRICS",
    "PLACE",
    "REASON",
    "SEED",
    "SERIES",
    "STAGE",
    "STATUS",
    "configuration",
    "identity",
]

KEY = schema.text(64, "[0-9a-f]{64}")
CODE = schema.any_of(
    schema.fields({"comparison": schema.table(KEY, 100_000, keys=schema.text(4096))}, any_other=schema.plain(1)),
    schema.plain(1),  # of older versions, to report that the code changed
)
"""Check of the hashes of code in an identity."""

_LINE = schema.text(2000)
_NAME = lru_cache(1000)(_LINE)  # also one object for equal names
_IDENTITY = schema.fields({}, {"code": CODE}, any_other=schema.plain(4))
_CELL = schema.fields({"problem": _LINE, "norm": _LINE, "config": schema.table(schema.plain(3, objects=False))})
_ROWS = schema.listed(schema.listed(schema.optional(schema.number()), 100_000), 1000)

STAGE, STATUS = schema.one_of(TUNE, EVALUATE), schema.one_of(*STATUSES)
PLACE = schema.whole(0, 10**6)
LEARNING_RATE, SEED = schema.number(positive=True), schema.whole(0, 2**31 - 1)
REASON = schema.text(20_000)
METRICS = schema.table(schema.optional(schema.number()), keys=_NAME)
SERIES = schema.table(_ROWS, keys=_LINE)
COST = schema.table(schema.number(low=0), keys=_NAME)


def identity(value: object) -> Mapping[str, object]:
    """Check an identity, and keep it as it is in the file."""
    _IDENTITY(value)
    assert isinstance(value, Mapping)
    return value


def configuration(value: object) -> Configuration:
    """Check a configuration, and make it hashable."""
    fields = _CELL(value)
    return Configuration(config=frozen(fields.pop("config")), **fields)
