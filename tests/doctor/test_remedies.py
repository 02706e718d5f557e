"""Where the remedy is a tool of this package, the tool mends the fault."""

from typing import Any

import optax
import pytest

import normlab.tools
from benchmarks.doctor.planted import CASES, Dense, batches, fresh
from normlab import tools
from normlab.doctor import examine


def codes(keywords: dict[str, Any]) -> set[str]:
    keywords = {"checks": ["NL102", "NL302", "NL303", "NL304"], **keywords}
    return {one.code for one in examine(**keywords).findings if one.severity != "note"}


def test_precise_statistics_mend_a_lag_and_the_gap_with_it() -> None:
    keywords = CASES["statistics from before a layer was scaled"].build(1.0)
    assert codes(keywords) == {"NL303", "NL304"}
    found = tools.precise(keywords["model"], keywords["variables"], keywords["batches"])
    assert codes({**keywords, "variables": found.variables}) == set()


@pytest.mark.parametrize("size", [1, 4])
def test_group_norm_mends_small_batches(size: int) -> None:
    model, given = Dense(), batches(size)
    variables = fresh(model, given[0][0])
    report = examine(model, variables, given, checks=["NL102", "NL302"])
    remedy = report.findings[0].remedy
    found = eval(remedy, {"normlab": normlab, "model": model, "variables": variables, "x": given[0][0]})
    assert codes({"model": found.model, "variables": found.variables, "batches": given}) == set()


def test_a_mask_of_decay_spares_norms() -> None:
    model, given = Dense(), batches()
    variables, x = fresh(model, given[0][0]), given[0][0]
    keywords = {"model": model, "variables": variables, "batches": given, "checks": ["NL206"]}
    assert codes({**keywords, "optimizer": optax.adamw(1e-3)}) == {"NL206"}
    mask = tools.decay_mask(model, variables, x)
    assert codes({**keywords, "optimizer": optax.adamw(1e-3, mask=mask)}) == set()


def test_merged_replicas_are_one_model() -> None:
    keywords = CASES["replicas that drifted apart"].build(1.0)
    assert "NL208" in codes({**keywords, "checks": ["NL208"]})
    merged = tools.replicas.reduce(keywords["variables"])
    assert codes({**keywords, "variables": merged, "checks": ["NL208"]}) == set()


def test_every_tool_that_a_remedy_names_exists() -> None:
    import re
    from pathlib import Path

    from normlab.doctor import checks

    text = "".join(path.read_text() for path in Path(checks.__path__[0]).glob("*.py"))
    named = set(re.findall(r"normlab\.tools\.([\w.]+)\(", text))
    assert named >= {"precise", "convert", "decay_mask", "labels", "replicas.reduce"}
    for name in named:
        found: Any = tools
        for part in name.split("."):
            found = getattr(found, part)
