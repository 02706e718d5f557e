"""A request: options from the command line, a file or Python, turned into settings."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.errors import BadInput, nearest, one_line
from normlab.expect import Kind, check_distinct
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Value
from normlab.study.design.options import (
    ANY_NUMBER,
    FOLDER,
    NUMBER,
    TEXT,
    WHOLE,
    YES_NO,
    Given,
    Option,
    key_value,
    rate_of,
    seconds_of,
    stable,
    text_of,
    timeout_of,
)
from normlab.study.design.records import TUNING_SEEDS_FROM
from normlab.study.design.schema import is_list
from normlab.study.design.shard import Shard

DEFAULT_TIER = "quick"
COMPARED, BUDGET, PLACE, OUTPUT = "compared", "budget", "where it runs", "output"
"""Headings of the options in the help."""

EXECUTORS = ("local", "slurm", "ray")


def options(comparison: Comparison | None) -> dict[str, Option]:
    """Collect all options by name.

    Raises:
        BadInput: If a curve or a problem has a flag that is not `--` and a name of its own.
    """
    known = {option.name: option for option in _OPTIONS}
    for problem in comparison.problems if comparison else ():
        for option in problem.options:
            if known.setdefault(option.name, option) is not option or option.name in _NO_OPTIONS:
                raise BadInput(f"Expected the option of problem `{problem.name}` to be its own, got `{option.flag}`.")
    for curve in comparison.curves if comparison else ():
        option = _of_curve(curve)
        if not curve.factor.flag.startswith("--") or option.name in {*known, *_NO_OPTIONS}:
            raise BadInput(f"Expected the flag of curve `{curve.name}` to be its own, got `{curve.factor.flag}`.")
        known[option.name] = option
    return known


def from_flags(parsed: Mapping[str, Any], comparison: Comparison) -> dict[str, Given]:
    """Collect the options of a command line, with lists split at commas."""
    known = options(comparison)
    return {
        name: Given(_split(name, value) if known[name].many else value, f"`{known[name].flag}`")
        for name, value in parsed.items()
        if name in known
    }


def from_file(path: str, comparison: Comparison) -> dict[str, Given]:
    """Collect the options of a TOML file, whose keys are names of options with underscores or dashes.

    Raises:
        BadInput: If the file cannot be read, or has an unknown key or one key twice.
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise BadInput(f"Cannot read `{path}`: {error.strerror}. Give the path of a TOML file.") from error
    except ValueError as error:
        raise BadInput(
            f"Expected `{path}` to be TOML: {one_line(error, kind=False)}. Write lines such as `seeds = 5`."
        ) from error
    known = options(comparison)
    given: dict[str, Given] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in known:
            raise BadInput(f"Unknown key `{key}` in `{path}`. {nearest(name, known)}")
        if name in given:
            raise BadInput(f"Expected `{name}` in `{path}` once, got it with dashes and with underscores.")
        given[name] = Given(value, f"`{key}` in `{path}`")
    return given


def from_python(values: Mapping[str, object], comparison: Comparison) -> dict[str, Given]:
    """Collect the options of keyword arguments.

    Raises:
        BadInput: If an argument is no option.
    """
    known = options(comparison)
    for name in values:
        if name not in known:
            raise BadInput(f"Unknown argument `{name}`. {nearest(name, known)}")
    return {name: Given(value, f"`{name}`") for name, value in values.items()}


class Request:
    """Checked options of an invocation, with defaults for all others."""

    def __init__(self, comparison: Comparison, given: Mapping[str, Given]) -> None:
        """Convert all values.

        Raises:
            BadInput: If a value is of another kind than its option.
        """
        self.comparison, self.given, self._options = comparison, given, options(comparison)
        self._values = {name: self._options[name].checked(value) for name, value in given.items()}

    def get(self, name: str, default: object = None) -> Any:
        """Return the value of an option."""
        return self._values.get(name, default)

    def settings(self, source: str) -> Settings:
        """Resolve the settings.

        Args:
            source: Name or path of the comparison; empty for a comparison object of this process.

        Raises:
            BadInput: If a name is unknown, or two options contradict each other.
        """
        comparison = self.comparison
        name = self.get("tier", DEFAULT_TIER if DEFAULT_TIER in comparison.tiers else next(iter(comparison.tiers)))
        self._known("tier", [name], comparison.tiers)
        tier, curves = comparison.tiers[name], self._some("curves", [curve.name for curve in comparison.curves])
        untuned = comparison.default_learning_rate if tier.untuned else None
        names = [problem.name for problem in comparison.problems]
        problems = self._known("problems", self.get("problems", tier.problems or names), names)
        return Settings(
            comparison=comparison.name,
            source=stable(source),
            tier=name,
            problems=problems,
            norms=_norms(self.get("norms", tier.norms or comparison.norms)),
            curves=curves,
            values=self._curve_values(curves, tier.values),
            learning_rates=tuple(sorted(self.get("learning_rates", tier.learning_rates))),
            epochs=self.get("epochs", tier.epochs),
            tuning_seeds=self.get("tuning_seeds", tier.tuning_seeds),
            seeds=self._seeds(tier.seeds),
            extend=self.get("extend", tier.extend),
            default_learning_rate=self.get("default_learning_rate", untuned),
            devices=self.get("devices", 1),
            options=self._of_problems(problems),
        )

    def output(self, settings: Settings) -> Path:
        """Choose the folder for runs and report."""
        parts = [settings.comparison, settings.tier]
        parts += [
            option.folder(settings.options[name])
            for name, option in self._options.items()
            if option.folder and name in settings.options
        ]
        shard = self.get("shard")
        return self.get("output", Path("results") / f"{'-'.join(parts)}{shard.suffix if shard else ''}")

    def _some(self, option: str, known: Sequence[str]) -> tuple[str, ...]:
        return self._known(option, self.get(option, known), known)

    def _known(self, option: str, names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
        for name in names:
            if name not in known:
                raise BadInput(f"Unknown {option.removesuffix('s')} `{name}`. {nearest(name, known)}")
        return tuple(names)

    def _curve_values(
        self, curves: Sequence[str], of_tier: Mapping[str, tuple[Value, ...]]
    ) -> Mapping[str, tuple[Value, ...]]:
        values: dict[str, tuple[Value, ...]] = {}
        for curve in self.comparison.curves:
            option = _of_curve(curve)
            if curve.name in curves:
                values[curve.name] = self.get(option.name, of_tier.get(curve.name, curve.factor.values))
            elif option.name in self.given:
                where = self.given[option.name].where
                raise BadInput(f"Expected {where} only with its curve `{curve.name}`, which `curves` leaves out.")
        return {name: values[name] for name in curves}

    def _of_problems(self, problems: Sequence[str]) -> dict[str, object]:
        """Collect the values of the options of the problems."""
        values: dict[str, object] = {}
        for problem in self.comparison.problems:
            named = {option.name: self.get(option.name) for option in problem.options if option.name in self.given}
            if problem.name in problems:
                values |= named
        for option in {option.name for problem in self.comparison.problems for option in problem.options}:
            if option in self.given and option not in values:
                raise BadInput(
                    f"Expected {self.given[option].where} only with its problem, which is not among `problems`."
                )
        return values

    def _seeds(self, default: int) -> int:
        seeds = self.get("seeds", default)
        if seeds > TUNING_SEEDS_FROM:
            where = self.given["seeds"].where
            raise BadInput(
                f"Expected {where} to be at most {TUNING_SEEDS_FROM} (the others tune), got {seeds}. Choose fewer."
            )
        return seeds


def to_toml(settings: Settings, comparison: Comparison) -> str:
    """Write settings as a file for `normlab run NAME_OR_FILE --config`."""
    values: dict[str, object] = {
        "tier": settings.tier,
        "problems": settings.problems,
        "norms": settings.norms,
        "curves": settings.curves,
        **{_of_curve(c).name: settings.values[c.name] for c in comparison.curves if c.name in settings.curves},
        "learning_rates": settings.learning_rates,
        "epochs": settings.epochs,
        "tuning_seeds": settings.tuning_seeds,
        "seeds": settings.seeds,
        "extend": settings.extend,
        "default_learning_rate": "none" if settings.default_learning_rate is None else settings.default_learning_rate,
        "devices": settings.devices,
        **settings.options,
    }
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    return "\n".join([f"# normlab run {_comment(settings.source)} --config THIS_FILE", *lines, ""])


def _of_curve(curve: Curve) -> Option:
    """Make the option of a curve's values, of the kind of the declared values."""
    factor = curve.factor
    numbers = [value for value in factor.values if not isinstance(value, str)]
    kind = WHOLE if all(isinstance(value, int) for value in numbers) else NUMBER
    kind = kind if all(value > 0 for value in numbers) else ANY_NUMBER
    return Option(
        name=factor.flag.removeprefix("--").replace("-", "_"),
        kind=kind if len(numbers) == len(factor.values) else TEXT,
        help=f"values of the curve `{curve.name}`, {factor.label}: {' '.join(map(str, factor.values))}",
        many=True,
        metavar="VALUE",
    )


def _shard(value: object) -> Shard:
    return Shard.parse(text_of(value))


def _executor(value: object) -> str:
    name = text_of(value)
    if name not in EXECUTORS:
        raise BadInput(f"Unknown executor `{name}`. {nearest(name, EXECUTORS)}")
    return name


def norm_of(value: object) -> str:
    """Convert a norm to its string.

    Raises:
        BadInput: If there is no such norm, or its options cannot be read.
    """
    from normlab import norms

    if not isinstance(value, str | norms.Norm):
        raise ValueError(value)
    try:
        return str(norms.get(value))
    except norms.UnknownNorm as error:
        name, known = str(value).partition(":")[0], {*norms.names(), *norms.cell_names()}
        raise BadInput(f"Unknown norm `{name}`. {nearest(name, known, 'See `normlab list norms`.')}") from error
    except (ValueError, TypeError) as error:
        raise BadInput(f"{one_line(error)} See `normlab list norms`.") from error


_OPTIONS = (
    Option(
        name="norms",
        kind=Kind("a norm", norm_of, "Name one such as `batch`; `normlab list norms` shows them all."),
        many=True,
        metavar="NORM",
        group=COMPARED,
        help="e.g. `batch group:num_groups=8` (see `normlab list norms`)",
    ),
    Option(
        name="problems",
        kind=TEXT,
        many=True,
        metavar="NAME",
        group=COMPARED,
        help="some of the comparison's problems (see `normlab list problems`)",
    ),
    Option(name="curves", kind=TEXT, many=True, metavar="NAME", group=COMPARED, help="some of the comparison's curves"),
    Option(
        name="default_learning_rate",
        kind=Kind("a positive number or `none`", rate_of, "Give one such as 0.1."),
        metavar="RATE",
        group=COMPARED,
        help="evaluate every norm untuned at this rate, too; `none` for no such row",
    ),
    Option(
        name="tier",
        kind=TEXT,
        metavar="NAME",
        group=BUDGET,
        help="smoke, quick, standard or paper (default: quick); `normlab list tiers` shows runs and minutes of each",
    ),
    Option(
        name="seeds",
        kind=WHOLE,
        metavar="N",
        group=BUDGET,
        help="evaluation seeds; more keep the runs that are there. Fewer than 5 support no recommendation, and fewer "
        "than 29 (46 with 7 norms) none that is sure, nor that norms are equivalent",
    ),
    Option(
        name="tuning_seeds", kind=WHOLE, metavar="N", group=BUDGET, help="seeds for every learning rate of the grid"
    ),
    Option(name="learning_rates", kind=NUMBER, many=True, metavar="RATE", group=BUDGET, help="the grid of every norm"),
    Option(
        name="extend", kind=YES_NO, group=BUDGET, help="let the grid of a column grow where an optimum lies at its end"
    ),
    Option(name="epochs", kind=WHOLE, metavar="N", group=BUDGET, help="passes over the training set"),
    Option(
        name="time_budget",
        kind=Kind("a duration as in 90s, 10min or 1h30m", seconds_of, "Write a number and its unit, as in `10min`."),
        metavar="TIME",
        group=BUDGET,
        help="stop after this time (90s, 10min, 1h30m), and report; the same command resumes from there",
    ),
    Option(
        name="run_timeout",
        kind=Kind("a duration as in 90s, 10min or 1h30m", timeout_of, "Write a number and its unit, as in `10min`."),
        metavar="TIME",
        group=BUDGET,
        help="record a run that takes longer as `timeout`, and stop its worker (default: 10 times the median run of "
        "its column, at least 10 minutes; a day until the first of them has ended)",
    ),
    Option(
        name="retry_failed",
        kind=YES_NO,
        group=BUDGET,
        help="run again what ended in `error`, `oom` or `timeout`; divergence and collapse are results and stay",
    ),
    Option(
        name="jobs",
        kind=WHOLE,
        metavar="N",
        group=PLACE,
        help="configurations at a time, each in a worker of its own; on GPUs one worker each (default: one a core on "
        "CPU, 1 on GPU, 16 on SLURM, one for every CPU of a Ray cluster)",
    ),
    Option(
        name="lanes",
        kind=WHOLE,
        metavar="N",
        group=PLACE,
        help="train N runs of a configuration as one stack (default: as many as a probe finds fastest on GPU and TPU, "
        "one after another on CPU)",
    ),
    Option(
        name="devices",
        kind=WHOLE,
        metavar="N",
        group=PLACE,
        help="train every model on N devices, each with its share of the batch; CPUs pretend to have as many",
    ),
    Option(
        name="executor",
        kind=Kind("the name of an executor", _executor),
        metavar="NAME",
        group=PLACE,
        help="where workers run: local (this machine, the default), slurm or ray",
    ),
    Option(
        name="slurm",
        kind=Kind("KEY=VALUE as in partition=gpu", key_value, "Put `=` between them."),
        many=True,
        metavar="KEY=VALUE",
        group=PLACE,
        help="options of the jobs, e.g. `partition=gpu timeout_min=60`, as submitit names them; `cluster=local` tries "
        "it on this machine",
    ),
    Option(
        name="ray_address",
        kind=TEXT,
        metavar="ADDRESS",
        group=PLACE,
        help="join a running Ray cluster, as HOST:PORT or `auto` (default: $RAY_ADDRESS, else one of its own)",
    ),
    Option(
        name="shard",
        kind=Kind("i/n with 1 <= i <= n, as in 1/2", _shard, "Count parts from 1."),
        metavar="I/N",
        group=PLACE,
        help="run the i-th of n parts, into a folder of its own; `normlab merge` merges them",
    ),
    Option(
        name="coordinator",
        kind=TEXT,
        metavar="HOST:PORT",
        group=PLACE,
        help="train every model on the `--devices` of several processes; where process 1 listens; "
        "$NORMLAB_GROUP_SECRET is the same text for all, needless at a loopback address",
    ),
    Option(
        name="process",
        kind=TEXT,
        metavar="I/N",
        group=PLACE,
        help="which of those processes this is, from 1/N to N/N",
    ),
    Option(
        name="output",
        kind=FOLDER,
        metavar="FOLDER",
        group=OUTPUT,
        help="where runs and report go (default: results/NAME-TIER, and the data that were chosen)",
    ),
    Option(name="open", kind=YES_NO, group=OUTPUT, help="show the report in the browser"),
)

_NO_OPTIONS = ("help", "source", "config", "dry_run")
"""Further arguments of the command line, which are no options."""


def _split(name: str, texts: Sequence[str]) -> list[str]:
    """Split a list at blanks and commas; norms and pairs also contain commas themselves."""
    from normlab import norms

    if name == "slurm":
        return list(texts)
    parts = norms.parse_list(",".join(texts)) if name == "norms" else ",".join(texts).split(",")
    return [part for part in parts if part]


def _norms(values: Iterable[object]) -> tuple[str, ...]:
    names = tuple(map(norm_of, values))
    check_distinct("`norms`", names)
    return names


def _toml(value: object) -> str:
    if is_list(value):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


def _comment(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text) or "NAME_OR_FILE"
