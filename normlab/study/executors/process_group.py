"""Processes that train one model together: they meet, agree, and end together.

A process waits for ever in a collective in which another is missing, until JAX aborts it, if at all. Therefore each
also keeps a line to process 1, a TCP connection apart from JAX's own: what is agreed on travels there, a process that
dies closes it, and one that hangs falls silent.
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
from normlab.study.executors.meeting import LONGEST, Line, Met, address, meet, printable
from normlab.study.executors.meeting import Member as Member

PATIENCE = 20.0
_LAST_WORDS = 2.0
_AROUND = 100
"""Bytes of a line for what is around a value."""


class Disagreement(BadInput):
    """The processes of a group differ where they must not; raised in all of them."""


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
        BadInput: If there is no secret by which they know each other; see `normlab.study.executors.meeting.secret`.
        Fault: If the others are not there in time.
        Disagreement: If they run other versions.
    """
    with ExitStack() as opened:
        met = meet(member, time.monotonic() + patience, opened)
        group = Group(member, met.lines, patience)
        try:
            group.agree(normlab=__version__, **{name: version(name) for name in ("jax", "jaxlib", "flax")})
            if met.lines:
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
    """The processes joined, as one of them sees them; made by `join`."""

    def __init__(self, member: Member, lines: Mapping[int, Line], patience: float) -> None:
        self.member = member
        self._lines = lines
        self._patience = patience
        self._received = {process: SimpleQueue() for process in lines}
        self._over = threading.Event()
        self._ending = threading.Lock()  # taken for good by the thread that ends the membership, or the process
        for process, line in lines.items():
            line.limit_sending(patience)
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
        self._claim_the_end()
        self._tell("left")

    def fail(self, error: BaseException) -> None:
        """Tell the others that this process cannot go on; their exit codes will be its own."""
        self._claim_the_end()
        reason = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {one_line(error)}"
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, BadInput) else 1
        self._tell("failed", [f"{self.member} {reason.removesuffix('.')}.", code])
        if self._lines:
            atexit.register(_exit, code)  # before JAX's own, which waits for collectives that wait for the others

    def _claim_the_end(self) -> None:
        """Keep the threads that listen from ending this process; wait where one is doing so already."""
        if not self._ending.acquire(blocking=False) and not self._over.is_set():
            threading.Event().wait()
        self._over.set()

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
        try:
            while (message := line.receive(self._patience))[0] not in ("failed", "left"):
                if message[0] != "alive":
                    self._received[process].put(message[1])
            if message[0] == "failed":
                self._end(process, *_last_words(message[1]), delay=_LAST_WORDS)
        except TimeoutError:
            self._end(process, f"{name} has been silent for {self._patience:g} s: it hangs, or is out of reach.")
        except OSError:
            self._end(process, f"{name} ended without a word: it was killed, or its machine is gone.")

    def _end(self, process: int, reason: str, code: int = 1, delay: float = 0.0) -> None:
        """End this process because of another, wherever its main thread is, unless it is ending already."""
        if not self._ending.acquire(blocking=False):
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


def _last_words(content: object) -> tuple[str, int]:
    """Why another process failed, and its exit code.

    Raises:
        ConnectionError: If that is not what it says.
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
    """Let JAX know the devices of all. That all processes live is not left to it: it ends them without a reason."""
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
