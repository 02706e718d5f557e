"""Processes that train one model together: they meet, agree, and end together.

A process waits for ever in a collective in which another is missing, until JAX aborts it, if at all. Therefore each
also keeps a line to process 1, a TCP connection apart from JAX's own: what is agreed on travels there, a process that
dies closes it, and one that hangs falls silent.
"""

import atexit
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from queue import SimpleQueue
from typing import Any, NoReturn

from normlab import __version__
from normlab.study.errors import BadInput, Fault, one_line

PATIENCE = 20.0
_LAST_WORDS = 2.0
_LOOPBACK = ("localhost", "127.0.0.1")


class Disagreement(BadInput):
    """The processes of a group differ where they must not; raised in all of them."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of a group.

    Attributes:
        coordinator: Where process 1 listens, HOST:PORT.
        process: Which one this is, counted from 1.
        processes: How many there are.

    >>> str(Member.parse("127.0.0.1:1234", "2/3"))
    'Process 2 of 3'
    """

    coordinator: str
    process: int
    processes: int

    @classmethod
    def parse(cls, coordinator: str, process: str) -> "Member":
        """Read what a command line gives.

        Args:
            coordinator: `HOST:PORT`.
            process: `i/n`.

        Raises:
            BadInput: If it is anything else.
        """
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise BadInput(f"Expected `--coordinator` to be HOST:PORT, where process 1 runs, got `{coordinator}`.")
        part, _, parts = process.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise BadInput(f"Expected `--process` to be i/n with 1 <= i <= n, such as 1/2, got `{process}`.")
        return cls(coordinator=coordinator, process=int(part), processes=int(parts))

    def __str__(self) -> str:
        return self.name(self.process)

    def name(self, process: int) -> str:
        """A process in words."""
        return f"Process {process} of {self.processes}"

    @property
    def host(self) -> str:
        """Where process 1 runs."""
        return self.coordinator.rpartition(":")[0]

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.coordinator.rpartition(":")[2])

    @property
    def interface(self) -> str:
        """Where process 1 listens: on this machine only if its address is, else for all who can reach it."""
        return "127.0.0.1" if self.host in _LOOPBACK else ""


@contextmanager
def join(member: Member, *, patience: float = PATIENCE) -> Iterator["Group"]:
    """Connect this process to the others of its group, and JAX's devices to theirs, until all leave.

    Inside, `jax.devices()` are those of all processes. Should another process raise, die or fall silent, this one ends
    with its exit code (1 if it died) and a sentence on stderr, since a collective that waits for it cannot be
    interrupted.

    Args:
        member: Which process this is. Alone, nothing is connected.
        patience: Seconds to wait for the others at the start, and that one may be silent later. Silent is also who
            stays in one call that keeps Python's lock; JAX's compiling and computing do not.

    Raises:
        Fault: If the others are not there in time.
        Disagreement: If they run other versions.
    """
    with ExitStack() as opened:
        lines, port = _meet(member, time.monotonic() + patience, opened)
        group = Group(member, lines, patience)
        try:
            group.agree(normlab=__version__, **{name: version(name) for name in ("jax", "jaxlib", "flax")})
            if lines:
                _connect_devices(member, port, patience)
            yield group
            group.leave()
        except Disagreement:
            group.leave()
            raise
        except BaseException as error:
            group.fail(error)
            raise


class Group:
    """The processes joined, as one of them sees them; made by `join`."""

    def __init__(self, member: Member, lines: Mapping[int, "_Line"], patience: float) -> None:
        self.member = member
        self._lines = lines
        self._patience = patience
        self._received = {process: SimpleQueue() for process in lines}
        self._over = threading.Event()
        for process in lines:
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        threading.Thread(target=self._show_life, daemon=True).start()

    def agree(self, **values: Any) -> None:
        """Make sure that all processes were given the same; all must call this.

        Args:
            values: Anything that JSON takes: configuration, versions, hashes, shapes.

        Raises:
            Disagreement: In every process, naming what differs and who has what.
        """
        given = [dict(_leaves(theirs)) for theirs in self.gather("agree", values)]
        names = dict.fromkeys(name for theirs in given for name in theirs)
        has = {name: [json.dumps(theirs[name]) if name in theirs else "nothing" for theirs in given] for name in names}
        differing = [name for name in names if len(set(has[name])) > 1]
        if differing:
            others = f" So do {', '.join(f'`{name}`' for name in differing[1:])}." if differing[1:] else ""
            raise Disagreement(
                f"Expected `{differing[0]}` to be the same in all processes, got {_who(has[differing[0]])}.{others} "
                "Start all with the same arguments, versions and data."
            )

    def broadcast(self, value: Any = None) -> Any:
        """Hand what process 1 gives, anything that JSON takes, to all processes; all must call this."""
        return self.gather("broadcast", value)[0]

    def gather(self, what: str, value: Any) -> list[Any]:
        """Collect a value from each process, in order; all must call this.

        Args:
            what: Names the call; processes must not be at different ones.
            value: Anything that JSON takes.

        Raises:
            RuntimeError: If they are.
        """
        mine = json.loads(json.dumps([what, value]))
        if self.member.process == 1:
            calls = [mine, *(self._received[process].get() for process in sorted(self._lines))]
            self._tell("calls", calls)
        else:
            self._tell("call", mine)
            calls = self._received[1].get()
        names = [f"`{name}`" for name, _ in calls]
        if len(set(names)) > 1:
            raise RuntimeError(f"Expected all processes to be at the same call, got {_who(names)}.")
        return [value for _, value in calls]

    def leave(self) -> None:
        """Wait for the others and let go of JAX's connections and of the lines."""
        import jax

        self.gather("leave", None)
        jax.distributed.shutdown()
        self._over.set()
        self._tell("left")

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process cannot go on; their exit codes will be its own."""
        self._over.set()
        reason = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {one_line(error)}"
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, BadInput) else 1
        self._tell("failed", [f"{self.member} {reason.removesuffix('.')}.", code])
        if self._lines:
            atexit.register(_exit, code)  # before JAX's own, which waits for collectives that wait for the others

    def _tell(self, kind: str, content: Any = None, but: int | None = None) -> None:
        for process, line in self._lines.items():
            if process != but:
                with suppress(OSError):  # whoever listens to that process deals with its death
                    line.send(kind, content)

    def _show_life(self) -> None:
        while not self._over.wait(self._patience / 5):
            self._tell("alive")

    def _listen(self, process: int) -> None:
        """Receive what a process sends until it leaves; end this one if it dies or falls silent."""
        line, name = self._lines[process], self.member.name(process)
        line.wait_at_most(self._patience)
        try:
            while (message := line.receive())[0] not in ("failed", "left"):
                if message[0] != "alive":
                    self._received[process].put(message[1])
            if message[0] == "failed":
                self._end(process, *message[1], delay=_LAST_WORDS)
        except TimeoutError:
            self._end(process, f"{name} has been silent for {self._patience:g} s: it hangs, or is out of reach.")
        except OSError:
            self._end(process, f"{name} ended without a word: it was killed, or its machine is gone.")

    def _end(self, process: int, reason: str, code: int = 1, delay: float = 0.0) -> None:
        """End this process because of another, wherever its main thread is, unless it is ending already."""
        if self._over.is_set():
            return
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where JAX's threads go on to report what follows from it
        os.write(stderr, f"normlab: {reason} {self.member} ends too. Start all of them again.\n".encode())
        self._tell("failed", [reason, code], but=process)
        if self.member.process == 1:
            time.sleep(delay)  # JAX aborts the others when process 1 is gone: let them say what happened first
        # It may wait for the main thread, which may hold the lock.
        flushing = threading.Thread(target=_exit, args=(code,), daemon=True)
        flushing.start()
        flushing.join(1)
        os._exit(code)


def _exit(code: int) -> NoReturn:
    """End this process without cleaning up."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(code)


class _Line:
    """A connection on which pairs of a kind and its content travel, one JSON text a line."""

    def __init__(self, connection: socket.socket, opened: ExitStack) -> None:
        self._socket = opened.enter_context(connection)
        self._file = opened.enter_context(connection.makefile("rb"))
        self._lock = threading.Lock()
        opened.callback(self._hang_up)

    def _hang_up(self) -> None:
        with suppress(OSError):  # the other may have done so
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait_at_most(self, seconds: float) -> None:
        self._socket.settimeout(max(seconds, 0.01))

    def send(self, kind: str, content: Any = None) -> None:
        with self._lock:
            self._socket.sendall(json.dumps([kind, content]).encode() + b"\n")

    def receive(self) -> tuple[str, Any]:
        """The next pair; a line that was cut, or is not of this kind, is an OSError."""
        try:
            kind, content = json.loads(self._file.readline())
        except (TypeError, ValueError):
            raise ConnectionError("not a line of a member") from None
        return kind, content


def _meet(member: Member, deadline: float, opened: ExitStack) -> tuple[dict[int, _Line], int]:
    """The lines of this process, and the port for JAX, which process 1 chooses."""
    if member.processes == 1:
        return {}, 0
    if member.process > 1:
        return _call(member, deadline, opened)
    try:
        with socket.create_server((member.interface, member.port)) as server:
            lines = _wait_for_all(member, server, deadline, opened)
        with socket.create_server((member.interface, 0)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        raise Fault(
            f"Cannot listen on `{member.coordinator}`: {os.strerror(error.errno or 0)}. Choose another port."
        ) from error
    for line in lines.values():
        line.send("start", port)
    return lines, port


def _wait_for_all(member: Member, server: socket.socket, deadline: float, opened: ExitStack) -> dict[int, _Line]:
    """Lines from process 1 to each other."""
    lines: dict[int, _Line] = {}
    while len(lines) < member.processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            line = _Line(server.accept()[0], opened)
        except TimeoutError:
            missing = sorted({*range(2, member.processes + 1)} - lines.keys())
            _refuse(lines.values(), f"{member.name(missing[0])} did not come in time to `{member.coordinator}`.")
        with suppress(OSError, TypeError, ValueError):  # whoever does not speak as a member does is none
            line.wait_at_most(1)
            _, (process, processes) = line.receive()
            if processes != member.processes or process == 1 or process in lines:
                wrong = f"Expected each of {member.processes} processes once, got process {process} of {processes}"
                _refuse([*lines.values(), line], f"{wrong}{' again' if process in lines else ''}.")
            lines[process] = line
    return lines


def _refuse(lines: Iterable[_Line], reason: str) -> NoReturn:
    """Send all away that have come."""
    for line in lines:
        with suppress(OSError):
            line.send("refused", reason)
    raise Fault(reason)


def _call(member: Member, deadline: float, opened: ExitStack) -> tuple[dict[int, _Line], int]:
    """The line from another process to process 1, and the port for JAX."""
    left = deadline - time.monotonic()
    try:
        line = _Line(_reach(member, deadline), opened)
        line.wait_at_most(deadline - time.monotonic() + left)  # process 1 waits as long as this one, from now at most
        line.send("hello", [member.process, member.processes])
        kind, content = line.receive()
    except OSError as error:
        reason = error.strerror or str(error)
        raise Fault(
            f"Cannot reach process 1 on `{member.coordinator}` within {math.ceil(left)} s: {reason}. Start it there."
        ) from error
    if kind == "refused":
        raise Fault(content)
    return {1: line}, content


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


def _connect_devices(member: Member, port: int, patience: float) -> None:
    """Let JAX know the devices of all. That all processes live is not left to it: it ends them without a reason."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from ending a process
    jax.distributed.initialize(
        f"{member.host}:{port}",
        member.processes,
        member.process - 1,
        coordinator_bind_address=f"{member.interface or '0.0.0.0'}:{port}",
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(patience),
        heartbeat_timeout_seconds=math.ceil(10 * patience),
        shutdown_timeout_seconds=math.ceil(patience),
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside nested mappings, by their dotted paths."""
    if not (isinstance(value, dict) and value):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{path}.{name}" if path else name)


def _who(texts: Sequence[str]) -> str:
    """Who has what.

    >>> _who(["16", "32", "16"])
    '16 in process 1, 3 and 32 in process 2'
    """
    processes = {text: [str(i) for i, other in enumerate(texts, 1) if other == text] for text in texts}
    return " and ".join(f"{text} in process {', '.join(them)}" for text, them in processes.items())
