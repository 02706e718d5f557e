"""The name that is meant by another: as other libraries write it, or the most similar."""

import difflib
import re
from collections.abc import Iterable, Mapping

__all__ = ["suggestion"]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Find the known name that is meant by an unknown one; empty where there is none.

    >>> suggestion("BatchNorm2d", ["batch", "layer"]), suggestion("--lr", ["--epochs", "--learning-rates"])
    ('batch', '--learning-rates')
    """
    known, plain = list(known), _plain(name)
    same = [other for other in known if _plain(other) in (plain, _ENDING.sub("", plain))]
    same += [text for text, names in _MEANT.items() if plain in names.split() and text.partition(" ")[0] in known]
    bare = {other.lstrip("-"): other for other in known}
    similar = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.65)
    return next(iter([*same, *(bare[other] for other in similar)]), "")


def _plain(name: str) -> str:
    """Return the letters and digits of a name after its last dot, in lower case."""
    return "".join(filter(str.isalnum, name.rpartition(".")[2])).lower()


_ENDING = re.compile(r"(norm|normali[sz]ation)(nd|[123]d)?$")
"""The end of a class of another library that is no part of a norm's name."""

_MEANT: Mapping[str, str] = {
    # norms
    "batch": "bn syncbn syncbatchnorm syncbatchnormalization crossreplicabatchnorm",
    "batch_renorm": "brn renorm",
    "layer": "ln",
    "rms": "rmsn rootmeansquare",
    "group": "gn",
    "instance": "in",
    "none": "identity nonorm noop off null",
    "dyt": "dynamictanh tanh",
    "derf": "dynamicerf erf",
    "l2": "unit unitnorm",
    "local_response": "lrn",
    "continual": "cn",
    "mean_only_batch": "mobn meanonly",
    "batch_channel": "bcn",
    "representative": "rbn",
    "switchable": "sn switch",
    "domain_batch": "dsbn domainspecificbatch splitbatch auxbatch",
    # networks
    "conv": "cnn convnet",
    # commands
    "run": "compare bench benchmark train start resume continue experiment",
    "report": "html summary plot results view",
    "verify": "check repeat reproduce replicate",
    "merge": "join combine",
    "list": "ls show info",
    "doctor": "examine diagnose lint inspect health",
    "list comparisons": "comparisons benchmarks",
    "list norms": "norms layers",
    "list problems": "problems models",
    "list tiers": "tiers budgets",
    "--help": "h help man usage",
    "--version": "v version",
    # what can be listed
    "norms": "layers",
    "problems": "models networks datasets",
    "tiers": "budgets presets",
    "comparisons": "benchmarks experiments",
    # options
    "--learning-rates": "lr lrs rate rates eta stepsize",
    "--default-learning-rate": "defaultlr untuned",
    "--batch-sizes": "bs b batch minibatch",
    "--epochs": "numepochs nepochs e maxepochs",
    "--seeds": "numseeds nseeds s repeats repetitions trials runs nruns",
    "--tuning-seeds": "tuneseeds",
    "--norms": "layers normalization normalizations",
    "--data": "dataset datasets d",
    "--problems": "model models m arch architecture net network dataset datasets data d task",
    "--data-dir": "datapath dataroot datafolder",
    "--tier": "preset budget mode size t",
    "--tier smoke": "smoke fast debug",
    "--tier quick": "quick",
    "--tier standard": "standard",
    "--tier paper": "paper full",
    "--time-budget": "time maxtime timelimit walltime minutes",
    "--run-timeout": "timeout",
    "--jobs": "j n gpu gpus ngpus numgpus njobs workers numworkers cores cpus threads parallel nproc",
    "--devices": "worldsize",
    "--output": "o out outdir outputdir savedir logdir results resultsdir folder dir path",
    "--config": "c cfg configfile",
    "--dry-run": "dry check plan preview",
    "--retry-failed": "retry force overwrite rerun",
    "--open": "browser show view web",
    "--executor": "backend launcher cluster",
    "--run": "key id",
    "--ignore": "skip exclude disable noqa",
    "--fail-on": "exitcode strict level",
    "--limit": "batches maxbatches",
    "--timings": "timing profile durations",
    # budgets
    "smoke": "tiny test debug",
    "quick": "fast default small",
    "standard": "normal medium",
    "paper": "full large",
}
"""Names that users of Flax, PyTorch and Keras type, without dashes and in lower case, by the text that they mean."""
