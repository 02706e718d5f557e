"""Run a process of a group for `tests/study/executors/test_processes.py`: MODE ADDRESS i/n PATIENCE."""

import os
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from normlab.study.executors.process_group import Group, Member, join
from normlab.study.worker.strategy import THREADS_PER_DEVICE


def talk(group: Group) -> None:
    process = group.member.process
    group.agree(config={"batch": 32, "norms": ["batch", "group"]}, shapes={"kernel": (3, 3)})
    runs = group.broadcast({"runs": list(range(10_000))} if process == 1 else None)
    assert runs == {"runs": list(range(10_000))}
    assert group.gather("rank", process) == [1, 2, 3]


def config(group: Group) -> None:
    group.agree(versions=[1, 2], config={"batch": 64 if group.member.process == 2 else 32, "norm": "batch"})


def shapes(group: Group) -> None:
    mine = {"kernel": (3, 3), "bias": (8,)} if group.member.process == 1 else {"kernel": (5, 3)}
    group.agree(config={}, shapes=mine)


def calls(group: Group) -> None:
    if group.member.process == 1:
        group.agree(seed=1)


def steps(group: Group, failing: int = 0) -> None:
    """Run one collective in each step, forever."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
    x = jax.make_array_from_process_local_data(sharding, np.ones(8, np.float32))
    step = jax.jit(lambda x: x + x.mean())
    step(x).block_until_ready()
    print("training", flush=True)
    while True:
        x = step(x)
        if group.member.process == failing:
            raise OverflowError("too much")  # with a collective under way
        if failing:
            time.sleep(1)
        x.block_until_ready()


def raises_1(group: Group) -> None:
    steps(group, 1)


def raises_2(group: Group) -> None:
    steps(group, 2)


MODES: dict[str, Any] = {f.__name__: f for f in (talk, config, shapes, calls, steps, raises_1, raises_2)}

if __name__ == "__main__":
    mode, address, part, patience = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    os.environ["PJRT_NPROC"] = str(THREADS_PER_DEVICE * 4)
    with join(Member.parse(address, part), patience=float(patience)) as group:
        MODES[mode](group)
