"""A norm is a value: it compares, hashes, prints as its string, and a third party's joins."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import normlab
from normlab import linen, norms
from normlab import nnx as our_nnx
from normlab.catalogue import ROWS
from normlab.errors import StatisticsError
from normlab.norms import Entry, Norm, Ramp, UnknownNorm
from tests.support.registered import ALL

STRINGS = [
    "batch",
    "group:num_groups=8",
    "batch:axis=(1, 2),momentum=None,unbiased_running_var=True",
    "batch:statistics='running'",
    "batch_renorm:d_max=5.0,r_max=Ramp(start=1.0, stop=3.0, begin=5000, end=40000)",
    "layer:epsilon=0.001,use_bias=False",
]


@pytest.mark.parametrize("text", STRINGS)
def test_strings_round_trip(text: str) -> None:
    norm = norms.get(text)
    assert norms.get(str(norm)) == norm == norms.get(norm)
    assert str(norms.get(str(norm))) == str(norm) == text
    assert repr(norm) == f"Norm({text!r})"


@pytest.mark.parametrize("name", [norms.get(norm).name for norm in ALL])
def test_names_round_trip(name: str) -> None:
    assert norms.get(name).name == str(norms.get(name)) == name
    assert norms.get(name).title


def test_a_string_and_options_give_the_same_value() -> None:
    same = {norms.get("group:num_groups=8"), norms.get("group", num_groups=8), norms.get("group: num_groups = 8")}
    assert len(same) == 1
    assert norms.get("group:num_groups=8", epsilon=0.1) == norms.get("group:epsilon=0.1,num_groups=8")
    assert norms.get("group:num_groups=8", num_groups=4).options == {"num_groups": 4}
    assert norms.get("group") != norms.get("group", num_groups=32)


def test_a_bare_word_is_a_string() -> None:
    assert norms.get("batch:statistics=batch").options == {"statistics": "batch"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("batch", ["batch"]),
        ("batch,layer", ["batch", "layer"]),
        (" batch , layer ,", ["batch", "layer"]),
        ("batch,group:num_groups=8,epsilon=1e-3,layer", ["batch", "group:num_groups=8,epsilon=1e-3", "layer"]),
        ("group:num_groups=8,layer:epsilon=0.1,rms", ["group:num_groups=8", "layer:epsilon=0.1", "rms"]),
        ("batch:axis=(1,2),rms", ["batch:axis=(1,2)", "rms"]),
        ("batch_renorm:r_max=Ramp(1,3,begin=0,end=9),none", ["batch_renorm:r_max=Ramp(1,3,begin=0,end=9)", "none"]),
        ("", []),
    ],
)
def test_a_list_is_split_between_norms(text: str, parts: list[str]) -> None:
    assert norms.parse_list(text) == parts
    assert all(norms.get(part) for part in parts)


def test_what_each_norm_needs() -> None:
    needs = {n: (norms.get(n).needs_batch, norms.get(n).stateful, norms.get(n).needs_spatial) for n in norms.names()}
    assert {n for n, (batch, _, _) in needs.items() if batch} >= {"batch", "batch_renorm"}
    assert {n for n, (_, state, _) in needs.items() if state} >= {"batch", "batch_renorm"}
    assert {n for n, (_, _, spatial) in needs.items() if spatial} >= {"instance"}
    assert needs["layer"] == needs["rms"] == needs["group"] == needs["none"] == (False, False, False)


@pytest.mark.parametrize("name", ALL)
def test_needs_are_what_is_observed(name: str) -> None:
    norm, x = norms.get(name), jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 64)), jnp.float32)
    module = norm.linen(train=True)
    variables = module.init(jax.random.key(0), x)
    assert ("batch_stats" in variables) == norm.stateful
    y, _ = module.apply(variables, x, mutable=["batch_stats"])
    other, _ = module.apply(variables, x.at[1:].set(jnp.exp(x[1:])), mutable=["batch_stats"])
    assert bool(jnp.any(jnp.abs(y[0] - other[0]) > 1e-3)) == norm.needs_batch
    assert bool(nnx.to_flat_state(nnx.state(norm.nnx(64, rngs=nnx.Rngs(0)), nnx.BatchStat))) == norm.stateful


SPATIAL = {"frn": "learn_epsilon=True", "evonorm_b0": "nonlinear=False", "instance": ""}


@pytest.mark.parametrize("name", [*SPATIAL, *(f"{name}:{spared}" for name, spared in SPATIAL.items() if spared)])
def test_a_norm_that_needs_positions_refuses_to_do_without(name: str) -> None:
    module = norms.get(name).linen(train=True)
    refused = pytest.raises(StatisticsError, match="positions") if norms.get(name).needs_spatial else nullcontext()
    with refused:
        assert module.init_with_output(jax.random.key(0), jnp.ones((4, 6)))[0].shape == (4, 6)
    assert norms.get(name).needs_spatial == (":" not in name)


def test_options_reach_the_modules_and_overrides_come_last() -> None:
    norm = norms.get("group:num_groups=8,epsilon=0.1")
    assert norm.linen(train=True).num_groups == 8 and norm.linen(train=True, epsilon=0.2).epsilon == 0.2
    assert norm.nnx(64, rngs=nnx.Rngs(0)).num_groups == 8
    assert norms.get("batch").linen(train=True).use_running_average is False
    assert norms.get("batch").linen(train=False).use_running_average is True


def test_a_ramp_is_a_value_and_an_optax_schedule_serves_too() -> None:
    ramp = Ramp(1.0, 3.0, begin=10, end=20)
    np.testing.assert_allclose([ramp(s) for s in (0, 10, 15, 20, 99)], [1.0, 1.0, 2.0, 3.0, 3.0])
    assert ramp == Ramp(1.0, 3.0, begin=10, end=20) and hash(ramp) == hash(Ramp(1.0, 3.0, begin=10, end=20))
    assert norms.get("batch_renorm", r_max=ramp) == norms.get(str(norms.get("batch_renorm", r_max=ramp)))
    schedule = optax.linear_schedule(1.0, 3.0, 10, 10)
    np.testing.assert_allclose([schedule(s) for s in (0, 15, 99)], [ramp(s) for s in (0, 15, 99)])


class Halve(nn.Module):
    """A norm of somebody else's."""

    by: float = 2.0

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Divide."""
        return x / self.by


@pytest.fixture
def halve() -> Iterator[Norm]:
    """A third party's norm, registered for a test."""

    def linen(train: bool, options: Mapping[str, Any]) -> Halve:
        return Halve(**options)

    def for_nnx(num_features: Any, rngs: nnx.Rngs, options: Mapping[str, Any]) -> Any:
        return lambda x, mask=None: x / options.get("by", 2.0)

    norms.register(Entry(name="halve", title="halving", linen=linen, nnx=for_nnx))
    yield norms.get("halve")
    norms.unregister("halve")


def test_a_third_party_joins(halve: Norm) -> None:
    assert norms.names()[-1] == "halve" and not halve.needs_batch
    x = jnp.ones((2, 3))
    assert float(norms.get("halve:by=4").linen(train=True).apply({}, x)[0, 0]) == 0.25
    assert float(halve.nnx(3, rngs=nnx.Rngs(0))(x)[0, 0]) == 0.5
    assert norms.parse_list("halve:by=4,batch") == ["halve:by=4", "batch"]


def test_every_norm_has_a_colour_and_marker_of_its_own() -> None:
    assert len({(norms.colour(row.name), norms.marker(row.name)) for row in ROWS}) == len(ROWS)


def _contrast(colour: str, other: str) -> float:
    """Return the contrast of two colours as WCAG defines it."""

    def luminance(text: str) -> float:
        shares = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(colour), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("paper", ["#ffffff", "#14171a"])
def test_colours_are_legible_on_white_and_on_dark(paper: str) -> None:
    for name in (*norms.names(), *norms.cell_names(), "halve", "unheard_of"):
        assert _contrast(norms.colour(name), paper) >= 3, name


def test_options_do_not_change_the_style() -> None:
    for same in ("group:num_groups=8,epsilon=1e-3", norms.get("group", num_groups=2)):
        assert norms.colour(same) == norms.colour("group") and norms.marker(same) == norms.marker("group")


def test_a_third_party_has_a_spare_style(halve: Norm) -> None:
    taken = {(norms.colour(row.name), norms.marker(row.name)) for row in ROWS}
    spare = norms.colour("halve"), norms.marker("halve")
    assert len(taken) == len(ROWS) and spare not in taken
    norms.unregister("halve")
    assert (norms.colour("halve"), norms.marker("halve")) == spare  # of the name alone
    norms.register(dataclasses.replace(halve.entry, colour="#123456", marker="o"))
    assert (norms.colour("halve:by=4"), norms.marker("halve")) == ("#123456", "o")


def test_it_has_left() -> None:
    assert "halve" not in norms.names()


def test_a_name_is_an_identifier() -> None:
    entry = dataclasses.replace(norms.get("batch").entry, name="batch:1")
    with pytest.raises(ValueError, match="to be an identifier, got 'batch:1'"):
        norms.register(entry)


def test_a_style_that_cannot_be_drawn_is_an_error() -> None:
    for look, message in (({"colour": "red"}, "colour as #rrggbb, got 'red'"), ({"marker": "os"}, "marker among o, s")):
        entry = dataclasses.replace(norms.get("batch").entry, name="drawn", **look)
        with pytest.raises(ValueError, match=message):
            norms.register(entry)


@pytest.mark.parametrize(
    ("text", "options"), [("layer:use_bias=false", {"use_bias": False}), ("batch:momentum=None", {"momentum": None})]
)
def test_words_are_values(text: str, options: dict[str, object]) -> None:
    assert norms.get(text).options == options


def test_options_that_calls_set_are_refused() -> None:
    with pytest.raises(ValueError, match="'use_running_average' for batch:use_running_average=True: `linen` and `nnx`"):
        norms.get("batch:use_running_average=True")
    with pytest.raises(ValueError, match="each option once, got 'epsilon' twice"):
        norms.get("layer:epsilon=1e-3,epsilon=1e-4")


def test_lists_and_dtypes_are_read_back() -> None:
    norm = norms.get("layer", reduction_axes=[1, 2], dtype=jnp.bfloat16)
    assert hash(norm) == hash(norms.get(str(norm))) and norms.get(str(norm)) == norm
    assert norm.linen(train=True).init_with_output(jax.random.key(0), jnp.ones((2, 3, 4)))[0].dtype == jnp.bfloat16
    assert norms.get(str(norms.get("batch_renorm", r_max=float("inf")))).options == {"r_max": float("inf")}


@pytest.mark.parametrize("name", [*STRINGS, *ALL, *norms.cell_names()])
def test_a_norm_is_pickled_and_copied_as_the_value_it_is(name: str) -> None:
    norm = norms.get(name)
    for again in (pickle.loads(pickle.dumps(norm)), copy.deepcopy(norm), copy.copy(norm)):
        assert again == norm and hash(again) == hash(norm) and again.entry is norm.entry


class Holder(nn.Module):
    """A model that holds a norm."""

    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Dense, then the norm."""
        return self.norm.linen(train=train)(nn.Dense(4)(x))


class HolderNNX(nnx.Module):
    """The same in NNX."""

    def __init__(self, norm: Norm, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.kind, self.norm = norm, norm.nnx(4, rngs=rngs)


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "copy"])
def test_models_that_hold_a_norm_are_pickled_and_copied(copied: Any) -> None:
    model, x = Holder(norms.get("batch_renorm:r_max=Ramp(1.0, 3.0, begin=0, end=9)")), jnp.ones((3, 4))
    again = copied(model)
    assert again == model and hash(again) == hash(model)
    y = model.init_with_output(jax.random.key(0), x, train=True)[0]
    np.testing.assert_array_equal(again.init_with_output(jax.random.key(0), x, train=True)[0], y)
    ours = HolderNNX(norms.get("batch"), nnx.Rngs(0))
    theirs = copied(ours)
    assert theirs.kind == ours.kind
    np.testing.assert_array_equal(theirs.norm(x), ours.norm(x))


def test_a_norm_is_loaded_in_a_fresh_process() -> None:
    norm = norms.get("batch_renorm:d_max=5.0,r_max=Ramp(1.0, 3.0, begin=5, end=9)")
    code = f"import pickle; print(pickle.loads({pickle.dumps(norm)!r}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == str(norm)


def test_a_third_partys_norm_is_pickled_where_it_is_registered(halve: Norm) -> None:
    norm = norms.get("halve:by=4.0")
    saved = pickle.dumps(norm)
    assert pickle.loads(saved) == norm
    with pytest.raises(UnknownNorm, match=r"'halve' to be registered where it is pickled"):
        pickle.dumps(dataclasses.replace(norm, entry=dataclasses.replace(norm.entry, title="another")))
    entry = halve.entry
    norms.unregister("halve")
    with pytest.raises(UnknownNorm, match=r"'halve' to be registered where it is loaded.*`normlab\.norms\.register`"):
        pickle.loads(saved)
    norms.register(entry)


def test_the_table_of_the_documentation_is_the_registrys() -> None:
    page = (Path(normlab.__file__).parents[1] / "docs" / "how-to" / "options.md").read_text("utf-8")
    table = norms.table()
    assert f"\n{table}\n" in page, "Write the result of `normlab.norms.table()` into docs/how-to/options.md."
    for entry in (norms.get(norm).entry for norm in ALL):
        assert f"| `{entry.name}` | {entry.formula} | {entry.over} |" in table
        assert all(hasattr(modules, entry.module) for modules in (linen, our_nnx))
        assert entry.name == "none" or (entry.paper and entry.url.startswith("https://"))
