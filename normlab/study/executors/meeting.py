"""Rendezvous of the processes of a group: the address, the channels between them, and authentication.

Process 1 listens where anybody may connect. Each peer must prove that it knows the secret of the group, by an HMAC of a
random challenge, and process 1 proves the same in return; the secret itself never travels. Peers without the secret
are rejected, whatever they send, and delay nobody.
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
"""The environment variable with the secret of a group."""

LONGEST = 2**16
"""The most bytes of a line from one process."""

GREETING = 5.0
"""Seconds within which a peer must prove that it is a member."""

GUESTS = 64
"""Connections without proof that are kept beyond the size of the group; one more drops the oldest."""

SHORTEST = 16
"""The fewest characters of a secret."""

_CHUNK = 2**14
_KINDS = ("challenge", "hello", "start", "refused", "call", "calls", "alive", "failed", "left")
_REMEDY = "Set it to the same text in all of them, such as one that `openssl rand -hex 32` prints."


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of a group.

    Attributes:
        host: The name or address at which process 1 listens, of IPv6 without brackets.
        port: The port there.
        process: The number of this process, counted from 1.
        processes: The number of processes.

    >>> str(Member.parse("127.0.0.1:1234", "2/3"))
    'Process 2 of 3'
    """

    host: str
    port: int
    process: int
    processes: int

    @classmethod
    def parse(cls, coordinator: str, process: str) -> "Member":
        """Parse the options of a command line.

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
        """Name a process for messages."""
        return f"Process {process} of {self.processes}"

    @property
    def coordinator(self) -> str:
        """The address of process 1, HOST:PORT."""
        return address(self.host, self.port)


def address(host: str, port: int) -> str:
    """Write a host and a port as one text.

    >>> address("::1", 80)
    '[::1]:80'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Channel:
    """A connection that carries pairs of a kind and its content, one JSON text a line.

    One thread may send while another receives.
    """

    def __init__(self, connection: socket.socket, patience: float) -> None:
        """Store a connection, which is closed with the channel, and the seconds that sending may take."""
        connection.settimeout(patience)
        self._sender, self._receiver = connection, connection.dup()  # each with a time limit of its own
        self._lock = threading.Lock()
        self._received = bytearray()
        self.longest = LONGEST

    def limit_sending(self, seconds: float) -> None:
        """Set the seconds that sending may take."""
        self._sender.settimeout(seconds)

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):  # the peer may have closed it
            self._sender.shutdown(socket.SHUT_RDWR)
        self._sender.close()
        self._receiver.close()

    def fileno(self) -> int:
        """Return the file descriptor for selectors."""
        return self._receiver.fileno()

    def send(self, kind: str, content: object = None) -> None:
        """Send a pair.

        Raises:
            OSError: If sending fails or takes too long.
        """
        with self._lock:
            self._sender.sendall(json.dumps([kind, content]).encode() + b"\n")

    def receive(self, seconds: float) -> tuple[str, object]:
        """Receive the next pair.

        Args:
            seconds: Time limit for the whole pair; 0 takes only data that have arrived.

        Raises:
            TimeoutError: If the pair is incomplete by then. The part that has arrived stays for the next call.
            OSError: If the connection was cut, or the line is no pair or longer than `longest`.
        """
        deadline = time.monotonic() + seconds
        while (end := self._received.find(b"\n")) < 0 and len(self._received) <= self.longest:
            self._receiver.settimeout(max(deadline - time.monotonic(), 0.0))
            try:
                chunk = self._receiver.recv(_CHUNK)
            except BlockingIOError:
                raise TimeoutError("timed out") from None
            if not chunk:
                raise ConnectionError("the connection was cut")
            self._received += chunk
        if not 0 <= end <= self.longest:
            raise ConnectionError(f"a line of more than {self.longest:,} bytes")
        text = bytes(self._received[:end])
        del self._received[: end + 1]
        return _pair(text)


def meet(member: Member, deadline: float, opened: ExitStack) -> "Met":
    """Connect process 1 to each other process; all must call this.

    Args:
        member: This process.
        deadline: The time of the monotonic clock by which all must have connected.
        opened: Closes the channels.

    Raises:
        BadInput: If there is no secret, or it is too short.
        Fault: If another process does not connect in time, or belongs to another group.
    """
    if member.processes == 1:
        return Met()
    return _call(member, deadline, opened) if member.process > 1 else _listen(member, deadline, opened)


@dataclass(frozen=True, kw_only=True)
class Met:
    """The channels of a process to the others of its group, and an address for JAX.

    Attributes:
        channels: Channels by the number of the process at the other end.
        interface: The address at which all have reached process 1.
        port: A port at that address for JAX, chosen by process 1.
    """

    channels: Mapping[int, Channel] = field(default_factory=dict)
    interface: str = ""
    port: int = 0


def secret(member: Member) -> bytes:
    """Return the secret of a group.

    Processes that meet at a loopback address need none in their environment: a file that only their user can read
    holds it.

    Raises:
        BadInput: If there is no secret, or it is too short.
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
    """Read the secret of this user on this machine, and create it where there is none."""
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
        raise Fault(f"Expected `{path}` to contain a secret that you alone can read, it does not. Delete it.")
    return content


def _write(path: Path, content: bytes) -> None:
    """Write a whole file that only this user can read, unless it exists."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(16)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        os.link(temporary, path)  # unlike a rename, it fails where another process was faster
    finally:
        temporary.unlink(missing_ok=True)


def _proof(secret: bytes, role: str, challenges: Sequence[str], numbers: Sequence[int]) -> str:
    """Compute the answer to challenges; a role keeps peers from sending the same answer back."""
    text = json.dumps([role, *challenges, *numbers]).encode()
    return hmac.digest(secret, text, "sha256").hex()


def _proves(given: object, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), expected.encode())


@dataclass(eq=False)
class _Guest:
    """A peer that has connected and not yet proved that it is a member."""

    channel: Channel
    deadline: float
    challenge: str


class _Admitted(NamedTuple):
    """A process that has proved to be a member, and the challenges of both sides."""

    channel: Channel
    challenges: Sequence[str]


class _Hello(NamedTuple):
    """The first message of a member: its number, its challenge, and its answer to the challenge of process 1."""

    process: int
    processes: int
    challenge: str
    proof: str

    @classmethod
    def of(cls, kind: str, content: object) -> "_Hello | None":
        """Parse a message; return `None` for anything else."""
        if kind == "hello" and isinstance(content, list) and [type(part) for part in content] == [int, int, str, str]:
            hello = cls(*content)
            return hello if 1 <= hello.process <= hello.processes else None
        return None


def _listen(member: Member, deadline: float, opened: ExitStack) -> Met:
    """Admit the other processes and choose a port for JAX."""
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
    for process, (channel, challenges) in others.items():
        proof = _proof(known, "process 1", challenges, [process, member.processes, port])
        with suppress(OSError):  # the thread that listens to that process handles its death
            channel.send("start", [port, proof])
    return Met(channels={process: channel for process, (channel, _) in others.items()}, interface=interface, port=port)


def _bound(member: Member) -> socket.socket:
    """Bind a server to the named address alone; where a name has several addresses, to the first that works."""
    failure = OSError("it has no address")
    for family, host in _addresses(member.host):
        try:
            return socket.create_server((host, member.port), family=family, backlog=GUESTS + member.processes)
        except OSError as error:
            failure = error
    raise failure


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Resolve the addresses of a host, IPv4 first.

    Raises:
        OSError: If the host is unknown.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    ordered = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
    return list(dict.fromkeys((family, str(place[0])) for family, _, _, _, place in ordered))


def _is_here(host: str) -> bool:
    """Check whether a host can be reached from this machine alone."""
    with suppress(OSError, ValueError):  # a name that is not known yet, an address with a zone
        return all(ipaddress.ip_address(place).is_loopback for _, place in _addresses(host))
    return False


def _is_ipv6(host: str) -> bool:
    with suppress(ValueError):
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    return False


class _Door:
    """The server side of the rendezvous. It waits for all peers at once, so that none delays another."""

    def __init__(self, member: Member, server: socket.socket, secret: bytes, opened: ExitStack) -> None:
        """Store the server, the secret and the stack that closes the channels."""
        self._member, self._server, self._secret, self._opened = member, server, secret, opened
        self._guests: list[_Guest] = []  # the oldest first
        self._admitted: dict[int, _Admitted] = {}
        self._strangers = 0

    def admit_all(self, deadline: float) -> Mapping[int, _Admitted]:
        """Wait for all other processes; return them by their number.

        Raises:
            Fault: If one does not connect in time, or a peer that knows the secret belongs to another group.
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
        """Wait for the first event of any peer, and handle all events that have arrived."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._server, selectors.EVENT_READ)
            for guest in self._guests:
                waiting.register(guest.channel, selectors.EVENT_READ, guest)
            until = min([deadline, *(guest.deadline for guest in self._guests)])
            ready = [key.data for key, _ in waiting.select(max(until - time.monotonic(), 0.0))]
        for guest in ready:
            if guest is None:
                self._open()
            elif guest in self._guests:
                self._hear(guest)

    def _open(self) -> None:
        """Accept a connection, and send its challenge."""
        with suppress(OSError):  # the peer may be gone already
            connection, _ = self._server.accept()
            guest = _Guest(Channel(connection, GREETING), time.monotonic() + GREETING, secrets.token_hex(32))
            self._guests.append(guest)
            self._dismiss(self._guests[: -(GUESTS + self._member.processes)])
            guest.channel.send("challenge", guest.challenge)

    def _hear(self, guest: _Guest) -> None:
        """Handle the message of a peer: reject strangers, and admit members of this group."""
        try:
            hello = _Hello.of(*guest.channel.receive(0))
        except TimeoutError:
            return  # the rest of it may come
        except OSError:
            self._dismiss([guest])
            return
        if hello is None or not self._is_proved(guest, hello):
            self._strangers += 1
            with suppress(OSError):
                guest.channel.send("refused", f"Expected `{SECRET}` to be that of process 1, it is another. {_REMEDY}")
            self._dismiss([guest])
            return
        again = hello.process in self._admitted
        if hello.processes != self._member.processes or hello.process == 1 or again:
            self._refuse(
                f"Expected each of {self._member.processes} processes once, got process {hello.process} of "
                f"{hello.processes}{' again' if again else ''}.",
                guest.channel,
            )
        self._guests.remove(guest)
        self._opened.callback(guest.channel.close)
        self._admitted[hello.process] = _Admitted(guest.channel, (guest.challenge, hello.challenge))

    def _is_proved(self, guest: _Guest, hello: _Hello) -> bool:
        expected = _proof(self._secret, "member", (guest.challenge, hello.challenge), [hello.process, hello.processes])
        return _proves(hello.proof, expected)

    def _dismiss(self, guests: Iterable[_Guest]) -> None:
        for guest in list(guests):
            self._guests.remove(guest)
            guest.channel.close()

    def _refuse(self, reason: str, *others: Channel) -> NoReturn:
        """Reject all peers, and raise the reason."""
        for channel in (*(channel for channel, _ in self._admitted.values()), *others):
            with suppress(OSError):
                channel.send("refused", reason)
        raise Fault(reason)


def _call(member: Member, deadline: float, opened: ExitStack) -> Met:
    """Authenticate to process 1, and check its proof in return."""
    known, own, left = secret(member), secrets.token_hex(32), deadline - time.monotonic()
    numbers = [member.process, member.processes]
    try:
        channel = Channel(_reach(member, deadline), left)
        opened.callback(channel.close)
        kind, challenge = channel.receive(deadline - time.monotonic())
        if kind != "challenge" or not isinstance(challenge, str):
            raise ConnectionError("it is no process of a group")
        challenges = (challenge, own)
        channel.send("hello", [*numbers, own, _proof(known, "member", challenges, numbers)])
        # Process 1 waits as long as this one, from now at most.
        kind, content = channel.receive(deadline - time.monotonic() + left)
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
            channel.longest = LONGEST * member.processes  # it sends what all of them have
            return Met(channels={1: channel}, port=port)
    raise Fault(
        f"Expected process 1 on `{member.coordinator}` to prove that it knows the secret of this group, it did not. "
        "Choose another port."
    )


def _reach(member: Member, deadline: float) -> socket.socket:
    """Connect to process 1, which may not have started yet."""
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((member.host, member.port), max(left, 0.01))
        except OSError:
            if left <= 0:
                raise
            time.sleep(min(0.1, left))


def printable(text: object, limit: int = 1000) -> str:
    """Return a text of another process as one line without control characters."""
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
