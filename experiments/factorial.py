"""Do claims about batch norm hold that one factor decides?

Place of the norm, dropout, initial weights, number of examples, depth, norms on every k-th layer: these are comparisons
in `benchmarks/`, which tune learning rates for every norm at every value. This script judges claims by their results.

    normlab run placement --tier standard --output results/placement
    python experiments/factorial.py results/placement --output claims

Each folder gives NAME.json, .csv, .txt, .svg and .png, as the other studies write them; NAME-NETWORK with
`--network NETWORK`. The script reads the comparisons placement, dropout, initialization, training_size, depth and
every_layer.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.claims import factorial_figures as figures
from experiments.claims.estimates import SIGNED, Interval, average, points, ratio, share
from experiments.claims.factorial import (
    Cell,
    Cells,
    Extent,
    Found,
    Net,
    failing_rates,
    largest_rate,
    read,
    rows,
    tolerable,
)
from experiments.claims.study import Study, text, write
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Verdict, judged, signed
from normlab.errors import BadInput
from normlab.study.design.factors import Value

BEFORE = Claim(
    key="before",
    text="Batch norm belongs before the activation.",
    source="Ioffe & Szegedy 2015, section 3.2; most tutorials",
)
DEAD_ZONE = Claim(
    key="dead_zone",
    text="With sigmoid units batch norm must stand before the activation, to keep them out of the flat parts.",
    source="widely read surveys",
)
SIGMOID = Claim(
    key="sigmoid",
    text="Deep networks of sigmoid units train with batch norm, and not without.",
    source="Ioffe & Szegedy 2015, section 4.2.2",
    published="Inception with sigmoid units: 69.8 % with batch norm, chance without",
)
REPLACES = Claim(
    key="replaces_dropout",
    text="With batch norm dropout can be left out.",
    source="Ioffe & Szegedy 2015, section 4.2.1; most tutorials",
)
REGULARIZES = Claim(
    key="regularizes",
    text="Batch norm replaces dropout because it regularizes: it fits the training examples less well.",
    source="Ioffe & Szegedy 2015, section 3.4; widely read tutorials",
)
HARMS = Claim(
    key="dropout_harms", text="Dropout harms a network with batch norm.", source="Li et al. 2019; widely read surveys"
)
RATES = Claim(
    key="rates",
    text="Batch norm tolerates larger learning rates.",
    source="Ioffe & Szegedy 2015, section 3.3; most tutorials",
    published="5 and 30 times the baseline's rate",
)
SCALE = Claim(
    key="initial_scale",
    text="Batch norm makes training robust to the scale of the initial weights.",
    source="Ioffe & Szegedy 2015, section 1; most tutorials",
)
LESS_DATA = Claim(
    key="less_data",
    text="Networks with batch norm need fewer examples to generalize.",
    source="widely read tutorials",
)
TOO_DEEP = Claim(
    key="too_deep",
    text="With batch norm and without skip connections, networks of about 50 layers do not train.",
    source="Yang et al. 2019",
)
BLAME = Claim(
    key="blame",
    text="The fault is batch norm's: plain networks without it train deeper.",
    source="reading of Yang et al. 2019",
)
EVERY = Claim(
    key="every_layer",
    text="A norm at every second or third layer is enough.",
    source="widely read question-and-answer pages",
)

MARGIN = 0.8
"""Points by which batch norm alone may be worse than dropout alone, and still replace it."""
ENOUGH = 0.4
"""Points that a missing norm may cost."""
APART = 10.0
"""Points between a network that trains and one that does not."""


def placement(plan: Extent, net: Net) -> Judgement:
    """Judge the place of the norm."""
    if not net.has("placement", ["batch"], ["before", "after"]):
        return NOTHING
    cells = net.cells["placement"]
    before, after = cells["batch", "before"], cells["batch", "after"]
    sigmoid, seen = net.name == "mlp-sigmoid", points(after.errors, before.errors)
    effect = "test error with batch norm after - before, points"
    findings = [_finding(plan, net, DEAD_ZONE if sigmoid else BEFORE, signed(seen), effect, seen)]
    conclusion = {Verdict.HOLDS: "Before is better", Verdict.FAILS: "After is better"}
    sentences = [
        f"{net.title}, batch norm: test error {_error(before)} before the activation, {_error(after)} after it. "
        f"{conclusion.get(signed(seen), 'No difference is visible')}: {seen.text(SIGNED)} points."
    ]
    bars = []
    if not sigmoid and net.name == "mlp":
        bars = [Bar.of(f"{net.title}: after - before within 1.5 points", seen, SIGNED, least=-1.5, most=1.5)]
    elif sigmoid:
        bars = [Bar.of(f"{net.title}: after - before at most -0.5 points", seen, SIGNED, most=-0.5)]
    if net.has("placement", ["layer"]):
        other = points(cells["layer", "after"].errors, cells["layer", "before"].errors)
        sentences.append(f"{net.title}, layer norm after - before: {other.text(SIGNED)} points.")
    if net.has("placement", ["none"]):
        none = cells["none", "before"]
        failing = ", ".join(f"{rate:g}" for rate in failing_rates(none))
        every = f"; at learning rates {failing} every run fails" if failing else ""
        sentences.append(f"{net.title}, no norm: test error {_error(none)} at a learning rate of {none.rate:g}{every}.")
        if sigmoid:
            findings.append(_without_norm(plan, net, none, before))
            mean = average(100 * none.errors)
            bars.append(Bar.of(f"{net.title}: no norm at 80 % or more", mean, "{:.1f}", least=80))
    return Judgement(findings=tuple(findings), bars=tuple(bars), sentences=tuple(sentences))


def _without_norm(plan: Extent, net: Net, none: Cell, batch: Cell) -> Finding:
    if none.failed.all() and not batch.failed.any():
        verdict = Verdict.HOLDS
    elif not none.failed.any() or batch.failed.all():
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.UNSEEN
    seen = points(none.errors, batch.errors)
    when = "" if verdict is Verdict.HOLDS else "four layers with He's initial weights; `steps_to_target` has ten layers"
    return _finding(plan, net, SIGMOID, verdict, "test error without - with, points", seen, when)


def dropout(plan: Extent, net: Net) -> Judgement:
    """Judge dropout beside batch norm and in its place."""
    curves = [curve for curve in TRAINED_ON if net.has(curve, ["none", "batch"], [0]) and len(net.values[curve]) > 1]
    if not curves:
        return NOTHING
    gaps, harms, losses = ({} for _ in range(3))
    for curve in curves:
        cells, values = net.cells[curve], net.values[curve]
        batch, none = cells["batch", 0], cells["none", 0]
        gaps[curve] = points(batch.errors, cells["none", _best_rate(cells, "none", values)].errors)
        harms[curve] = points(cells["batch", _best_rate(cells, "batch", values)].errors, batch.errors)
        losses[curve] = ratio(batch.losses, none.losses)
    findings = (
        _over_curves(
            *(
                plan,
                net,
                REPLACES,
                f"test error, batch norm - no norm with its best dropout, points; the claim allows {MARGIN:g}",
                gaps,
            ),
            good=lambda gap: gap.high <= MARGIN,
            bad=lambda gap: gap.above(MARGIN),
        ),
        _over_curves(
            *(plan, net, REGULARIZES, "training loss, batch norm / no norm", losses),
            good=lambda loss: loss.above(1),
            bad=lambda loss: loss.below(1),
        ),
        _over_curves(
            *(plan, net, HARMS, "test error, batch norm with its best dropout - without, points", harms),
            good=lambda harm: harm.above(0),
            bad=lambda harm: harm.below(0),
        ),
    )
    bars = _dropout_bars(net, gaps, losses) if net.name == "mlp" else ()
    sentences = [
        f"{net.title}, {TRAINED_ON[curve]}: batch norm without dropout minus no norm with its best dropout: "
        f"{gaps[curve].text(SIGNED)} points; the best dropout changes the error of batch norm by "
        f"{harms[curve].text(SIGNED)} points; training loss with batch norm is {losses[curve].text('{:.2f}')} times "
        f"that without. No norm: {_along(net, curve, 'none')}; batch norm: {_along(net, curve, 'batch')}."
        for curve in curves
    ]
    return Judgement(findings=findings, bars=bars, sentences=tuple(sentences))


TRAINED_ON = {"all": "all examples", "few": "a tenth of the examples", "longer": "four times the updates"}


def _dropout_bars(net: Net, gaps: dict[str, Interval], losses: dict[str, Interval]) -> tuple[Bar, ...]:
    """Return the bars, which are about the two numbers of examples."""
    curves = [curve for curve in ("all", "few") if curve in gaps]
    bars = [
        Bar.of(
            f"{net.title}, {TRAINED_ON[curve]}: batch norm - no norm with its best dropout at most {MARGIN:g} points",
            gaps[curve],
            SIGNED,
            most=MARGIN,
        )
        for curve in curves
    ]
    bars += [
        Bar(
            f"{net.title}, {TRAINED_ON[curve]}: training loss of batch norm below that without",
            losses[curve].text("{:.2f}"),
            losses[curve].below(1),
        )
        for curve in curves
    ]
    if net.has("all", ["batch"], [0.3]):
        cells = net.cells["all"]
        cost = points(cells["batch", 0.3].errors, cells["batch", 0].errors)
        bars.append(
            Bar(f"{net.title}, all examples: dropout 0.3 costs batch norm points", cost.text(SIGNED), cost.low > 0)
        )
    return tuple(bars)


def initialization(plan: Extent, net: Net) -> Judgement:
    """Judge the tolerance of learning rates, and of scales of the initial weights."""
    if not net.has("scale", ["none", "batch"]):
        return NOTHING
    parts = []
    if net.has("scale", values=[1]):
        parts.append(_rates(plan, net))
    if len(net.values["scale"]) > 1 and net.cells["scale"]["batch", net.values["scale"][0]].untuned.size:
        parts.append(_scales(plan, net))
    return merged(parts)


def _rates(plan: Extent, net: Net) -> Judgement:
    cells = {norm: net.cells["scale"][norm, 1] for norm in ("none", "batch")}
    largest = {norm: largest_rate(cell) for norm, cell in cells.items()}
    seen = ratio(largest["batch"], largest["none"])
    finding = _finding(
        *(plan, net, RATES, signed(seen, 1.0)),
        "largest learning rate of the grid with up to twice the lowest error, at most halfway to chance, batch norm / "
        "no norm",
        seen,
    )
    end = max(cells["batch"].tuning)
    grid = " at least" if (largest["batch"] == end).any() else ""
    sentence = (
        f"{net.title}: the largest learning rate with at most twice the lowest validation error, at most halfway to "
        f"chance, is {_number(largest['none'])} without a norm and{grid} {_number(largest['batch'])} with "
        f"batch norm (geometric means, n = {seen.n})."
    )
    bar = Bar.of(f"{net.title}: batch norm tolerates at least 3 times the rate", seen, "{:.1f}", least=3)
    return Judgement(findings=(finding,), bars=(bar,) if net.name == "mlp" else (), sentences=(sentence,))


def _scales(plan: Extent, net: Net) -> Judgement:
    scales = [float(scale) for scale in net.values["scale"] if not isinstance(scale, str)]
    errors = {
        norm: np.stack([net.cells["scale"][norm, scale].untuned for scale in scales], 1) for norm in ("none", "batch")
    }
    chance = net.cells["scale"]["batch", net.values["scale"][0]].chance
    decades = {norm: np.array([_decades(scales, seed, chance) for seed in found]) for norm, found in errors.items()}
    seen = average(decades["batch"] - decades["none"])
    effect = "decades of scales with up to 3 times the lowest error, at most halfway to chance, batch norm - no norm"
    means = {norm: 100 * found.mean(0) for norm, found in errors.items()}
    sentences = []
    for norm, name in (("none", "no norm"), ("batch", "batch norm")):
        along = ", ".join(f"{mean:.1f} at {scale:g}" for mean, scale in zip(means[norm], scales, strict=True))
        tuned = ", ".join(f"{100 * net.cells['scale'][norm, s].errors.mean():.1f}" for s in scales)
        width = average(decades[norm])
        sentences.append(
            f"{net.title}, {name}: test error in % at the fixed learning rate: {along}; up to 3 times the lowest, at "
            f"most halfway to chance, over {width.text('{:.1f}')} decades. With the learning rate "
            f"tuned for each scale: {tuned}."
        )
    bars = _scale_bars(net, scales, errors, average(decades["batch"])) if net.name == "mlp" else ()
    finding = _finding(plan, net, SCALE, signed(seen), effect, seen)
    return Judgement(findings=(finding,), bars=bars, sentences=tuple(sentences))


def _scale_bars(net: Net, scales: Sequence[float], errors: dict[str, np.ndarray], decades: Interval) -> tuple[Bar, ...]:
    bars = [
        Bar.of(
            f"{net.title}: batch norm within a factor 3 of its best over at least 2 decades",
            decades,
            "{:.1f}",
            least=2,
        )
    ]
    if {0.01, 10.0} <= set(scales):
        seen = {norm: [average(100 * of) for of in found.T] for norm, found in errors.items()}
        inner = [found for found, scale in zip(seen["batch"], scales, strict=True) if 0.01 <= scale <= 10]
        worst = max(inner, key=lambda found: found.high)
        ends = [seen["none"][scales.index(end)] for end in (0.01, 10.0)]
        bars.append(Bar.of(f"{net.title}: batch norm at most 15 % from scale 0.01 to 10", worst, "{:.1f}", most=15))
        bars.append(
            Bar(
                f"{net.title}: no norm at 60 % or more at both ends",
                " and ".join(end.text("{:.1f}") for end in ends),
                min(end.low for end in ends) >= 60,
            )
        )
    return tuple(bars)


def _decades(scales: Sequence[float], errors: np.ndarray, chance: float, factor: float = 3.0) -> float:
    """Return the width of the scales around the best with a tolerable error, in decades."""
    low = high = int(errors.argmin())
    fine = tolerable(errors, factor, chance)
    while low > 0 and fine[low - 1]:
        low -= 1
    while high < len(scales) - 1 and fine[high + 1]:
        high += 1
    return float(np.log10(scales[high] / scales[low]))


def training_size(plan: Extent, net: Net) -> Judgement:
    """Judge the number of examples."""
    if not net.has("size", ["none", "batch"]) or len(net.values["size"]) < 2:
        return NOTHING
    cells, sizes = net.cells["size"], sorted(int(size) for size in net.values["size"])
    gaps = {size: points(cells["batch", size].errors, cells["none", size].errors) for size in sizes}
    shares = {size: 100 * (1 - cells["batch", size].errors / cells["none", size].errors) for size in sizes}
    fewest, most = gaps[sizes[0]], gaps[sizes[-1]]
    gains = [size for size in sizes if gaps[size].high < 0]
    if fewest.high < 0:
        verdict = Verdict.HOLDS
    elif fewest.low > 0 or (gains and fewest.size <= 1):
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.UNSEEN
    when = f"a gain is visible from {gains[0]:,} examples on" if gains and verdict is Verdict.FAILS else ""
    effect = f"test error at {sizes[0]:,} examples, batch norm - no norm, points"
    change = average(shares[sizes[0]] - shares[sizes[-1]])
    trend = "grows" if change.high < 0 else "shrinks" if change.low > 0 else "does not visibly change"
    sentences = [
        f"{net.title}, batch norm - no norm: "
        + "; ".join(
            f"{gaps[size].text(SIGNED)} points of {_error(cells['none', size])} at {size:,} examples" for size in sizes
        )
        + f". The share of errors that batch norm removes {trend} with the examples: {shares[sizes[0]].mean():.0f} % "
        f"at {sizes[0]:,}, {shares[sizes[-1]].mean():.0f} % at {sizes[-1]:,}."
    ]
    bars = [
        Bar.of(f"{net.title}: at {sizes[0]:,} examples within 1 point", fewest, SIGNED, least=-1, most=1),
        Bar.of(f"{net.title}: at {sizes[-1]:,} examples at most -0.3 points", most, SIGNED, most=-0.3),
    ]
    return Judgement(
        findings=(_finding(plan, net, LESS_DATA, verdict, effect, fewest, when),),
        bars=tuple(bars) if net.name == "mlp" else (),
        sentences=tuple(sentences),
    )


def depth(plan: Extent, net: Net) -> Judgement:
    """Judge the depth to which networks train."""
    if not net.has("plain", ["batch"]):
        return NOTHING
    plain, depths = net.cells["plain"], sorted(int(depth) for depth in net.values["plain"])
    deepest, findings, bars = depths[-1], [], []
    sentences = [f"{net.title}, plain, {_named(norm)}: {_along(net, 'plain', norm)}." for norm in net.norms]
    if net.has("residual", ["batch"], [deepest]):
        residual = net.cells["residual"]
        seen = points(plain["batch", deepest].errors, residual["batch", deepest].errors)
        effect = f"test error at {deepest} layers with batch norm, plain - residual, points; the claim needs {APART:g}"
        findings.append(_finding(plan, net, TOO_DEEP, signed(seen, APART), effect, seen))
        sentences += [f"{net.title}, residual, {_named(norm)}: {_along(net, 'residual', norm)}." for norm in net.norms]
    if net.has("plain", ["none"]):
        seen = points(plain["batch", deepest].errors, plain["none", deepest].errors)
        effect = f"test error at {deepest} layers, plain, batch norm - no norm, points; the claim needs {APART:g}"
        both = f"{_error(plain['batch', deepest])} with batch norm, {_error(plain['none', deepest])} without"
        findings.append(_finding(plan, net, BLAME, signed(seen, APART), effect, seen, both))
        words = {Verdict.HOLDS: "makes more errors than", Verdict.FAILS: "makes fewer errors than"}
        than = words.get(signed(seen), "does not differ visibly from")
        sentences.append(
            f"At {deepest} layers a plain network with batch norm {than} one without a norm: "
            f"{seen.text(SIGNED)} points."
        )
    bars = _depth_bars(net, plain, depths)
    return Judgement(findings=tuple(findings), bars=tuple(bars), sentences=tuple(sentences))


def _depth_bars(net: Net, plain: Cells, depths: Sequence[int]) -> list[Bar]:
    """Return the bars, which are about accuracy."""
    right = {depth: average(100 * (1 - plain["batch", depth].errors)) for depth in depths}
    bars = []
    for depth, most in ((32, 65), (48, 40)):
        if depth in right:
            text = f"batch norm, plain, {depth} layers: accuracy at most {most} %"
            bars.append(Bar.of(text, right[depth], "{:.1f}", most=most))
    if 4 in right:
        bars.append(Bar.of("batch norm, plain, 4 layers: accuracy at least 90 %", right[4], "{:.1f}", least=90))
    if 48 in right and net.has("residual", ["batch"], [48]):
        skip = average(100 * (1 - net.cells["residual"]["batch", 48].errors))
        least = max(70, right[48].high + 40)
        text = "batch norm, residual, 48 layers: accuracy at least 70 % and plain + 40"
        bars.append(Bar.of(text, skip, "{:.1f}", least=least))
    return bars


ORDINALS = {2: "2nd", 3: "3rd"}


def every_layer(plan: Extent, net: Net) -> Judgement:
    """Judge norms on every k-th layer."""
    if not net.has("every", ["none", "batch"], [1, 2]):
        return NOTHING
    cells, values = net.cells["every"], sorted(int(k) for k in net.values["every"])
    costs = {k: points(cells["batch", k].errors, cells["batch", 1].errors) for k in values}
    gain = points(cells["none", 1].errors, cells["batch", 1].errors)
    kept = {k: 1 - costs[k].mean / gain.mean if gain.mean else float("nan") for k in values}
    second, third = costs[2], kept.get(3)
    gains = gain.above(0)
    if not gains and all(costs[k].below(0) for k in (2, 3) if k in costs):
        verdict, when = Verdict.HOLDS, "fewer norms make fewer errors here, and a norm on each has no visible gain"
    elif not gains:
        verdict, when = Verdict.UNSEEN, "batch norm has no visible gain here that could be kept"
    elif second.high <= ENOUGH and (third is None or third < 0.5):
        verdict, when = Verdict.HOLDS_WHEN, "every second layer has one"
    elif second.high <= ENOUGH:
        verdict, when = Verdict.HOLDS, ""
    else:
        verdict, when = (Verdict.FAILS if second.low > ENOUGH else Verdict.UNSEEN), ""
    effect = f"test error, norms on every second layer - on every layer, points; the claim allows {ENOUGH:g}"
    sentences = [
        f"{net.title}: test error {_error(cells['batch', 1])} with batch norm on every layer, "
        f"{_error(cells['none', 1])} without a norm, {gain.text(SIGNED)} points{' more' * gains}. With norms "
        + "; ".join(
            f"on every {ORDINALS.get(k, f'{k}th')} layer {costs[k].text(SIGNED)} points"
            + (f", {kept[k]:.0%} of the gain kept" if gains else "")
            for k in values[1:]
        )
        + "."
    ]
    bars = []
    if net.name == "mlp":
        bars.append(
            Bar.of(
                f"{net.title}: every second layer within {ENOUGH:g} points", second, SIGNED, least=-ENOUGH, most=ENOUGH
            )
        )
        if third is not None:
            none, every, thirds = (cells[key].errors for key in (("none", 1), ("batch", 1), ("batch", 3)))
            beyond = points(none - thirds, (none - every) / 2)
            seen = f"{third:.0%}, {beyond.text(SIGNED)} points beyond half"
            bars.append(Bar(f"{net.title}: every third layer keeps half of the gain", seen, beyond.low >= 0))
        bars += _rate_bar(net, cells, values)
    return Judgement(
        findings=(_finding(plan, net, EVERY, verdict, effect, second, when),),
        bars=tuple(bars),
        sentences=tuple(sentences),
    )


def _rate_bar(net: Net, cells: Cells, values: Sequence[int], rate: float = 0.3) -> list[Bar]:
    if rate not in cells["none", 1].tuning:
        return []
    tolerated = {k: _tolerates(cells["batch", k], rate) for k in values}
    none = _tolerates(cells["none", 1], rate)
    trained = [str(k) for k, fine in tolerated.items() if fine]
    seen = f"batch norm at k = {', '.join(trained) or 'none'}; no norm {'trains' if none else 'fails'}"
    return [
        Bar(
            f"{net.title}: at a learning rate of {rate:g} every k trains, no norm fails",
            seen,
            all(tolerated.values()) and not none,
        )
    ]


def _tolerates(cell: Cell, rate: float) -> bool:
    medians = np.array([np.median(errors) for errors in cell.tuning.values()])
    return bool(tolerable(medians, 2.0, cell.chance)[list(cell.tuning).index(rate)])


NOTHING = Judgement(findings=(), bars=(), sentences=())


def merged(parts: Iterable[Judgement]) -> Judgement:
    """Join judgements."""
    there = tuple(parts)
    return Judgement(
        findings=tuple(finding for part in there for finding in part.findings),
        bars=tuple(bar for part in there for bar in part.bars),
        sentences=tuple(sentence for part in there for sentence in part.sentences),
    )


def _over_curves(
    plan: Extent,
    net: Net,
    claim: Claim,
    effect: str,
    seen: dict[str, Interval],
    *,
    good: Callable[[Interval], bool],
    bad: Callable[[Interval], bool],
) -> Finding:
    """Judge a claim that may hold on some training sets alone; the effect is that on the first of them."""
    by_key = {(net.name, TRAINED_ON[curve]): found for curve, found in seen.items()}
    headline = next((key for key, found in by_key.items() if good(found)), next(iter(by_key)))
    titles = {net.name: net.title}
    return judged(
        claim, effect, by_key, list(by_key), good=good, bad=bad, headline=headline, titles=titles, data=plan.data
    )


def _finding(
    plan: Extent, net: Net, claim: Claim, verdict: Verdict, effect: str, seen: Interval, when: str = ""
) -> Finding:
    return Finding(claim=claim, verdict=verdict, when=when, effect=effect, seen=seen, network=net.title, data=plan.data)


def _best_rate(cells: Cells, norm: str, values: Sequence[Value]) -> Value:
    """Choose the dropout rate above 0 by validation errors."""
    return min((value for value in values if value != 0), key=lambda value: cells[norm, value].validation.mean())


def _error(cell: Cell) -> str:
    failed = f", {share(cell.failed)} runs failed" if cell.failed.any() else ""
    return f"{100 * cell.errors.mean():.2f} %{failed}"


def _along(net: Net, curve: str, norm: str) -> str:
    return ", ".join(f"{_error(net.cells[curve][norm, value])} at {value}" for value in net.values[curve])


def _named(norm: str) -> str:
    return "no norm" if norm == "none" else f"{norm} norm"


def _number(rates: np.ndarray) -> str:
    known = rates[np.isfinite(rates)]
    return f"{np.exp(np.log(known).mean()):.2g}" if known.size else "no rate"


def _study(
    name: str, title: str, claims: tuple[Claim, ...], judge: Callable[[Extent, Net], Judgement]
) -> Study[Extent, Found]:
    def measure(plan: Extent) -> Found:
        raise BadInput(f"Expected the folder of `normlab run {name}`, got a plan. Give the folder.")

    def draw(plan: Extent, found: Found) -> dict[str, Figure]:
        return {name: figures.DRAWINGS[name](found)}

    extent = Extent(options={})
    return Study(
        name=name,
        title=title,
        claims=claims,
        standard=extent,
        quick=extent,
        measure=measure,
        judge=lambda plan, found: merged(judge(plan, net) for net in found),
        draw=draw,
        rows=rows,
    )


STUDIES = {
    study.name: study
    for study in (
        _study("placement", "Norm before or after the activation?", (BEFORE, DEAD_ZONE, SIGMOID), placement),
        _study("dropout", "Does batch norm replace dropout?", (REPLACES, REGULARIZES, HARMS), dropout),
        _study("initialization", "Robust to learning rate and initial weights?", (RATES, SCALE), initialization),
        _study("training_size", "Fewer examples with batch norm?", (LESS_DATA,), training_size),
        _study("depth", "How deep do networks with batch norm train?", (TOO_DEEP, BLAME), depth),
        _study("every_layer", "Does every layer need a norm?", (EVERY,), every_layer),
    )
}
"""Studies by the names of their comparisons."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of `normlab run`")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for figures, numbers and verdicts")
    parser.add_argument("--network", help="name of another network than the usual one, for the names of the files")
    options = parser.parse_args(arguments)
    written: set[str] = set()
    try:
        for folder in options.folders:
            name, plan, found, about = read(folder)
            if name not in STUDIES:
                raise BadInput(f"Expected one of {', '.join(STUDIES)}, got `{name}` in `{folder}`. Leave it out.")
            if name in written:
                raise BadInput(f"Expected one folder of `{name}`, got `{folder}`, too. Give it another `--output`.")
            written.add(name)
            study = STUDIES[name].named(options.network) if options.network else STUDIES[name]
            judgement = study.judge(plan, found)
            print(text(judgement))
            if options.output:
                write(options.output, study, plan, found, judgement, about)
    except BadInput as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
