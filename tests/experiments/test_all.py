"""Test the command that runs all studies."""

import json
import re
from pathlib import Path

import pytest

from experiments import factorial
from experiments.claims import all as every
from experiments.claims.all import Job
from experiments.claims.verdicts import Verdict
from tests.support.paths import ROOT


def listed(*arguments: str) -> dict[str, Job]:
    """List jobs by name."""
    options = every.parser().parse_args(["--output", "there", *arguments])
    return {job.name: job for job in every.jobs(options)}


def result(job: Job, folder: Path, command: str = "") -> None:
    """Write a result without figures."""
    claim = {"text": f"Claim of {job.name}.", "source": "a paper", "published": ""}
    finding = {"claim": claim, "verdict": Verdict.HOLDS, "effect": "e", "network": "n", "data": "digits", "when": "",
               "seen": {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}}  # fmt: skip
    about = {"command": command or job.command, "seconds": 1, "jax": "0", "device": "cpu"}
    document = {
        "name": job.name,
        "title": "Is it?",
        "about": about,
        "plan": {},
        "findings": [finding],
        "bars": [],
        "sentences": [],
    }
    (folder / f"{job.name}.json").write_text(json.dumps(document))


def test_all_studies_are_listed() -> None:
    files = {path.stem for path in (ROOT / "experiments").glob("*.py") if "study = Study(" in path.read_text()}
    assert set(every.STUDIES) == files
    assert set(every.COMPARISONS) == set(factorial.STUDIES)


def test_networks_are_chosen_by_name_or_as_own_or_larger() -> None:
    assert set(listed("--studies", "bias", "why", "--networks", "own")) == {"bias", "why"}
    larger = listed("--studies", "bias", "why", "fine_tuning", "single_example", "dropout", "--networks", "larger")
    assert set(larger) == {
        "single_example-conv",
        "single_example-resnet-20",
        "why-conv-16-32-64",
        "why-vgg-11",
        "why-conv-32-64-64-128",
        "dropout-conv-narrow",
        "dropout-conv",
    }
    assert "fine_tuning-conv" in listed("--studies", "fine_tuning", "--networks", "conv")  # its own plan has both
    assert set(listed("--networks", "resnet-20")) == {
        f"{name}-resnet-20"
        for name in ("ensemble", "single_example", "covariate_shift", "steps_to_target", "training_size")
    }


def test_commands_have_the_options_and_results_name_them_without_places() -> None:
    job = listed("--studies", "why", "--networks", "vgg-11", "--quick", "--seeds", "2", "--data-dir", "d")["why-vgg-11"]
    assert job.command == "python experiments/why.py --quick --network vgg-11 --seeds 2"
    ((module, *arguments),) = job.commands
    assert module == "experiments.why" and arguments[-4:] == ["--output", "there", "--data-dir", "d"]

    job = listed("--studies", "dropout", "--networks", "conv")["dropout-conv"]
    run, judge = job.commands
    assert run[:3] == ("normlab", "run", "dropout") and "--epochs" in run and "standard" in run
    assert judge == ("experiments.factorial", "there/runs/dropout-conv", "--output", "there", "--network", "conv")
    assert "--output" not in job.command

    other = listed("--studies", "dropout", "--data", "digits", "--quick")["dropout"].command
    assert other == "normlab run dropout --tier smoke --norms none batch --data digits"


def test_a_comparison_has_the_folder_of_data_sets_only_where_it_reads_one() -> None:
    def run(*words: str) -> tuple[str, ...]:
        return listed("--studies", "dropout", "--networks", "own", "--data-dir", "d", *words)["dropout"].commands[0]

    assert run()[-2:] == ("--data-dir", "d")
    assert run("--quick", "--data", "tfds:mnist")[-2:] == ("--data-dir", "d")
    assert "--data-dir" not in run("--quick") and "--data-dir" not in run("--data", "digits")


def test_finished_runs_are_left_out_and_failures_do_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c, d, e = (Job(name, (), f"make {name}") for name in "abcde")
    result(a, tmp_path)
    result(d, tmp_path, command="make d --quick")
    ran: list[str] = []

    def runner(job: Job, output: Path) -> str:
        ran.append(job.name)
        if job is not e:
            result(job, output)
        return "out of memory" if job is b else ""

    failures = every.run_all([a, b, c, d, e], tmp_path, runner)
    assert ran == ["b", "c", "e"]
    assert failures["b"] == "out of memory" and failures["e"] == "it wrote no result"
    assert "got one of `make d --quick`" in failures["d"] and set(failures) == {"b", "d", "e"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 5: a is there" and re.fullmatch(r"3 of 5: c done after \d+ s", lines[2])


def test_a_process_that_fails_gives_the_last_line_of_its_log(tmp_path: Path) -> None:
    job = Job("a", (("calendar", "--type", "nonsense"), ("nowhere", "is not run")), "")
    assert "nonsense" in every.run(job, tmp_path)
    assert not every.run(Job("b", (("calendar", "2020"),), ""), tmp_path)
    assert "2020" in (tmp_path / "logs" / "b.log").read_text()


def test_the_page_has_everything_in_the_folder_and_the_code_reports_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_all(jobs: list[Job], output: Path) -> dict[str, str]:
        result(jobs[0], output)
        return {"why": "it broke"}

    monkeypatch.setattr(every, "run_all", run_all)
    assert every.main(["--output", str(tmp_path), "--studies", "bias"]) == 1
    assert "Claim of bias." in (tmp_path / "claims.md").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == "FAILED why: it broke"


def test_no_network_is_refused_and_a_dry_run_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        every.main(["--output", "there", "--studies", "bias", "--networks", "resnet-20"])
    assert "Expected networks of the studies, got resnet-20" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        every.main(["--output", "there", "--studies", "bias", "--networks", "own", "larger", "conv-narow"])
    assert "Expected networks of the studies, got conv-narow." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        every.main(["--output", "there", "--studies", "bias", "--networks", "larger"])
    assert "Expected networks of the studies, got larger." in capsys.readouterr().err
    assert every.main(["--output", "there", "--studies", "bias", "--dry-run"]) == 0
    assert capsys.readouterr().out == "bias: python experiments/bias.py\n" and not Path("there").exists()


@pytest.mark.slow
def test_two_cheap_studies_run_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path), "--quick", "--data", "digits", "--networks", "own"]
    assert every.main([*arguments, "--studies", "bias", "placement"]) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"bias.json", "placement.json"}
    page = (tmp_path / "claims.md").read_text()
    assert "(./bias.svg)" in page and "normlab run placement --tier smoke" in page
    capsys.readouterr()
    assert every.main([*arguments, "--studies", "bias", "placement"]) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[:2]] == [
        "bias is there",
        "placement is there",
    ]
