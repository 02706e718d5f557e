"""The command `normlab`: comparisons and their results, checkpoints with other norms, and models under examination."""

import _thread
import errno
import gc
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from normlab.cli.parser import (
    Parser,
    convert_parser,
    doctor_parser,
    fold_parser,
    list_parser,
    merge_parser,
    report_parser,
    run_parser,
    source_of,
    verify_parser,
    without,
)
from normlab.errors import BadInput, Fault, Unfinished, nearest, one_line
from normlab.extras import require
from normlab.study.design import discovery
from normlab.study.design.request import Request, from_file, from_flags

if TYPE_CHECKING:
    from normlab.study.design.comparison import Comparison, Settings
    from normlab.study.executors.process_group import Member


OK, FAILED, USAGE, UNFINISHED, SIGNALED = 0, 1, 2, 3, 128

_BREATH = 0.1
"""Seconds after which a signal is repeated that arrived where Python cannot raise."""

_HELP = """\
usage: normlab COMMAND ...

Which normalization layer for which batch size: comparisons that tune, repeat, and report what they cannot decide.

commands:
  run NAME_OR_FILE   run a comparison, or resume it, and write its report
  report FOLDER      write the report of the finished runs, also during a run
  merge FOLDER ...   merge the runs of several folders
  verify FOLDER      repeat a recorded run and compare the numbers
  list [KIND]        comparisons, norms, problems, and tiers with their runs and minutes
  fold ...           remove the batch norms of a checkpoint, for a model that only evaluates
  convert ...        replace the norms of a checkpoint by others
  doctor FILE:build  examine the norms of a model of your own

options:
  -h, --help         this text; `normlab COMMAND --help` for a command's options
  --version          the version

examples:
  normlab run batch_size --dry-run        what would be run, how long it takes, and what it can show
  normlab run batch_size --tier smoke     whether everything works, in a few minutes
  normlab run my_model.py --norms batch layer group
  normlab fold net.py:build checkpoint --output folded

tab completion, in bash or zsh:
  eval "$(register-python-argcomplete normlab)"

exit codes:
  0 done   1 no run succeeded, no norm folded, numbers differ, a model has a fault, or the machine failed
  2 bad input, nothing written
  3 the time budget ended before the last run   128 + n ended by signal n, 130 for Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Returns:
        0; 1 if no run succeeded, no norm was folded, a verification failed, a model has a fault, or something outside
        failed; 2 for bad input, with one line on stderr and nothing written; 3 if the time budget ended before the last
        run; 128 and the number of the signal if interrupted, by Ctrl-C (130), SIGTERM or SIGHUP.
    """
    given, ended = list(sys.argv[1:] if argv is None else argv), list[int]()
    try:
        with _ending_at_signals(ended):
            return _command(given)
    except (BadInput, Fault) as error:
        if "--traceback" in given:
            traceback.print_exc()
        _say(str(error))
        return USAGE if isinstance(error, BadInput) else UNFINISHED if isinstance(error, Unfinished) else FAILED
    except BrokenPipeError:  # `normlab ... | head`: the pipe is closed, and Python must not report it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return _interrupted(ended, given)
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if ended:  # the terminal is gone, and restoring it fails
            return _interrupted(ended, given)
        if not _is_out_of_memory(error):
            raise
        _say(f"Out of memory ({one_line(error)}). Finished runs are kept. Give more memory, or fewer `--jobs`.")
        return FAILED


def _interrupted(by: Sequence[int], given: Sequence[str]) -> int:
    resumes = " Finished runs are kept; the same command resumes from there." if given[:1] == ["run"] else ""
    _say(f"Interrupted.{resumes}")
    return SIGNALED + (by[0] if by else signal.SIGINT)


@contextmanager
def _ending_at_signals(ended: list[int]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt this process and its children like Ctrl-C; a second signal ends it at once.

    Handlers stay unchanged where another is installed (`nohup`), and outside of the main thread. A signal that arrives
    in a finalizer or in a callback of the garbage collector, which cannot raise, is repeated.

    Args:
        ended: List to which the number of the signal is appended.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        ended.append(number)
        raise KeyboardInterrupt

    there = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main_thread = threading.current_thread() is threading.main_thread()
    ours = [number for number in there if main_thread and signal.getsignal(number) == signal.SIG_DFL]
    report = sys.unraisablehook

    def repeat(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            return report(ignored)
        again = threading.Timer(_BREATH, _interrupt_main_thread)
        again.daemon = True
        again.start()

    sys.unraisablehook = repeat
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _interrupt_main_thread() -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    elif (main_thread := threading.main_thread().ident) is not None:  # also ends a blocking call
        signal.pthread_kill(main_thread, signal.SIGINT)


ADDRESS_SPACE = 2 * 2**30
"""Bytes below which libraries abort or spin while they are loaded, which Python cannot catch."""


def _check_address_space() -> None:
    """Check that JAX and SciPy can be loaded within the limit of address space.

    Raises:
        Fault: If `ulimit -v` is too low.
    """
    with suppress(ModuleNotFoundError):  # on Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
            raise Fault(
                f"Expected at least {ADDRESS_SPACE // 2**20} MiB of address space, which JAX and SciPy need to be "
                f"loaded, got {limit // 2**20}. Raise the limit, as by `ulimit -v unlimited`."
            )


def _say(text: str) -> None:
    """Print one line on stderr."""
    with suppress(OSError):  # a terminal that is gone
        print(f"normlab: {text}", file=sys.stderr)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "Cannot allocate memory", "failed to map segment", "new thread")
    return any(sign in str(error) for sign in signs)


def _command(given: list[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    name, rest = (given[0], given[1:]) if given else ("--help", [])
    commands = {"run": _run, "report": _report, "merge": _merge, "verify": _verify, "list": _list}
    commands |= {"fold": _fold, "convert": _convert, "doctor": _doctor}
    if name in commands:
        _check_address_space()
        gc.set_threshold(*_RARE_COLLECTIONS)
        return commands[name](rest)
    if name in ("-h", "--help"):
        print(_HELP)
    elif name == "--version":
        from normlab import __version__

        print(f"normlab {__version__}")
    else:
        raise BadInput(f"Unknown command `{name}`. {_meant(name, [*commands, '--help', '--version'])}")
    return OK


_RARE_COLLECTIONS = 100_000, 50, 100
"""Thresholds of the collector of garbage: records are many objects without cycles, which each collection visits."""


def _complete() -> None:
    """Complete the line of a shell, and end; without `argcomplete` do nothing."""
    with suppress(ModuleNotFoundError):
        from normlab.cli.completion import complete

        parsers = {"report": report_parser, "merge": merge_parser, "verify": verify_parser, "list": list_parser}
        complete({**parsers, "fold": fold_parser, "convert": convert_parser, "doctor": doctor_parser})


def _meant(name: str, commands: Sequence[str]) -> str:
    """Suggest a command, also for the name or the file of a comparison alone."""
    if name.endswith(".py") or name in discovery.known():
        return f"Did you mean `normlab run {name}`?"
    return nearest(name, commands)


def _run(given: list[str]) -> int:
    source, rest = source_of(given)
    if source is None:
        return _help(run_parser(None))
    comparison = discovery.load(source)
    parser = run_parser(comparison, source)
    if _asks_for_help(given):
        return _help(parser)
    parsed = parser.parse([source, *rest])
    require("study")
    of_file = from_file(parsed["config"], comparison) if "config" in parsed else {}
    request = Request(comparison, {**of_file, **from_flags(parsed, comparison)})
    settings = request.settings(source)
    output, command = request.output(settings), shlex.join(["normlab", "run", *given])
    from normlab.study.driver.driver import ExecutionOptions, Invocation

    invocation = Invocation(comparison, settings, output, command, request.get("shard"))
    member, show = _member(request), request.get("open", False)
    if "dry_run" in parsed:
        invocation.dry_run(ExecutionOptions.of(request))
        return OK
    if member is None:
        code = invocation.run(ExecutionOptions.of(request), show=show)
        print(f"See it again: {_program()} report {shlex.quote(str(output))}")
        if code == OK and "shard" not in request.given and (tier := _larger(settings, comparison)):
            more = ["run", source, *without(rest, "--tier", "--output"), "--tier", tier]
            print(f"More runs: {_program()} {shlex.join(more)}")
        return code
    from normlab.study.driver import multiprocess

    return multiprocess.run(invocation, ExecutionOptions.of(request), member, show=show)


def _larger(settings: "Settings", comparison: "Comparison") -> str:
    """Return the name of the next larger budget; empty for the largest."""
    tiers = list(comparison.tiers)
    return next(iter(tiers[tiers.index(settings.tier) + 1 :]), "")


def _program() -> str:
    """Return the command that started this process, as it can be typed in this folder."""
    typed = Path(sys.argv[0])
    if typed.name == "__main__.py":
        return f"{_short(sys.executable)} -m normlab"
    found = shutil.which(typed.name)
    return typed.name if found and os.path.realpath(found) == os.path.realpath(typed) else _short(str(typed))


def _short(path: str) -> str:
    """Return the path of a program from this folder where it is inside, as text for a shell."""
    inside = os.path.relpath(path)
    return shlex.quote(
        path if inside.startswith("..") else os.path.join(".", inside) if os.sep not in inside else inside
    )


def _member(request: Request) -> "Member | None":
    """Return the member of a process group that this process is; `None` where it is alone."""
    given = {name for name in ("coordinator", "process") if request.get(name)}
    if not given:
        return None
    if len(given) < 2 or request.get("devices", 1) == 1:
        raise BadInput(
            "Expected `--coordinator`, `--process` and `--devices` (of all processes together, two or more) with each "
            f"other, got {' and '.join(f'`--{name}`' for name in sorted(given))}"
            f"{' with one device' if len(given) == 2 else ' alone'}."
        )
    for other in ("executor", "jobs"):
        if other in request.given:
            raise BadInput(
                f"Expected {request.given[other].where} not with `--coordinator`: its processes work as one."
            )
    from normlab.study.executors.process_group import Member

    return Member.parse(request.get("coordinator"), request.get("process"))


def _report(given: list[str]) -> int:
    parser = report_parser()
    if _asks_for_help(given):
        return _help(parser)
    from normlab.study.driver.driver import Invocation

    invocation, header = Invocation.of_folder(parser.parse(given)["folder"])
    return invocation.report(header)


def _merge(given: list[str]) -> int:
    parser = merge_parser()
    if _asks_for_help(given):
        return _help(parser)
    parsed = parser.parse(given)
    folders, output = parsed["folders"], parsed["output"]
    from normlab.study.driver.driver import Invocation
    from normlab.study.driver.merge import merge

    store = merge(folders, output, shlex.join(["normlab", "merge", *given]))
    invocation, header = Invocation.of_folder(output, store)
    return invocation.report(header)


def _verify(given: list[str]) -> int:
    parser = verify_parser()
    if _asks_for_help(given):
        return _help(parser)
    parsed = parser.parse(given)
    from normlab.study.driver import verify
    from normlab.study.driver.driver import Invocation, current

    invocation, header = Invocation.of_folder(parsed["folder"])
    records = invocation.store.records()
    if "run" not in parsed:
        records = list(current(invocation.plan, header.identity, records).values())
    record = verify.choose(records, parsed.get("run"))
    comparison = verify.load(header, trust="trust" in parsed)
    run = record.run
    of, config = run.configuration, ", ".join(f"{name} {value}" for name, value in run.configuration.config)
    print(f"Run {record.key[:12]}: `{of.norm}` on `{of.problem}`, {run.stage}, seed {run.seed}, ", end="")
    print(f"learning rate {run.learning_rate:g}, {config}")
    found = verify.verify(comparison, header.settings, record)
    print("\n".join(found.lines()))
    return FAILED if found.failed else OK


def _list(given: list[str]) -> int:
    parser = list_parser()
    if _asks_for_help(given):
        return _help(parser)
    from normlab.cli import listing

    for line in listing.lines(**parser.parse(given)):
        print(line)
    return OK


def _fold(given: list[str]) -> int:
    parser = fold_parser()
    if _asks_for_help(given):
        return _help(parser)
    parsed = parser.parse(given)
    from normlab.cli import checkpoints

    return checkpoints.run_fold(parsed)


def _convert(given: list[str]) -> int:
    parser = convert_parser()
    if _asks_for_help(given):
        return _help(parser)
    parsed = parser.parse(given)
    from normlab.cli import checkpoints

    return checkpoints.run_convert(parsed)


def _doctor(given: list[str]) -> int:
    parser = doctor_parser()
    if _asks_for_help(given):
        return _help(parser)
    from normlab.cli import doctor

    return FAILED if doctor.finds(**parser.parse(given)) else OK


def _asks_for_help(given: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(given))


def _help(parser: Parser) -> int:
    parser.print_help()
    return OK
