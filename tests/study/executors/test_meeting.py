"""Who is let into a group of processes: real sockets, strangers of every kind, and members that meet all the same."""

import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from normlab.errors import BadInput, Fault
from normlab.study.executors import meeting
from normlab.study.executors.meeting import GUESTS, LONGEST, SECRET, Channel, Member, Met, meet
from normlab.study.executors.process_group import Group

KNOWN = "the secret of the tests"
PATIENCE = 30.0
LIMIT = 60
LOOPBACK = "127.0.0.1"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, KNOWN)


def free_port(host: str = LOOPBACK) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        return server.getsockname()[1]


class Meeting:
    """Members that meet, each in a thread of its own."""

    def __init__(self, opened: ExitStack, host: str, n: int, patience: float) -> None:
        self.port, self.host, self.n, self.patience = free_port(host), host, n, patience
        self.met: dict[int, Met] = {}
        self.errors: dict[int, Exception] = {}
        self._opened = opened
        self._threads: list[threading.Thread] = []

    def start(self, process: int, of: int | None = None) -> None:
        member = Member(host=self.host, port=self.port, process=process, processes=of or self.n)

        def be() -> None:
            try:
                self.met[process] = meet(member, time.monotonic() + self.patience, self._opened)
            except (BadInput, Fault) as error:
                self.errors[process] = error

        self._threads.append(threading.Thread(target=be))
        self._threads[-1].start()

    def connect(self) -> socket.socket:
        """Come as a stranger, as soon as process 1 listens."""
        waited = time.monotonic() + LIMIT
        while True:
            with suppress(ConnectionRefusedError):
                return self._opened.enter_context(socket.create_connection((self.host, self.port), LIMIT))
            assert time.monotonic() < waited
            time.sleep(0.01)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()

    def assert_met(self) -> None:
        """All have met, and what one says the other hears."""
        self.end()
        assert not self.errors and self.met.keys() == set(range(1, self.n + 1))
        for process in range(2, self.n + 1):
            mine, theirs = self.met[process].channels[1], self.met[1].channels[process]
            mine.send("call", ["rank", process])
            theirs.send("calls", [["rank", 1]])
            assert theirs.receive(LIMIT) == ("call", ["rank", process])
            assert mine.receive(LIMIT) == ("calls", [["rank", 1]])
            assert self.met[process].port == self.met[1].port


@contextmanager
def meeting_of(n: int = 2, host: str = LOOPBACK, patience: float = PATIENCE) -> Iterator[Meeting]:
    with ExitStack() as opened:
        yield Meeting(opened, host, n, patience)


def line_of(connection: socket.socket) -> Any:
    return json.loads(connection.makefile("rb").readline() or b"null")


def is_cut(connection: socket.socket) -> bool:
    """Read all that process 1 says until it hangs up."""
    with suppress(ConnectionResetError):
        while connection.recv(LONGEST):
            pass
    return True


def hello(*content: Any) -> bytes:
    return json.dumps(["hello", list(content)]).encode() + b"\n"


def proof(challenge: str, own: str, numbers: list[Any], role: str = "member", known: str = KNOWN) -> str:
    return meeting._proof(known.encode(), role, (challenge, own), numbers)


STRANGERS: dict[str, Callable[[str], bytes]] = {
    "no proof at all": lambda challenge: hello(2, 2),
    "an empty proof": lambda challenge: hello(2, 2, "own", ""),
    "another secret": lambda challenge: hello(2, 2, "own", proof(challenge, "own", [2, 2], known="x" * 20)),
    "an old challenge": lambda challenge: hello(2, 2, "own", proof("old", "own", [2, 2])),
    "the role of process 1": lambda challenge: hello(2, 2, "own", proof(challenge, "own", [2, 2], "process 1")),
    "the proof of another number": lambda challenge: hello(2, 2, "own", proof(challenge, "own", [1, 2])),
    "a proof that is no text": lambda challenge: hello(2, 2, "own", 5),
    "a proof that is not in ASCII": lambda challenge: hello(2, 2, "own", "\ud800é"),
    "bools": lambda challenge: hello(True, 2, "own", proof(challenge, "own", [True, 2])),
    "floats": lambda challenge: hello(2.0, 2, "own", proof(challenge, "own", [2.0, 2])),
    "text": lambda challenge: hello("2", 2, "own", proof(challenge, "own", ["2", 2])),
    "zero": lambda challenge: hello(0, 2, "own", proof(challenge, "own", [0, 2])),
    "a negative number": lambda challenge: hello(-1, 2, "own", proof(challenge, "own", [-1, 2])),
    "more than there are": lambda challenge: hello(3, 2, "own", proof(challenge, "own", [3, 2])),
    "NaN": lambda challenge: b'["hello", [NaN, 2, "own", ""]]\n',
    "a number of many digits": lambda challenge: b'["hello", [' + b"9" * 10_000 + b', 2, "own", ""]]\n',
    "lists in lists": lambda challenge: b"[" * 60_000 + b"\n",
    "objects in objects": lambda challenge: b'{"":' * 15_000 + b"\n",
    "no pair": lambda challenge: b'["hello"]\n',
    "another kind": lambda challenge: b'["start", [1, "x"]]\n',
    "no kind": lambda challenge: b'[["hello"], [2, 2]]\n',
    "a number": lambda challenge: b"2\n",
    "no JSON": lambda challenge: b"GET / HTTP/1.1\r\n\r\n",
    "no UTF-8": lambda challenge: b"\xff\xfe\n",
    "an empty line": lambda challenge: b"\n",
    "a line that is too long": lambda challenge: b'["hello", "' + b"x" * LONGEST + b'"]\n',
    "no end": lambda challenge: b"x" * (LONGEST + 2**15),
}


@pytest.mark.parametrize("how", STRANGERS)
def test_a_stranger_is_sent_away_and_the_members_meet(how: str) -> None:
    with meeting_of() as group:
        group.start(1)
        stranger = group.connect()
        kind, challenge = line_of(stranger)
        assert kind == "challenge" and len(challenge) == 64
        with suppress(ConnectionError):  # where it is sent away before it has said all
            stranger.sendall(STRANGERS[how](challenge))
        assert is_cut(stranger)
        assert not group.errors and not group.met
        group.start(2)
        group.assert_met()


def test_challenges_differ() -> None:
    with meeting_of() as group:
        group.start(1)
        assert len({line_of(group.connect())[1] for _ in range(5)}) == 5
        group.start(2)
        group.assert_met()


def test_strangers_that_say_nothing_or_little_delay_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GREETING", LIMIT)  # they may stay for as long as the members need to meet
    with meeting_of(3) as group:
        group.start(1)
        strangers = [group.connect() for _ in range(10)]
        for stranger in strangers[5:]:
            stranger.sendall(b'["hel')
        group.start(2)
        group.start(3)
        group.assert_met()


def test_a_greeting_that_trickles_in_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GREETING", 0.5)
    with meeting_of() as group:
        group.start(1)
        slow = group.connect()
        line_of(slow)
        with pytest.raises(ConnectionError):
            for _ in range(LIMIT * 20):  # each byte well before the deadline of the last one
                slow.sendall(b"x")
                time.sleep(0.05)
        group.start(2)
        group.assert_met()


def test_a_crowd_of_strangers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GREETING", LIMIT)
    with meeting_of() as group:
        group.start(1)
        crowd = [group.connect() for _ in range(2 * GUESTS)]
        for stranger in crowd:
            assert line_of(stranger)[0] == "challenge"
        assert is_cut(crowd[0])  # who came first
        group.start(2)
        group.assert_met()


def test_a_line_without_end_takes_no_memory() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, PATIENCE)
    much = bytes(2**20)

    def send() -> None:
        with suppress(OSError):
            while True:
                theirs.sendall(much)

    tracemalloc.start()
    with closing(theirs), ExitStack() as traced:
        traced.callback(tracemalloc.stop)
        sending = threading.Thread(target=send)
        sending.start()
        with pytest.raises(ConnectionError, match="a line of more than 65,536 bytes"):
            channel.receive(PATIENCE)
        channel.close()
        sending.join(LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 8 * LONGEST


def test_a_line_is_received_in_its_parts_and_with_the_next() -> None:
    ours, theirs = socket.socketpair()
    with closing(Channel(ours, PATIENCE)) as channel, closing(theirs):
        theirs.sendall(b'["ca')
        with pytest.raises(TimeoutError, match="timed out"):
            channel.receive(0)
        theirs.sendall(b'll", 1]\n["alive", null]\n["call"')
        assert [channel.receive(0), channel.receive(0)] == [("call", 1), ("alive", None)]
        theirs.sendall(b", " + b"9" * 10)
        with pytest.raises(TimeoutError):
            channel.receive(0.01)
        theirs.close()
        with pytest.raises(ConnectionError, match="the connection was cut"):
            channel.receive(PATIENCE)


def test_who_knows_the_secret_and_is_none_of_the_group_ends_it() -> None:
    with meeting_of(3) as group:
        group.start(1)
        group.start(3, of=4)
        group.end()
    assert [str(group.errors[process]) for process in (1, 3)] == [
        "Expected each of 3 processes once, got process 3 of 4."
    ] * 2


def test_another_secret_is_said_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    with meeting_of(patience=3) as group:
        group.start(1)
        group.connect()
        monkeypatch.setenv(SECRET, "another secret, just as long")
        group.start(2)
        group.end()
    assert str(group.errors[2]).startswith(f"Expected `{SECRET}` to be that of process 1, it is another. Set it to")
    assert str(group.errors[1]) == (
        f"Process 2 of 2 did not come in time to `{LOOPBACK}:{group.port}`; 1 came without the secret of this group."
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([b'["start", [1, "x"]]\n'], "it is no process of a group"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "not a line of a member"),
        ([b"[" * 60_000 + b"\n"], "not a line of a member"),
        ([b"x" * (2 * LONGEST)], "a line of more than 65,536 bytes"),
        ([b""], "the connection was cut"),
        ([b'["challenge", "a"]\n', b'["start", [1, "x"]]\n'], "to prove that it knows the secret of this group"),
        ([b'["challenge", "a"]\n', b'["start", 1]\n'], "to prove that it knows the secret of this group"),
        ([b'["challenge", "a"]\n', b'["refused", "\\u001b[2J\\nno"]\n'], r"^\?\[2J\?no$"),
    ],
)
def test_who_only_listens_like_process_1_is_found_out(said: list[bytes], message: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as server, ExitStack() as opened:

        def lie() -> None:
            with closing(server.accept()[0]) as connection, suppress(OSError):
                for text in said:
                    connection.sendall(text)
                    if text.startswith(b'["ch'):
                        connection.recv(LONGEST)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(LONGEST):
                    pass

        lying = threading.Thread(target=lie)
        lying.start()
        member = Member(host=LOOPBACK, port=server.getsockname()[1], process=2, processes=2)
        with pytest.raises(Fault, match=message):
            meet(member, time.monotonic() + PATIENCE, opened)
        opened.close()
        lying.join(LIMIT)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "::1"])
def test_only_the_named_address_is_bound(host: str) -> None:
    others = {"127.0.0.1", "127.0.1.1", "::1"} - {host}
    with meeting_of(host=host) as group:
        group.start(1)
        group.connect()
        for other in others:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, group.port), LIMIT)
        group.start(2)
        group.assert_met()
    assert group.met[1].interface == host


def test_an_address_of_another_machine() -> None:
    with pytest.raises(Fault, match=r"Cannot listen on `192\.0\.2\.1:1234`: Cannot assign requested address\. Choose"):
        meet(Member.parse("192.0.2.1:1234", "1/2"), time.monotonic() + 1, ExitStack())


@pytest.mark.parametrize(
    ("coordinator", "host"), [("[::1]:80", "::1"), ("127.0.1.1:80", "127.0.1.1"), ("node-1.local:80", "node-1.local")]
)
def test_hosts(coordinator: str, host: str) -> None:
    member = Member.parse(coordinator, "1/2")
    assert (member.host, member.port, member.coordinator) == (host, 80, coordinator)


@pytest.mark.parametrize(
    "coordinator", ["::1:80", "[::1:80", "[]:80", "[localhost]:80", "a:b:80", "host:٨٠", "host:1e3"]
)
def test_what_is_no_host(coordinator: str) -> None:
    with pytest.raises(BadInput, match=r"Expected `--coordinator` to be HOST:PORT.*Put brackets around an address"):
        Member.parse(coordinator, "1/2")


class TestSecret:
    def test_it_must_be_given_where_others_can_reach_the_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for host in ("10.0.0.1", "0.0.0.0", "nowhere.invalid"):
            monkeypatch.setenv(SECRET, f" {KNOWN}\n")
            assert meeting.secret(Member.parse(f"{host}:80", "2/2")) == KNOWN.encode()
            for given in ("", " "):
                monkeypatch.setenv(SECRET, given)
                with pytest.raises(BadInput, match=rf"Expected `{SECRET}` to be set in all .* at `{host}:80`.*openssl"):
                    meeting.secret(Member.parse(f"{host}:80", "2/2"))

    def test_it_must_be_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(SECRET, "hunter2")
        with pytest.raises(BadInput, match=rf"Expected `{SECRET}` to have 16 characters or more, got 7\.") as caught:
            meeting.secret(Member.parse("10.0.0.1:80", "1/2"))
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "[::1]", "localhost"])
    def test_on_one_machine_it_is_kept_for_the_user(
        self, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(SECRET)
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
        before = os.umask(0)
        try:
            found = meeting.secret(Member.parse(f"{host}:80", "1/2"))
        finally:
            os.umask(before)
        assert len(found) == 64 and meeting.secret(Member.parse(f"{host}:80", "2/2")) == found
        (file,) = (tmp_path / "group").iterdir()
        assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700

    def test_a_file_that_others_could_read_or_that_is_empty(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(SECRET)
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
        member = Member.parse("localhost:80", "1/2")
        meeting.secret(member)
        (file,) = (tmp_path / "group").iterdir()
        for mode, content in ((0o644, KNOWN), (0o660, KNOWN), (0o600, "")):
            file.write_text(content)
            file.chmod(mode)
            with pytest.raises(Fault, match=r"to contain a secret that you alone can read, it does not\. Delete it"):
                meeting.secret(member)

    def test_processes_that_start_together_find_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(SECRET)
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
        with meeting_of(4) as group:
            for process in range(1, 5):
                group.start(process)
            group.assert_met()

    def test_where_none_can_be_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(SECRET)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
        with pytest.raises(
            Fault, match=rf"Cannot keep a secret for the processes of a group: .* Set `{SECRET}` instead"
        ):
            meeting.secret(Member.parse("localhost:80", "1/2"))


def test_a_value_that_does_not_fit_into_a_line_is_refused_where_it_is_given() -> None:
    ours, theirs = socket.socketpair()
    with closing(Channel(ours, PATIENCE)) as channel, closing(theirs):
        group = Group(Member.parse("localhost:80", "2/2"), {1: channel}, PATIENCE)
        group._claim_the_end()
        with pytest.raises(
            ValueError, match=r"at most 65,436 bytes as JSON for `broadcast`, got 100,017\. Hand over its"
        ):
            group.broadcast("x" * 100_000)
