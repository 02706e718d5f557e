"""Processes that train one model together: they meet, agree, and end together.

A process waits forever in a collective that another process never enters, until JAX aborts it, if at all. Therefore
each process also keeps a channel to process 1, a TCP connection apart from JAX's own: values to agree on travel there,
a process that dies closes it, and one that hangs is silent.
"""

import atexit
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from queue import SimpleQueue
from typing import Any, NoReturn

from normlab import __version__
from normlab.errors import BadInput, one_line
from normlab.study.executors.meeting import LONGEST, Channel, Met, address, meet, printable
from normlab.study.executors.meeting import Member as Member

PATIENCE = 20.0
_LAST_WORDS = 2.0
_AROUND = 100
"""Bytes of a line around a value."""


class Disagreement(BadInput):
    """The processes of a group differ where they must not; raised in all of them."""


@contextmanager
def join(member: Member, *, patience: float = PATIENCE) -> Iterator["Group"]:
    """Connect this process to the others of its group, and JAX's devices to theirs, until all leave.

    Inside, `jax.devices()` are the devices of all processes. If another process raises, dies or hangs, this one ends
    with the exit code of the other (1 if it died) and a sentence on stderr, since a collective that waits for it cannot
    be interrupted.

    Args:
        member: This process. In a group of one, nothing is connected.
        patience: Seconds to wait for the others at the start, and that a process may be silent later. A process is
            also silent during a call that keeps Python's lock; JAX's compiling and computing release it.

    Raises:
        BadInput: If there is no secret of the group; see `normlab.study.executors.meeting.secret`.
        Fault: If the others do not connect in time.
        Disagreement: If the processes run different versions.
    """
    with ExitStack() as opened:
        met = meet(member, time.monotonic() + patience, opened)
        group = Group(member, met.channels, patience)
        try:
            group.agree(normlab=__version__, **{name: version(name) for name in ("jax", "jaxlib", "flax")})
            if met.channels:
                _connect_devices(member, met, patience)
            yield group
            group.leave()
        except Disagreement:
            group.leave()
            raise
        except BaseException as error:
            group.fail(error)
            raise


class Group:
    """The joined processes, seen from one of them; made by `join`."""

    def __init__(self, member: Member, channels: Mapping[int, Channel], patience: float) -> None:
        self.member = member
        self._channels = channels
        self._patience = patience
        self._received = {process: SimpleQueue() for process in channels}
        self._over = threading.Event()
        self._ending = threading.Lock()  # taken for good by the thread that ends the membership, or the process
        for process, channel in channels.items():
            channel.limit_sending(patience)
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def agree(self, **values: object) -> None:
        """Check that all processes have the same values; all must call this.

        Args:
            values: Anything that JSON can contain: settings, versions, hashes, shapes.

        Raises:
            Disagreement: In every process, naming the difference and the value of each process.
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

    def broadcast(self, value: object = None) -> Any:
        """Send a value of process 1, anything that JSON can contain, to all processes; all must call this."""
        return self.gather("broadcast", value)[0]

    def gather(self, what: str, value: object) -> list[Any]:
        """Collect a value from each process, in order; all must call this.

        Args:
            what: Name of the call, the same in all processes.
            value: Anything that JSON can contain.

        Raises:
            RuntimeError: If the processes are at different calls.
            ValueError: If the value is too long for a line.
        """
        text = json.dumps([what, value])
        if len(text) > LONGEST - _AROUND:
            raise ValueError(
                f"Expected a value of at most {LONGEST - _AROUND:,} bytes as JSON for `{what}`, got {len(text):,}. "
                "Hand over its hash."
            )
        mine = json.loads(text)
        if self.member.process == 1:
            calls = [mine, *(self._received[process].get() for process in sorted(self._channels))]
            self._send("calls", calls)
        else:
            self._send("call", mine)
            calls = self._received[1].get()
        names = [f"`{name}`" for name, _ in calls]
        if len(set(names)) > 1:
            raise RuntimeError(f"Expected all processes to be at the same call, got {_who(names)}.")
        return [value for _, value in calls]

    def leave(self) -> None:
        """Wait for the others, and close JAX's connections and the channels."""
        import jax

        self.gather("leave", None)
        jax.distributed.shutdown()
        self._claim_the_end()
        self._send("left")

    def fail(self, error: BaseException) -> None:
        """Report to the others that this process failed; they end with its exit code."""
        self._claim_the_end()
        reason = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {one_line(error)}"
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, BadInput) else 1
        self._send("failed", [f"{self.member} {reason.removesuffix('.')}.", code])
        if self._channels:
            atexit.register(
                _exit, code
            )  # before JAX's own handler, which waits for collectives that wait for the others

    def _claim_the_end(self) -> None:
        """Keep the listening threads from ending this process; wait where one of them already does."""
        if not self._ending.acquire(blocking=False) and not self._over.is_set():
            threading.Event().wait()
        self._over.set()

    def _send(self, kind: str, content: object = None, but: int | None = None) -> None:
        for process, channel in self._channels.items():
            if process != but:
                with suppress(OSError):  # the thread that listens to that process handles its death
                    channel.send(kind, content)

    def _send_heartbeats(self) -> None:
        while not self._over.wait(self._patience / 5):
            self._send("alive")

    def _listen(self, process: int) -> None:
        """Receive the messages of a process until it leaves; end this process if that one dies or hangs."""
        channel, name = self._channels[process], self.member.name(process)
        try:
            while (message := channel.receive(self._patience))[0] not in ("failed", "left"):
                if message[0] != "alive":
                    self._received[process].put(message[1])
            if message[0] == "failed":
                self._end(process, *_last_words(message[1]), delay=_LAST_WORDS)
        except TimeoutError:
            self._end(process, f"{name} has been silent for {self._patience:g} s: it hangs, or is out of reach.")
        except OSError:
            self._end(process, f"{name} ended without a word: it was killed, or its machine is gone.")

    def _end(self, process: int, reason: str, code: int = 1, delay: float = 0.0) -> None:
        """End this process because another failed, unless it is ending already."""
        if not self._ending.acquire(blocking=False):
            return
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # JAX's threads would report the consequences
        os.write(stderr, f"normlab: {reason} {self.member} ends too. Start all of them again.\n".encode())
        self._send("failed", [reason, code], but=process)
        if self.member.process == 1:
            time.sleep(delay)  # JAX aborts the others when process 1 is gone: let them report the reason first
        # Flushing may wait for the main thread, which may hold the lock.
        flushing = threading.Thread(target=_exit, args=(code,), daemon=True)
        flushing.start()
        flushing.join(1)
        os._exit(code)


def _last_words(content: object) -> tuple[str, int]:
    """Parse the reason why another process failed, and its exit code.

    Raises:
        ConnectionError: If the message contains anything else.
    """
    if isinstance(content, list) and [type(part) for part in content] == [str, int] and 0 < content[1] < 2**8:
        return printable(content[0]), content[1]
    raise ConnectionError("not the last words of a member")


def _exit(code: int) -> NoReturn:
    """End this process without cleaning up."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(code)


def _connect_devices(member: Member, met: Met, patience: float) -> None:
    """Connect JAX's devices. The group checks that all processes live: JAX would end them without a reason."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from ending a process
    jax.distributed.initialize(
        address(member.host, met.port),
        member.processes,
        member.process - 1,
        coordinator_bind_address=address(met.interface, met.port) if member.process == 1 else None,
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(patience),
        heartbeat_timeout_seconds=math.ceil(10 * patience),
        shutdown_timeout_seconds=math.ceil(patience),
    )


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values inside nested mappings by their dotted paths."""
    if not (isinstance(value, dict) and value):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{path}.{name}" if path else name)


def _who(texts: Sequence[str]) -> str:
    """Name the processes that have each text.

    >>> _who(["16", "32", "16"])
    '16 in process 1, 3 and 32 in process 2'
    """
    processes = {text: [str(i) for i, other in enumerate(texts, 1) if other == text] for text in texts}
    return " and ".join(f"{text} in process {', '.join(them)}" for text, them in processes.items())
