"""How the processes of a group find each other: the address, the lines between them, and who is let in.

Process 1 listens where anybody may connect. Each who does is asked to prove that it knows the secret of the group, by
an HMAC of a number drawn for it, and process 1 proves the same in return; the secret itself never travels. Strangers
are sent away, whatever they send, and keep nobody waiting.
"""

import hmac
import ipaddress
import json
import math
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from normlab.errors import BadInput, Fault
from normlab.study.data import cache

SECRET = "NORMLAB_GROUP_SECRET"
"""The environment variable that holds what all processes of a group know and nobody else."""

LONGEST = 2**16
"""Bytes of a line from one process."""

GREETING = 5.0
"""Seconds in which whoever connects must have proved that it is a member."""

GUESTS = 64
"""How many more than the processes of a group may be about to prove it; one more sends away who came first."""

SHORTEST = 16
"""Characters of a secret."""

_CHUNK = 2**14
_KINDS = ("challenge", "hello", "start", "refused", "call", "calls", "alive", "failed", "left")
_REMEDY = "Set it to the same text in all of them, such as one that `openssl rand -hex 32` prints."


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of a group.

    Attributes:
        host: The name or address at which process 1 listens, of IPv6 without brackets.
        port: The port there.
        process: Which one this is, counted from 1.
        processes: How many there are.

    >>> str(Member.parse("127.0.0.1:1234", "2/3"))
    'Process 2 of 3'
    """

    host: str
    port: int
    process: int
    processes: int

    @classmethod
    def parse(cls, coordinator: str, process: str) -> "Member":
        """Read what a command line gives.

        Args:
            coordinator: `HOST:PORT`, or `[HOST]:PORT` for an address of IPv6.
            process: `i/n`.

        Raises:
            BadInput: If it is anything else.
        """
        host, _, port = coordinator.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        named = host == f"[{bare}]" if _is_ipv6(bare) else host and not set("[]:") & set(host)
        if not (named and port.isdecimal() and port.isascii() and len(port) < 6 and 0 < int(port) < 2**16):
            raise BadInput(
                f"Expected `--coordinator` to be HOST:PORT, where process 1 runs, got `{coordinator}`. Put brackets "
                "around an address of IPv6."
            )
        part, _, parts = process.partition("/")
        digits = all(text.isdecimal() and text.isascii() and len(text) < 10 for text in (part, parts))
        if not (digits and 1 <= int(part) <= int(parts)):
            raise BadInput(f"Expected `--process` to be i/n with 1 <= i <= n, such as 1/2, got `{process}`.")
        return cls(host=bare, port=int(port), process=int(part), processes=int(parts))

    def __str__(self) -> str:
        return self.name(self.process)

    def name(self, process: int) -> str:
        """A process in words."""
        return f"Process {process} of {self.processes}"

    @property
    def coordinator(self) -> str:
        """The place where process 1 listens, HOST:PORT."""
        return address(self.host, self.port)


def address(host: str, port: int) -> str:
    """Write a host and a port as one text.

    >>> address("::1", 80)
    '[::1]:80'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Line:
    """A connection on which pairs of a kind and its content travel, one JSON text a line.

    One thread may send while another receives.
    """

    def __init__(self, connection: socket.socket, patience: float) -> None:
        """Take a connection, which is closed with the line, and the seconds that sending may take."""
        connection.settimeout(patience)
        self._sender, self._receiver = connection, connection.dup()  # each with a time limit of its own
        self._lock = threading.Lock()
        self._received = bytearray()
        self.longest = LONGEST

    def limit_sending(self, seconds: float) -> None:
        """Set how long sending may take."""
        self._sender.settimeout(seconds)

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):  # the other may have done so
            self._sender.shutdown(socket.SHUT_RDWR)
        self._sender.close()
        self._receiver.close()

    def fileno(self) -> int:
        """For selectors, which tell when there is something to receive."""
        return self._receiver.fileno()

    def send(self, kind: str, content: object = None) -> None:
        """Send a pair.

        Raises:
            OSError: If that fails, or takes longer than it may.
        """
        with self._lock:
            self._sender.sendall(json.dumps([kind, content]).encode() + b"\n")

    def receive(self, seconds: float) -> tuple[str, object]:
        """Receive the next pair.

        Args:
            seconds: How long all of it may take; with 0, what is there already is taken.

        Raises:
            TimeoutError: If it is not there by then. The part that has come stays for the next call.
            OSError: If the line was cut, or what comes is no pair or longer than `longest`.
        """
        deadline = time.monotonic() + seconds
        while (end := self._received.find(b"\n")) < 0 and len(self._received) <= self.longest:
            self._receiver.settimeout(max(deadline - time.monotonic(), 0.0))
            try:
                chunk = self._receiver.recv(_CHUNK)
            except BlockingIOError:
                raise TimeoutError("timed out") from None
            if not chunk:
                raise ConnectionError("the line was cut")
            self._received += chunk
        if not 0 <= end <= self.longest:
            raise ConnectionError(f"a line of more than {self.longest:,} bytes")
        text = bytes(self._received[:end])
        del self._received[: end + 1]
        return _pair(text)


def meet(member: Member, deadline: float, opened: ExitStack) -> "Met":
    """Connect process 1 to each other process; all must call this.

    Args:
        member: Which process this is.
        deadline: The time of the monotonic clock by which all must be there.
        opened: Closes the lines.

    Raises:
        BadInput: If there is no secret, or none that can be one.
        Fault: If the others are not there in time, or not those that they should be.
    """
    if member.processes == 1:
        return Met()
    return _call(member, deadline, opened) if member.process > 1 else _listen(member, deadline, opened)


@dataclass(frozen=True, kw_only=True)
class Met:
    """The lines of a process to the others of its group, and an address for JAX.

    Attributes:
        lines: By the process at the other end.
        interface: The address of process 1 that all have reached.
        port: A port there for JAX, which process 1 chooses.
    """

    lines: Mapping[int, Line] = field(default_factory=dict)
    interface: str = ""
    port: int = 0


def secret(member: Member) -> bytes:
    """Give what proves that a process belongs to a group.

    Processes that meet on this machine alone, at a loopback address, need not be given one: theirs is kept in a file
    that only their user can read.

    Raises:
        BadInput: If there is none, or it is too short to be one.
        Fault: If the file cannot be read, or others can read it.
    """
    given = os.environ.get(SECRET, "").strip()
    if given and len(given) < SHORTEST:
        raise BadInput(f"Expected `{SECRET}` to have {SHORTEST} characters or more, got {len(given)}. {_REMEDY}")
    if given:
        return given.encode(errors="surrogateescape")
    if _is_here(member.host):
        return _of_user()
    raise BadInput(
        f"Expected `{SECRET}` to be set in all processes that meet at `{member.coordinator}`, which others can reach, "
        f"got nothing. {_REMEDY}"
    )


def _of_user() -> bytes:
    """The secret of this user on this machine, made where there is none yet."""
    try:
        path = cache.folder("group") / "secret"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            _write(path, secrets.token_hex().encode())
        with path.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read(LONGEST)
    except (OSError, RuntimeError) as error:
        raise Fault(f"Cannot keep a secret for the processes of a group: {error}. Set `{SECRET}` instead.") from error
    theirs = hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077)
    if theirs or len(content) < SHORTEST:
        raise Fault(f"Expected `{path}` to hold a secret that you alone can read, it does not. Delete it.")
    return content


def _write(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, as a whole, unless it is there."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(16)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        os.link(temporary, path)  # unlike a rename, it fails where another process was faster
    finally:
        temporary.unlink(missing_ok=True)


def _proof(secret: bytes, role: str, challenges: Sequence[str], numbers: Sequence[int]) -> str:
    """Answer challenges as only those can who know the secret; a role keeps others from sending the answer back."""
    text = json.dumps([role, *challenges, *numbers]).encode()
    return hmac.digest(secret, text, "sha256").hex()


def _proves(given: object, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), expected.encode())


@dataclass(eq=False)
class _Guest:
    """Somebody who has connected and not yet proved to be a member."""

    line: Line
    deadline: float
    challenge: str


class _Admitted(NamedTuple):
    """Another process that has proved to be a member, and what both have challenged each other with."""

    line: Line
    challenges: Sequence[str]


class _Hello(NamedTuple):
    """The first words of a member: its number, a challenge of its own, and its answer to the one of process 1."""

    process: int
    processes: int
    challenge: str
    proof: str

    @classmethod
    def of(cls, kind: str, content: object) -> "_Hello | None":
        """Read it; `None` where it is anything else."""
        if kind == "hello" and isinstance(content, list) and [type(part) for part in content] == [int, int, str, str]:
            hello = cls(*content)
            return hello if 1 <= hello.process <= hello.processes else None
        return None


def _listen(member: Member, deadline: float, opened: ExitStack) -> Met:
    """Let the others in and choose a port for JAX."""
    known = secret(member)
    try:
        with _bound(member) as server:
            interface = str(server.getsockname()[0])
            others = _Door(member, server, known, opened).admit_all(deadline)
            with socket.create_server((interface, 0), family=server.family) as free:
                port = int(free.getsockname()[1])
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise Fault(
            f"Cannot listen on `{member.coordinator}`: {reason}. Choose another port, or an address of this machine."
        ) from error
    for process, (line, challenges) in others.items():
        proof = _proof(known, "process 1", challenges, [process, member.processes, port])
        with suppress(OSError):  # whoever listens to that process deals with its death
            line.send("start", [port, proof])
    return Met(lines={process: line for process, (line, _) in others.items()}, interface=interface, port=port)


def _bound(member: Member) -> socket.socket:
    """A server at the address that was named and at no other; the first that works where a name has several."""
    failure = OSError("it has no address")
    for family, host in _addresses(member.host):
        try:
            return socket.create_server((host, member.port), family=family, backlog=GUESTS + member.processes)
        except OSError as error:
            failure = error
    raise failure


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of a host, those of IPv4 first.

    Raises:
        OSError: If it is not known.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys((family, str(place[0])) for family, _, _, _, place in ordered))


def _is_here(host: str) -> bool:
    """Tell whether a host is reached from this machine alone."""
    with suppress(OSError, ValueError):  # a name that is not known yet, an address with a zone
        return all(ipaddress.ip_address(place).is_loopback for _, place in _addresses(host))
    return False


def _is_ipv6(host: str) -> bool:
    with suppress(ValueError):
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    return False


class _Door:
    """The reception of process 1. It waits for all who have connected at once, so that none delays another."""

    def __init__(self, member: Member, server: socket.socket, secret: bytes, opened: ExitStack) -> None:
        """Take the server at which the others knock, and who closes the lines to them."""
        self._member, self._server, self._secret, self._opened = member, server, secret, opened
        self._guests: list[_Guest] = []  # who has waited for longest comes first
        self._admitted: dict[int, _Admitted] = {}
        self._strangers = 0

    def admit_all(self, deadline: float) -> Mapping[int, _Admitted]:
        """Wait for the others, by their number.

        Raises:
            Fault: If one of them is not there in time, or one who knows the secret is not of this group.
        """
        self._server.setblocking(False)
        try:
            while len(self._admitted) < self._member.processes - 1:
                self._check_time(deadline)
                self._serve(deadline)
        finally:
            self._dismiss(self._guests)
        return self._admitted

    def _check_time(self, deadline: float) -> None:
        now = time.monotonic()
        self._dismiss([guest for guest in self._guests if guest.deadline <= now])
        if now < deadline:
            return
        member, here = self._member, self._server.getsockname()[0]
        missing = next(process for process in range(2, member.processes + 1) if process not in self._admitted)
        place = "" if here == member.host else f", {here} here"
        others = f"; {self._strangers} came without the secret of this group" if self._strangers else ""
        self._refuse(f"{member.name(missing)} did not come in time to `{member.coordinator}`{place}{others}.")

    def _serve(self, deadline: float) -> None:
        """Do what can be done without waiting for anybody, and wait only where that is nothing."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._server, selectors.EVENT_READ)
            for guest in self._guests:
                waiting.register(guest.line, selectors.EVENT_READ, guest)
            until = min([deadline, *(guest.deadline for guest in self._guests)])
            ready = [key.data for key, _ in waiting.select(max(until - time.monotonic(), 0.0))]
        for guest in ready:
            if guest is None:
                self._open()
            elif guest in self._guests:
                self._hear(guest)

    def _open(self) -> None:
        """Challenge somebody who has connected."""
        with suppress(OSError):  # who is gone already
            connection, _ = self._server.accept()
            guest = _Guest(Line(connection, GREETING), time.monotonic() + GREETING, secrets.token_hex(32))
            self._guests.append(guest)
            self._dismiss(self._guests[: -(GUESTS + self._member.processes)])
            guest.line.send("challenge", guest.challenge)

    def _hear(self, guest: _Guest) -> None:
        """Take what somebody has sent; whoever is no member is sent away, the others must be the right ones."""
        try:
            hello = _Hello.of(*guest.line.receive(0))
        except TimeoutError:
            return  # the rest of it may come
        except OSError:
            self._dismiss([guest])
            return
        if hello is None or not self._is_proved(guest, hello):
            self._strangers += 1
            with suppress(OSError):
                guest.line.send("refused", f"Expected `{SECRET}` to be that of process 1, it is another. {_REMEDY}")
            self._dismiss([guest])
            return
        again = hello.process in self._admitted
        if hello.processes != self._member.processes or hello.process == 1 or again:
            self._refuse(
                f"Expected each of {self._member.processes} processes once, got process {hello.process} of "
                f"{hello.processes}{' again' if again else ''}.",
                guest.line,
            )
        self._guests.remove(guest)
        self._opened.callback(guest.line.close)
        self._admitted[hello.process] = _Admitted(guest.line, (guest.challenge, hello.challenge))

    def _is_proved(self, guest: _Guest, hello: _Hello) -> bool:
        expected = _proof(self._secret, "member", (guest.challenge, hello.challenge), [hello.process, hello.processes])
        return _proves(hello.proof, expected)

    def _dismiss(self, guests: Iterable[_Guest]) -> None:
        for guest in list(guests):
            self._guests.remove(guest)
            guest.line.close()

    def _refuse(self, reason: str, *others: Line) -> NoReturn:
        """Send all away that have come."""
        for line in (*(line for line, _ in self._admitted.values()), *others):
            with suppress(OSError):
                line.send("refused", reason)
        raise Fault(reason)


def _call(member: Member, deadline: float, opened: ExitStack) -> Met:
    """Ask process 1 to be let in, and let it prove that it is the one."""
    known, own, left = secret(member), secrets.token_hex(32), deadline - time.monotonic()
    numbers = [member.process, member.processes]
    try:
        line = Line(_reach(member, deadline), left)
        opened.callback(line.close)
        kind, challenge = line.receive(deadline - time.monotonic())
        if kind != "challenge" or not isinstance(challenge, str):
            raise ConnectionError("it is no process of a group")
        challenges = (challenge, own)
        line.send("hello", [*numbers, own, _proof(known, "member", challenges, numbers)])
        # Process 1 waits as long as this one, from now at most.
        kind, content = line.receive(deadline - time.monotonic() + left)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Fault(
            f"Cannot reach process 1 on `{member.coordinator}` within {math.ceil(left)} s: {reason}. Start it there."
        ) from error
    if kind == "refused":
        raise Fault(printable(content))
    if kind == "start" and isinstance(content, list) and [type(part) for part in content] == [int, str]:
        port, proof = content
        if _proves(proof, _proof(known, "process 1", challenges, [*numbers, port])):
            line.longest = LONGEST * member.processes  # it sends what all of them have
            return Met(lines={1: line}, port=port)
    raise Fault(
        f"Expected process 1 on `{member.coordinator}` to prove that it knows the secret of this group, it did not. "
        "Choose another port."
    )


def _reach(member: Member, deadline: float) -> socket.socket:
    """A connection to process 1, which may not have started yet."""
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((member.host, member.port), max(left, 0.01))
        except OSError:
            if left <= 0:
                raise
            time.sleep(min(0.1, left))


def printable(text: object, limit: int = 1000) -> str:
    """Give what another process says so that it can be shown: one line, without control characters."""
    shown = "".join(character if character.isprintable() else "?" for character in str(text))
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def _pair(text: bytes) -> tuple[str, object]:
    """Parse a line."""
    try:
        pair = json.loads(text)
    except (ValueError, RecursionError):
        pair = None
    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and pair[0] in _KINDS:
        return pair[0], pair[1]
    raise ConnectionError("not a line of a member")
