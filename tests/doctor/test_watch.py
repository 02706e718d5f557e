"""The doctor beside a training."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.doctor.planted import Dense, Small, batches, start, step_of
from normlab.doctor import examine, watch
from normlab.errors import BadInput


def test_a_training_is_examined_every_so_many_steps() -> None:
    model, optimizer, given = Dense(), optax.sgd(0.05, momentum=0.9), batches(count=8)
    state, step, seen = start(model, optimizer, given[0][0]), step_of(model, optimizer), []
    watching = watch(model, every=20, batches=3)
    for i in range(41):
        if (found := watching(i, state, given[i % 8])) is not None:
            seen.append(found)
        state = step(state, given[i % 8])
    assert [one.step for one in seen] == [0, 20, 40]
    assert {"norms/norm_0/lag", "norms/norm_0/effective", "norms/norm_1/gap", "norms/findings"} <= set(seen[-1].scalars)
    assert all(np.isfinite(value) for one in seen for value in one.scalars.values())
    assert seen[-1].scalars["norms/norm_0/lag"] < seen[0].scalars["norms/norm_0/lag"]


def test_it_finds_what_an_examination_finds_and_compiles_once() -> None:
    model, given = Dense(), batches(4)
    state: Any = start(model, optax.sgd(0.1), given[0][0])
    watching = watch(model, every=1, batches=1)
    first = watching(0, state, given[0])
    with jax.log_compiles(False), jax.transfer_guard("allow"):
        second = watching(1, state, given[1])
    assert first is not None and second is not None
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    report = examine(model, variables, given[1:2], checks=["NL302"])
    (finding,) = [one for one in second.findings if one.code == "NL302"]
    assert finding == report.findings[0]
    assert second.measurements["norm_0"].mean == pytest.approx(report.measurements["norm_0"].mean)


def test_a_model_of_nnx_is_watched_as_it_changes() -> None:
    model, given = Small(), batches(count=2)
    watching = watch(model, every=1, batches=1)
    first = watching(0, model, given[0])
    model.dense.kernel[...] = 2 * model.dense.kernel[...]
    second = watching(1, model, given[0])
    assert first is not None and second is not None
    assert second.measurements["norm"].var == pytest.approx(4 * first.measurements["norm"].var, rel=1e-4)
    assert isinstance(model.norm, nnx.BatchNorm)


@pytest.mark.parametrize("keywords", [{"every": 0}, {"batches": 0}, {"checks": ["NL9"]}])
def test_bad_options_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="Expected"):
        watch(Dense(), **keywords)
