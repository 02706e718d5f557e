"""Does batch norm in two processes learn the same as in one?

A small network with batch norm or batch renorm learns the handwritten digits, 64 in each step: on one device; on eight
devices of one process; and in two processes of four devices each, each of which loads its half of each batch. With
`jax.jit` on a sharded batch, statistics are over the whole batch by default; with `jax.shard_map`, `axis_name` has this
effect. The script prints the largest differences of parameters and of running statistics from one device, and the time
in seconds, including compilation. The exit code is 1 if differences exceed rounding.

    python experiments/two_processes.py

starts both processes on this machine, on virtual devices. On two machines, set NORMLAB_GROUP_SECRET to the same text
and run a command such as this on each:

    python experiments/two_processes.py --coordinator HOST:PORT --process 1/2
"""

import argparse
import itertools
import os
import pickle
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from normlab.linen import BatchNorm, BatchRenorm
from normlab.study.data.dataset import digits
from normlab.study.executors.meeting import SECRET
from normlab.study.executors.process_group import Member, join

BATCH, STEPS, LEARNING_RATE = 64, 20, 0.1
NORMS, WAYS = (BatchNorm, BatchRenorm), ("jit", "shard_map")
ROUNDING = 1e-5
"""Sums over devices round in another order, by 1e-7 of a value at each step, and training accumulates this."""


class Net(nn.Module):
    """One hidden layer."""

    norm: type[BatchNorm]
    axis_name: str | None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits, in training."""
        x = nn.Dense(32)(images.reshape(len(images), -1))
        x = self.norm(use_running_average=False, axis_name=self.axis_name)(x)
        return nn.Dense(10)(nn.relu(x))


def update(net: Net, variables: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Take one step; inside `shard_map` on the examples of one device, else on all."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, state = net.apply({**variables, "params": params}, images, mutable=["batch_stats"])
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return (jax.lax.pmean(value, net.axis_name) if net.axis_name else value), state

    gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
    return {**state, "params": jax.tree.map(lambda p, g: p - LEARNING_RATE * g, variables["params"], gradients)}


def train(norm: type[BatchNorm], way: str, devices: Sequence[Any]) -> Any:
    """Train on devices, which may belong to several processes, and return the variables as NumPy arrays."""
    mesh = Mesh(np.array(devices), ("data",))
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    net = Net(norm, axis_name="data" if way == "shard_map" else None)

    def step(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        return update(net, variables, images, labels)

    if way == "shard_map":
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())
    step = jax.jit(step, in_shardings=(everywhere, spread, spread), out_shardings=everywhere)

    data = digits()
    variables = jax.device_get(net.init(jax.random.key(0), data.inputs[:2]))  # the same in every process
    share = BATCH * len(mesh.local_devices) // mesh.size  # examples of each batch that this process loads
    for start in range(0, STEPS * BATCH, BATCH):
        first = start % (len(data.labels) - BATCH) + share * jax.process_index()
        images, labels = (
            jax.make_array_from_process_local_data(spread, part[first : first + share])
            for part in (data.inputs, data.labels)
        )
        variables = step(variables, images, labels)
    return jax.device_get(variables)


def timed(devices: Sequence[Any]) -> dict[tuple[str, str], Any]:
    """Train in each way with each norm, and return the variables and seconds."""
    results = {}
    for norm, way in itertools.product(NORMS, WAYS):
        start = time.perf_counter()
        results[norm.__name__, way] = train(norm, way, devices), time.perf_counter() - start
    return results


def be_member(member: Member, output: Path | None) -> None:
    """Run one of the processes."""
    with join(member) as group:
        group.agree(devices=jax.local_device_count(), batch=BATCH, steps=STEPS)
        results = timed(jax.devices())
        print(f"{member} used {jax.local_device_count()} of {jax.device_count()} devices.")
    if output:
        output.write_bytes(pickle.dumps(results))


def start_members(folder: Path) -> list[Any]:
    """Run this file as two processes and return the results of each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, "--coordinator", coordinator, "--devices", "4"]
    environment = {**os.environ, SECRET: secrets.token_hex()}
    outputs = [folder / "1.pickle", folder / "2.pickle"]
    members = [
        subprocess.Popen(
            [*command, "--process", f"{i}/2", "--output", output], stdout=subprocess.DEVNULL, env=environment
        )
        for i, output in enumerate(outputs, 1)
    ]
    try:
        if any([member.wait(timeout=600) for member in members]):
            sys.exit(1)  # the process has printed the reason
    finally:
        for member in members:
            member.kill()
    return [pickle.loads(output.read_bytes()) for output in outputs]


def largest(a: Any, b: Any) -> float:
    """Return the largest difference between two trees."""
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def compare(both: Sequence[Any]) -> float:
    """Print the differences between one process and each of two, and return the largest."""
    one = timed(jax.devices()[:1])
    runs = {"1 device": one, "8 devices": timed(jax.devices()), "process 1 of 2": both[0], "process 2 of 2": both[1]}
    worst = 0.0
    print(f"{'':>14}{'norm':>14}{'way':>12}{'parameters':>14}{'statistics':>14}{'seconds':>10}")
    for name, results in runs.items():
        for (norm, way), (variables, seconds) in results.items():
            reference, _ = one[norm, "jit"]
            differences = [largest(variables[kind], reference[kind]) for kind in ("params", "batch_stats")]
            worst = max(worst, *differences)
            columns = "".join(f"{difference:>14.1e}" for difference in differences)
            print(f"{name:>14}{norm:>14}{way:>12}{columns}{seconds:>10.1f}")
    print(f"\nAfter {STEPS} steps all agree to {worst:.1e}; rounding explains {ROUNDING:.0e}.")
    return worst


def main() -> None:
    """Run a member, or start two members and compare them."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address at which process 1 listens")
    parser.add_argument("--process", metavar="i/n", help="number of this process")
    parser.add_argument("--devices", type=int, metavar="N", help="use N virtual CPU devices")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file for the results")
    given = parser.parse_args()
    if given.process is None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        with tempfile.TemporaryDirectory() as folder:
            both = start_members(Path(folder))
        sys.exit(compare(both) > ROUNDING)
    if given.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", given.devices)
    be_member(Member.parse(given.coordinator or "", given.process), given.output)


if __name__ == "__main__":
    main()
