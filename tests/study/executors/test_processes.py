"""Real processes that train one model: what one process learns; and when one fails, all end and say why."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import chex
import jax
import pytest

from experiments import two_processes as example
from normlab.errors import BadInput, Fault
from normlab.study.executors import meeting
from normlab.study.executors.process_group import Member, join
from tests.support.paths import ENVIRONMENT, ROOT

LIMIT = 100  # seconds: a process that takes longer hangs
MEETING = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")]


def address(host: str = "127.0.0.1") -> str:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        return meeting.address(host, free.getsockname()[1])


@contextmanager
def members(
    mode: str, *, n: int = 2, patience: float = MEETING, host: str = "127.0.0.1"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a group; none outlives the test."""
    where = address(host)
    command = [sys.executable, "-m", "tests.support.member", mode, where]
    processes = [
        subprocess.Popen(
            [*command, f"{i}/{n}", str(patience)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(1, n + 1)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what is on stderr."""
    _, err = process.communicate(timeout=LIMIT)
    return process.returncode, err


def test_two_processes_learn_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    both = example.start_members(tmp_path)
    first, second = ({key: variables for key, (variables, _) in results.items()} for results in both)
    chex.assert_trees_all_equal(first, second)  # to the last bit, parameters and running statistics
    assert len(first) == 4
    # Sums over devices round in another order, 1e-7 of a value a step. Were the statistics those of each device, they
    # would be off by more than 1e-2.
    assert example.compare(both) < 1e-5
    assert "After 20 steps all agree to" in capsys.readouterr().out


class TestAgreement:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_three_processes_talk(self, host: str) -> None:
        with members("talk", n=3, host=host) as three:
            for process in three:
                assert ends(process)[0] == 0

    @pytest.mark.parametrize(
        ("mode", "message"),
        [
            (
                "config",
                "Expected `config.batch` to be the same in all processes, got 32 in process 1 and 64 in process 2.",
            ),
            (
                "shapes",
                "Expected `shapes.kernel` to be the same in all processes, got [3, 3] in process 1 and [5, 3] "
                "in process 2. So do `shapes.bias`.",
            ),
        ],
    )
    def test_disagreement_is_named_by_all(self, mode: str, message: str) -> None:
        with members(mode) as both:
            for process in both:
                code, err = ends(process)
                assert code == 1
                assert message in err
                assert "Check failure" not in err  # JAX's last words when it aborts a process

    def test_processes_at_different_calls(self) -> None:
        with members("calls") as both:
            errors = [ends(process) for process in both]
        message = "Expected all processes to be at the same call, got `agree` in process 1 and `leave` in process 2."
        assert [code for code, _ in errors] == [1, 1]
        assert all(message in err for _, err in errors)


class TestDeath:
    @pytest.mark.parametrize(
        ("victim", "sent", "patience"),
        [
            (1, signal.SIGKILL, MEETING),
            (2, signal.SIGKILL, MEETING),
            (2, signal.SIGTERM, MEETING),
            (1, signal.SIGSTOP, 5),
            (2, signal.SIGSTOP, 5),
        ],
    )
    def test_the_others_end_with_a_reason(self, victim: int, sent: signal.Signals, patience: float) -> None:
        with members("steps", patience=patience) as both:
            for process in both:
                assert process.stdout
                while "training" not in process.stdout.readline():
                    assert process.poll() is None
            both[victim - 1].send_signal(sent)
            code, err = ends(both[2 - victim])
        why = "has been silent for 5 s" if sent == signal.SIGSTOP else "ended without a word"
        assert err.splitlines()[-1].startswith(f"normlab: Process {victim} of 2 {why}")
        assert code == 1

    @pytest.mark.parametrize("failing", [1, 2])
    def test_an_exception_ends_all(self, failing: int) -> None:
        with members(f"raises_{failing}") as both:
            errors = [ends(process) for process in both]
        assert [code for code, _ in errors] == [1, 1]
        assert "OverflowError: too much" in errors[failing - 1][1]
        reason = (
            f"normlab: Process {failing} of 2 failed: OverflowError: too much. Process {3 - failing} of 2 ends too."
        )
        assert reason in errors[2 - failing][1]


class TestMeeting:
    @pytest.mark.parametrize("where", ["host", "host:", ":1234", "host:0", "host:70000", "host:http"])
    def test_coordinators(self, where: str) -> None:
        with pytest.raises(BadInput, match="Expected `--coordinator` to be HOST:PORT"):
            Member.parse(where, "1/2")

    @pytest.mark.parametrize("process", ["1", "0/2", "3/2", "1/2/3", "a/b", "-1/2", ""])
    def test_processes(self, process: str) -> None:
        with pytest.raises(BadInput, match="Expected `--process` to be i/n with 1 <= i <= n"):
            Member.parse("host:1234", process)

    def test_alone(self) -> None:
        with join(Member.parse("host:1234", "1/1")) as group:
            group.agree(seed=1)
            assert group.broadcast([1]) == [1]
        assert jax.process_count() == 1

    def test_alone_an_exception_is_nothing_special(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("atexit.register", lambda f: pytest.fail(f"registered {f}"))
        with pytest.raises(OverflowError), join(Member.parse("host:1234", "1/1")):
            raise OverflowError

    def test_without_process_1(self) -> None:
        where = address()
        with pytest.raises(Fault, match=f"Cannot reach process 1 on `{where}` within 1 s: Connection refused"):
            join(Member.parse(where, "2/2"), patience=0.2).__enter__()

    def test_with_another_program_at_the_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            where = f"127.0.0.1:{other.getsockname()[1]}"
            with pytest.raises(Fault, match=f"Cannot listen on `{where}`: Address already in use"):
                join(Member.parse(where, "1/2"), patience=0.2).__enter__()
            with pytest.raises(Fault, match=f"Cannot reach process 1 on `{where}` within 1 s: timed out"):
                join(Member.parse(where, "2/2"), patience=0.2).__enter__()

    @pytest.mark.parametrize(
        ("others", "message"),
        [
            (["2/3"], "Process 3 of 3 did not come in time to `127.0.0.1"),
            (["2/3", "2/3"], "Expected each of 3 processes once, got process 2 of 3 again."),
            (["2/2"], "Expected each of 3 processes once, got process 2 of 2."),
        ],
    )
    def test_a_group_that_is_not_complete(self, others: list[str], message: str) -> None:
        where, reasons = address(), []

        def come(process: str) -> None:
            try:
                join(Member.parse(where, process), patience=2).__enter__()
            except Fault as fault:
                reasons.append(str(fault))

        threads = [threading.Thread(target=come, args=(process,)) for process in ("1/3", *others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert len(reasons) == len(threads)
        assert all(message in reason for reason in reasons)
