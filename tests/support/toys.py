"""The comparison of `toy.py` as text, settings for it, and a record of one of its runs."""

from pathlib import Path
from typing import Any

from normlab.study.design.comparison import Settings
from normlab.study.design.records import TUNE, Configuration, Record, Run, run_key

TOY = (Path(__file__).parent / "toy.py").read_text()


def settings_for(source: Path | str, **changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "comparison": "toy",
        "source": str(source),
        "tier": "quick",
        "problems": ("scalar",),
        "norms": ("none", "batch"),
        "curves": ("deployed",),
        "values": {"deployed": (2,)},
        "learning_rates": (0.01, 0.1, 0.3),
        "epochs": 3,
        "tuning_seeds": 2,
        "seeds": 3,
        "extend": False,
    }
    return Settings(**{**fields, **changes})


def a_record(**changes: Any) -> Record:
    configuration = Configuration(
        problem="scalar", norm="none", config=(("batch_size", 2), ("norm", "none"), ("rate", 0.1))
    )
    run = Run(configuration=configuration, stage=TUNE, learning_rate=0.1, seed=1000)
    of_problem = {"code": "x", "data": "y"}
    fields: dict[str, Any] = {"status": "diverged", "metrics": {"validation": None}, "cost": {"run": 0.5}, **changes}
    return Record(key=run_key(run, of_problem), run=run, identity=of_problem, **fields)
