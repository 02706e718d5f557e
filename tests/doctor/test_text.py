"""A report as text: fits its width, says what to fix first, and its remedies can be pasted."""

import ast
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from normlab.doctor import Finding, Report, Skipped
from normlab.doctor.display import paste
from normlab.doctor.display.text import print_table
from normlab.doctor.display.wording import counts, measured, number, reasons, verdict
from tests.doctor.reports import BIAS, EVALUATION, FEW, HEALTHY, HOSTILE, LAG, PASSED, REPORTS, SICK, UNKNOWN, report

SICK_AT_100 = """\
Fix first: NL203, batch statistics at evaluation, at `encoder/block_0/norm_0` and 39 more.
1 error, 2 warnings, 1 note; 16 checks found nothing; 6 checks were not made.

NL203  error    encoder/block_0/norm_0 and 39 more
       Batch statistics at evaluation.
       change 0.831 > 1e-4, examples 32
       The output for an example depends on the other examples of its batch. A single example gives
       another answer. Remedy:
       BatchNorm(use_running_average=not train)

NL302  warning  head/norm
       Batch norm of few effective samples.
       effective samples 3.1 < 8 (estimated from the batches)
       Statistics of few samples are noise. Remedy:
       normlab.linen.GroupNorm(num_groups=8, use_bias=True, use_scale=True, epsilon=1e-5,
           dtype=jnp.float32, name='a, name with (brackets', reduction_axes=None)

NL303  warning  stem/norm and 1 more
       Running statistics lag behind.
       lag 0.61 > 0.25, variance ratio 2.25, standard errors 19,292 (estimated from the batches)
       The deployed model normalizes by statistics that its inputs do not have. Remedy:
       variables = normlab.tools.precise(model, variables, batches).variables

NL101  note     Dense_0
       A bias right before a norm that takes the mean.
       largest change 3.84e-7
       The norm subtracts the bias again. Remedy:
       nn.Dense(64, use_bias=False)

Not checked:
NL109, NL204, NL205 and NL207: No `step` given.
NL206: No `optimizer` given.
NL303: The model is as it was initialized.
"""

HEALTHY_AT_100 = """\
Healthy: 16 checks found nothing.
6 checks were not made.

Not checked:
NL109, NL204, NL205 and NL207: No `step` given.
NL206: No `optimizer` given.
NL303: The model is as it was initialized.
"""


def test_the_text_of_a_sick_and_of_a_healthy_model() -> None:
    assert SICK.table() == SICK_AT_100
    assert HEALTHY.table() == HEALTHY_AT_100


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", REPORTS)
def test_no_line_is_wider_than_it_may_be(name: str, width: int) -> None:
    lines = REPORTS[name].table(width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_every_letter_of_a_long_path_is_there_and_none_controls_the_terminal() -> None:
    text = UNKNOWN.table(60)
    assert "\x1b" not in text
    joined = "".join(text.split())
    assert (
        joined.count("".join(HOSTILE.replace("\x1b", "").split())) == 6
    )  # twice in the verdict, path, title, harm, reason


def test_the_worst_comes_first() -> None:
    codes = [line.split()[0] for line in SICK.table().splitlines() if line[:2] == "NL" and "  " in line]
    assert codes == ["NL203", "NL302", "NL303", "NL101"]


def test_colours_are_for_terminals_alone() -> None:
    assert "\x1b" not in SICK.table()
    written = io.StringIO()
    print_table(SICK, Console(file=written, width=100, force_terminal=True, color_system="standard"))
    assert "\x1b[1;31merror" in written.getvalue()
    written = io.StringIO()
    print_table(HEALTHY, Console(file=written, width=100, force_terminal=True, color_system="standard"))
    assert written.getvalue().startswith("\x1b[1;32mHealthy: 16 checks found nothing.\x1b[0m")


def test_a_remedy_that_is_no_python_is_never_broken() -> None:
    command = f"normlab fold net.py:build checkpoint --output {'new/' * 30}folded"
    lines = report([replace(BIAS, remedy=command)]).table(60).splitlines()
    assert f"       {command}" in lines


@pytest.mark.parametrize("width", [20, 40, 93])
@pytest.mark.parametrize("remedy", [EVALUATION.remedy, LAG.remedy, FEW.remedy])
def test_a_remedy_can_be_pasted(remedy: str, width: int) -> None:
    lines = paste.lines(remedy, width)
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(remedy))
    assert width < 40 or max(map(len, lines)) <= width


def test_broken_lines_fit_every_width() -> None:
    for width in range(44, 120):
        lines = paste.lines(FEW.remedy, width)
        assert max(map(len, lines)) <= width
        assert all(line.startswith("    ") for line in lines[1:])


def test_a_comment_goes_to_a_line_of_its_own() -> None:
    assert paste.lines("x = f(a, b)  # then look", 15) == ["x = f(a, b)", "    # then look"]


def test_places_where_a_line_may_not_end() -> None:
    assert paste.lines("a = 'one, two, (three, four)'", 10) == ["a = 'one, two, (three, four)'"]
    assert paste.lines("first, second = third, fourth", 10) == ["first, second = third, fourth"]
    assert paste.lines("f(x, f'{a, b}, {c(d, e)}', g)", 10) == ["f(x,", "    f'{a, b}, {c(d, e)}',", "    g)"]
    assert paste.lines("f(a,  # why, and (how\n  b)", 10) == ["f(a,  # why, and (how", "  b)"]
    assert paste.lines("run this, or (that, with more words)", 10) == ["run this, or (that, with more words)"]


EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "1.5", "'a, (b'", "(not train)", "-1", "model.norm"]),
    lambda inside: st.one_of(
        st.builds("Norm({}, momentum={})".format, inside, inside),
        st.builds("[{}, {}]".format, inside, inside),
        st.builds("{{'key': {}}}".format, inside),
        st.builds("({} + {})".format, inside, inside),
    ),
    max_leaves=12,
)


@given(EXPRESSIONS, st.integers(8, 60))
def test_broken_code_is_the_same_code(code: str, width: int) -> None:
    broken = "\n".join(paste.lines(code, width))
    assert ast.dump(ast.parse(broken)) == ast.dump(ast.parse(code))
    assert broken.replace("\n    ", "").replace(" ", "") == code.replace(" ", "")


@pytest.mark.parametrize(
    ("findings", "passed", "expected"),
    [
        ([], PASSED[:1], "Healthy: 1 check found nothing."),
        ([], (), "Nothing was checked."),
        ([BIAS], PASSED, "Healthy but for 1 note: 16 checks found nothing."),
        ([BIAS, BIAS], (), "Healthy but for 2 notes."),
        ([LAG], (), "Fix first: NL303, running statistics lag behind, at `stem/norm` and 1 more."),
        ([replace(FEW, path="")], (), "Fix first: NL302, batch norm of few effective samples."),
    ],
)
def test_the_verdict_is_one_sentence(findings: list[Finding], passed: tuple[str, ...], expected: str) -> None:
    assert verdict(replace(report(findings), passed=passed)) == expected


def test_the_numbers_beside_the_verdict() -> None:
    assert counts(SICK) == "1 error, 2 warnings, 1 note; 16 checks found nothing; 6 checks were not made."
    assert counts(HEALTHY) == "6 checks were not made."
    assert counts(Report((LAG,), (Skipped("NL1", "x"),), {})) == "1 warning; 1 check was not made."
    assert counts(Report((), (), {})) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.25, "0.25"),
        (0.0, "0"),
        (-0.00012345, "-1.23e-4"),
        (1e-4, "1e-4"),
        (3_000_000, "3,000,000"),
        (1234.6, "1,235"),
        (1e9, "1e9"),
        (float("inf"), "infinity"),
        (float("-inf"), "-infinity"),
        (float("nan"), "NaN"),
        (True, "yes"),
    ],
)
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    assert number(value) == expected


def test_the_first_number_stands_beside_the_threshold_that_it_crossed() -> None:
    assert measured(LAG)[:2] == (("lag", "0.61", "> 0.25"), ("variance ratio", "2.25", ""))
    assert measured(FEW) == (("effective samples", "3.1", "< 8"),)
    assert measured(BIAS) == (("largest change", "3.84e-7", ""),)
    assert measured(replace(LAG, evidence={"lag": float("nan")})) == (("lag", "NaN", "(threshold 0.25)"),)
    assert measured(replace(LAG, evidence={})) == (("threshold", "0.25", ""),)
    assert measured(replace(BIAS, evidence={})) == ()


def test_equal_reasons_are_told_once() -> None:
    skipped = [
        Skipped("NL204", "no `step` given"),
        Skipped("NL205", "no `step` given."),
        Skipped("NL204", "no `step` given"),
    ]
    assert reasons([*skipped, Skipped("NL206", "other")]) == {
        "No `step` given.": ("NL204", "NL205"),
        "Other.": ("NL206",),
    }
