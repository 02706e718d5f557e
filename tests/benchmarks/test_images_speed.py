"""Test that the measurement of updates on images does the same work everywhere; times are not asserted."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from benchmarks.speed import images as speed
from benchmarks.speed._peer_networks import FlaxNetwork, torch_network

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def size_of(network: nn.Module, **options: bool) -> int:
    """Count the parameters."""
    found: Any = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, **options), IMAGES)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(found["params"]))


@pytest.mark.parametrize("network", speed.MEGAFLOPS)
def test_peers_have_our_parameters(network: str) -> None:
    assert size_of(FlaxNetwork(network)) == size_of(speed.network(network), train=True)


@pytest.mark.parametrize("network", speed.MEGAFLOPS)
def test_torch_has_our_parameters(network: str) -> None:
    torch = pytest.importorskip("torch")
    net = torch_network(network)
    assert sum(parameter.numel() for parameter in net.parameters()) == size_of(speed.network(network), train=True)
    assert net(torch.ones(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_updates_are_measured_and_other_measurements_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "images"
    other = speed.Row(
        network="vit", batch_size=2, contender="ours 1 x 2", threads=1, processes=2, ms=1.5, ms_low=1.0, ms_high=2.0,
        ratio=1.0, updates=2, rounds=1, load=0.5,
    )  # fmt: skip
    speed.write(output, [other])
    monkeypatch.setattr(
        "sys.argv", ["images.py", *"--networks conv --batch-sizes 2 --rounds 1 --output".split(), str(output)]
    )
    speed.main()
    assert speed.read(output)[-1] == other
    with output.with_suffix(".csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == "conv"]
    assert [row["contender"] for row in rows] == [str(contender) for contender in speed.contenders()]
    assert all(0 < float(row["ms_low"]) <= float(row["ms"]) <= float(row["ms_high"]) for row in rows)
    page = output.with_suffix(".md").read_text()
    assert all(re.search(rf"^{network} +2 ", page, re.MULTILINE) for network in ("conv", "vit"))


def test_ratios_are_to_the_faster_layout() -> None:
    ms = {"ours 1 x 2": 1.0, "ours 1": 2.0, "ours 2": 3.0, "flax 2": 4.0, "torch 1": 5.0, "torch, channels 1": 4.0}
    assert speed.ratios(ms) == [0, 2 / 4, 0, 1 / 4]
    assert speed.ratios({**ms, "torch 2": 2.0, "torch, channels 2": 5.0}) == [1 / 2, 2 / 4, 3 / 2, 1 / 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "Expected `--rounds` to be at least 1, got 0"),
        (["--batch-sizes", "2", "1"], "Expected `--batch-sizes` of at least 2, got 1"),
        (["--networks", "resnet"], "invalid choice: 'resnet'"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["images.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert message in capsys.readouterr().err
