"""Names of Flax, PyTorch and Keras lead to those of normlab."""

import pytest

from normlab import norms
from normlab.cli import listing
from normlab.cli.parser import doctor_parser, run_parser
from normlab.errors import nearest
from normlab.study.design import discovery
from normlab.suggestions import _MEANT, suggestion

NORMS = (*norms.names(), *norms.cell_names())
COMMANDS = ("run", "report", "merge", "verify", "list", "doctor", "--help", "--version")
FLAGS = {
    flag
    for action in run_parser(discovery.load("batch_size")).arguments()
    for flag in action.option_strings
    if flag.startswith("--")
}
OF_DOCTOR = {flag for action in doctor_parser().arguments() for flag in action.option_strings}
TIERS = ("smoke", "quick", "standard", "paper")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("BatchNorm", "batch"),
        ("batchnorm", "batch"),
        ("nn.BatchNorm", "batch"),
        ("nn.BatchNorm2d", "batch"),
        ("BatchNormalization", "batch"),
        ("SyncBatchNorm", "batch"),
        ("bn", "batch"),
        ("LayerNorm", "layer"),
        ("LayerNormalization", "layer"),
        ("layernorm", "layer"),
        ("layer_norm", "layer"),
        ("ln", "layer"),
        ("GroupNorm2d", "group"),
        ("gn", "group"),
        ("rmsnorm", "rms"),
        ("RMSNorm", "rms"),
        ("InstanceNorm3d", "instance"),
        ("BatchRenorm", "batch_renorm"),
        ("Identity", "none"),
        ("onlin", "online"),
        ("SpectralNorm", ""),
    ],
)
def test_norms(typed: str, meant: str) -> None:
    assert suggestion(typed, NORMS) == meant
    with pytest.raises(norms.UnknownNorm) as raised:
        norms.get(typed)
    assert (f"Did you mean {meant!r}?" in str(raised.value)) == bool(meant)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--learning-rates"),
        ("--learning-rate", "--learning-rates"),
        ("--batch-size", "--batch-sizes"),
        ("--bs", "--batch-sizes"),
        ("--num-epochs", "--epochs"),
        ("--n-seeds", "--seeds"),
        ("--gpus", "--jobs"),
        ("--model", "--problems"),
        ("--dataset", "--data"),
        ("--out", "--output"),
        ("-o", "--output"),
        ("--smoke", "--tier smoke"),
        ("--optimizer", ""),
    ],
)
def test_options(typed: str, meant: str) -> None:
    assert suggestion(typed, FLAGS) == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("compare", "run"),
        ("bench", "run"),
        ("ls", "list"),
        ("norms", "list norms"),
        ("diagnose", "doctor"),
        ("-V", "--version"),
        ("rnu", "run"),
    ],
)
def test_commands(typed: str, meant: str) -> None:
    assert suggestion(typed, COMMANDS) == meant


def test_a_data_set_is_a_problem_where_a_comparison_takes_no_data() -> None:
    assert suggestion("--dataset", FLAGS - {"--data"}) == "--problems"


def test_the_table_names_what_there_is() -> None:
    known = {*NORMS, *COMMANDS, *FLAGS, *OF_DOCTOR, *TIERS, *listing.KINDS, "conv", "--run"}
    assert {text.partition(" ")[0] for text in _MEANT} <= known
    for text in _MEANT:
        command, _, value = text.partition(" ")
        assert not value or value in {"list": set(listing.KINDS), "--tier": set(TIERS)}[command]


def test_the_sentence_where_nothing_is_meant() -> None:
    assert nearest("xyz", ["b", "a"]) == "Known: a, b."
    assert nearest("xyz", ["b", "a"], "See `normlab list`.") == "See `normlab list`."
    assert nearest("xyz", []) == "Known: none."
