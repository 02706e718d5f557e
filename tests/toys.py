"""The comparison of `toy.py` as text, and settings for it."""

from pathlib import Path
from typing import Any

from normlab.study.design.comparison import Settings

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
