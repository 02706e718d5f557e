"""Write the page of all claims from the verdicts of the studies.

python -m experiments.claims.table benchmarks/results/claims --output benchmarks/results/claims.md

Why a bar was not met is not computed: readings of it stand in `readings.toml` in the folder, by study and bar.
"""

import argparse
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.claims.estimates import Interval
from experiments.claims.images import title
from experiments.claims.verdicts import Verdict

Document = Mapping[str, Any]
"""Content of a study's JSON file, see `study.write`."""

Readings = Mapping[str, Mapping[str, str]]
"""Why bars were not met, as we read the numbers: by study and bar."""

READINGS = "readings.toml"

MIXED = "differs"
"""Verdict on a claim whose networks have several."""

INTRODUCTION = """# Claims about batch norm, tried

Each claim is one that articles and papers repeat; each row says who makes it, what a study of ours saw, and the
verdict. Verdicts, numbers and sentences are computed from the measurements by the command of the study, and the
expectations ("bars") were written down before; a bar is met if all of the interval is within it. An effect is a mean
over n seeds with its 95 % interval; seeds share initial weights and batches between arms, and choices such as learning
rates are made on images that are not reported. Times are over n rounds or processes. Published numbers stand beside
ours and come from other networks and data.

- **holds**: the effect is there, in the direction of the claim.
- **holds when**: only under the condition that is given.
- **does not hold**: the effect is absent, or has the other direction.
- **not visible here**: the interval excludes neither.

A claim that was tried on several networks has a line for each of them. MNIST is averaged to 14 x 14 pixels unless a row
has another size.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the verdicts in a folder and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the .json files of studies")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="page to write")
    options = parser.parse_args(arguments)
    documents = read(options.folder)
    if not documents:
        parser.error(f"Expected .json files of studies in {options.folder}, found none. Run a study with `--output`.")
    try:
        readings = read_readings(options.folder, documents)
    except ValueError as error:
        parser.error(str(error))
    to_folder = os.path.relpath(options.folder, options.output.parent)
    options.output.write_text(page(documents, to_folder, readings))
    print(f"wrote {options.output}: {len(claims(documents))} claims, {len(documents)} studies")


def read(folder: Path) -> list[Document]:
    """Read the verdicts of all studies by name, each study's own network before its others."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)]


def read_readings(folder: Path, documents: Sequence[Document]) -> Readings:
    """Read why bars were not met; nothing where the folder has no readings.

    Raises:
        ValueError: If the file is not TOML of tables of texts, or a reading belongs to no bar that was not met.
    """
    file = folder / READINGS
    try:
        readings = tomllib.loads(file.read_text()) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected TOML in {file}, got: {error}.") from error
    known = {document["name"]: {bar["text"] for bar in _unmet(document)} for document in documents}
    for study, bars in readings.items():
        if not isinstance(bars, dict) or not all(isinstance(why, str) for why in bars.values()):
            raise ValueError(
                f"Expected for each study a table of bars with a text, got {bars!r} for {study!r} in {file}."
            )
        for text in bars:
            if text not in known.get(study, ()):
                raise ValueError(f"Expected readings of bars that are not met, got {text!r} of {study!r} in {file}.")
    return readings


def page(documents: Sequence[Document], folder: str, readings: Readings | None = None) -> str:
    """Write the page.

    Args:
        documents: Verdicts of studies.
        folder: Path from the page to the figures.
        readings: Why bars were not met; without any, the page has no list of these bars.
    """
    parts = [INTRODUCTION, counts(documents), _table(documents, folder)]
    parts += [_unmet_table(documents, readings)] if readings else []
    return "\n".join([*parts, *(_section(document, folder) for document in documents)])


PHRASES = {
    Verdict.HOLDS: ("holds", "hold"),
    Verdict.HOLDS_WHEN: ("holds under a condition", "hold under a condition"),
    Verdict.FAILS: ("does not hold", "do not hold"),
    Verdict.UNSEEN: ("is not visible here", "are not visible here"),
    MIXED: ("differs between networks", "differ between networks"),
}
"""Phrases for the numbers of verdicts, singular and plural."""


class Tried(NamedTuple):
    """A verdict on a claim, with the study that gives it."""

    document: Document
    finding: Document

    @property
    def network(self) -> str:
        """Return the name of the network, with that of the data and the size of the images if it is known."""
        plan, data = self.document["plan"], title(self.finding["data"])
        side = plan.get("side") or plan.get("options", {}).get("image_size")
        return f"{self.finding['network']}, {data}" + (f" {side} x {side}" if side else "")


def claims(documents: Sequence[Document]) -> dict[str, list[Tried]]:
    """Return the verdicts by claim: several where studies tried it on several networks."""
    found: dict[str, list[Tried]] = {}
    for document in documents:
        for finding in document["findings"]:
            found.setdefault(finding["claim"]["text"], []).append(Tried(document, finding))
    return found


def counts(documents: Sequence[Document]) -> str:
    """Count claims by verdict, and bars, a line."""
    verdicts = [_joined(tried) for tried in claims(documents).values()]
    bars = [bar["met"] for document in documents for bar in document["bars"]]
    counts = {verdict: verdicts.count(verdict) for verdict in PHRASES}
    said = ", ".join(f"{n} {PHRASES[verdict][n != 1]}" for verdict, n in counts.items() if n)
    claimed, of = (f"{len(some)} {word}{'s' * (len(some) != 1)}" for some, word in ((verdicts, "claim"), (bars, "bar")))
    return f"{claimed}: {said}. {sum(bars)} of {of} {'is' if 1 in (sum(bars), len(bars)) else 'are'} met.\n"


def _joined(tried: Sequence[Tried]) -> str:
    verdicts = {one.finding["verdict"] for one in tried}
    return verdicts.pop() if len(verdicts) == 1 else MIXED


def _table(documents: Sequence[Document], folder: str) -> str:
    lines = [
        "| claim | who says it | published | what we saw | verdict | command and figure |",
        "|---|---|---|---|---|---|",
    ]
    for tried in claims(documents).values():
        claim = tried[0].finding["claim"]
        cells = (
            [claim["text"]],
            [claim["source"]],
            [claim["published"] or "no number"],
            _seen(tried),
            _verdicts(tried),
            [f"{_link(one.document)}, [figure]({folder}/{one.document['name']}.svg)" for one in tried],
        )
        lines.append("| " + " | ".join("<br>".join(map(_cell, lines)) for lines in cells) + " |")
    return "\n".join(lines) + "\n"


def _seen(tried: Sequence[Tried]) -> list[str]:
    """Write the effects, a line a network; the name of an effect once where all lines have it."""
    lines = [f"{effect(one.finding['seen'])}; {one.network}" for one in tried]
    names = [f"{one.finding['effect']}: " for one in tried]
    shared = len(set(names)) == 1
    return [line if shared and i else name + line for i, (name, line) in enumerate(zip(names, lines, strict=True))]


def _verdicts(tried: Sequence[Tried]) -> list[str]:
    """Write the verdicts, a line a network; its name where there are several."""
    lines = []
    for one in tried:
        verdict, when = one.finding["verdict"], one.finding["when"]
        joint = " " if verdict == Verdict.HOLDS_WHEN else ": " if when else ""
        lines.append((f"{one.network}: " if len(tried) > 1 else "") + f"**{verdict}**{joint}{when}")
    return lines


def effect(seen: Mapping[str, Any]) -> str:
    """Write an effect and its interval, which is null where there are too few seeds."""
    known = {key: math.nan if value is None else value for key, value in seen.items()}
    return Interval(**known).text("{:.3g}")


def _unmet(document: Document) -> list[Document]:
    return [bar for bar in document["bars"] if not bar["met"]]


def _unmet_table(documents: Sequence[Document], readings: Readings) -> str:
    """List the bars that are not met, each with our reading of it."""
    lines = [
        "## Bars that are not met",
        "",
        "The last column is our reading of the numbers, not a computed verdict.",
        "",
        "| bar | what we saw | study | why, as we read it |",
        "|---|---|---|---|",
    ]
    for document in documents:
        for bar in _unmet(document):
            why = readings.get(document["name"], {}).get(bar["text"], "not examined")
            lines.append("| " + " | ".join(map(_cell, (bar["text"], bar["seen"], _link(document), why))) + " |")
    return "\n".join(lines) + "\n"


def _link(document: Document) -> str:
    return f"[{document['name']}](#{document['name'].replace('_', '-')})"


def _section(document: Document, folder: str) -> str:
    name, about = document["name"], document["about"]
    bars = [
        f"- {'met' if bar['met'] else '**not met**'}: {bar['text']}; seen {bar['seen']}" for bar in document["bars"]
    ]
    return "\n".join(
        [
            f"## {name.replace('_', '-')}",
            "",
            f"{document['title']} `{about['command']}` ({about['seconds']} s; jax {about['jax']}, {about['device']}; "
            f"[every number]({folder}/{name}.csv))",
            "",
            f"![{document['title']}]({folder}/{name}.svg)",
            "",
            *(f"{sentence}\n" for sentence in document["sentences"]),
            *bars,
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
