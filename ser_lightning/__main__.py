"""`python -m ser_lightning COMMAND`: where every command begins and ends."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ser_lightning import __version__
from ser_lightning.cli.arguments import split_arguments, with_home
from ser_lightning.cli.commands import COMMANDS, PROGRAM, check_command, overview, run_command, run_help
from ser_lightning.errors import Causes, Terminated, UserError, no_room, outside_problem, raise_problems
from ser_lightning.settings.check import unknown_keys
from ser_lightning.utils.quiet import quieten
from ser_lightning.utils.terminal import visible

DEBUG = "--debug"
"""Anywhere in a command line: a traceback for every error but those that name the user's fix."""
MAX_LINE = 2000


def main(argv: list[str] | None = None) -> int:
    """Run one command line; 0, or 2 after a line for each of the user's problems; a command may have codes of its own.

    Args:
        argv: the command line without the program's name; the process's own by default.

    Raises:
        SystemExit: with 143 after SIGTERM, 130 after Ctrl-C, and 141 where nobody reads any longer what is printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    is_debug = DEBUG in argv
    argv = [with_home(word) for word in argv if word != DEBUG]
    quieten()
    try:
        with _sigterm_ends_in_order():
            code = _dispatch(argv)
            sys.stdout.flush()
            return code
    except UserError as error:
        problems = error.problems
    except (Terminated, KeyboardInterrupt) as error:
        print("interrupted; give the same command again", file=sys.stderr)
        raise SystemExit(128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(128 + signal.SIGPIPE) from None
        fix = "free some, then run the command again"
        problem = (no_room(error) if argv[:1] == ["fit"] else no_room(error, fix)) or outside_problem(error)
        if is_debug or problem is None:
            raise
        problems = [problem]
    for problem in Causes(problems).lines():
        print(f"error: {visible(problem)[:MAX_LINE]}", file=sys.stderr)
    return 2


def _nobody_reads() -> bool:
    """Whether standard output or error is a closed pipe, as after `| head`; what they still hold is dropped then."""
    poll, gone = select.poll(), os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        poll.register(number, 0)
    closed = [number for number, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    for number in closed:
        os.dup2(gone, number)
    os.close(gone)
    return bool(closed)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    check_command(argv[0])
    if argv[0] in COMMANDS:
        return run_command(argv[0], argv[1:])
    arguments = split_arguments(argv)  # finds what is mistyped before anything heavy is imported
    if {"--help", "-h"} & {*argv}:
        print(run_help(arguments))
        return 0
    raise_problems(unknown_keys(arguments.read_configs(), arguments.flags))
    from ser_lightning.cli.lightning import run

    run(arguments)
    return 0


@contextmanager
def _sigterm_ends_in_order() -> Iterator[None]:
    """SIGTERM raises `Terminated` where Python stands, so that temporary files go as they do after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Lightning calls this after its own handler; of several ranks, each ends at its next batch, as that one says."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        raise Terminated


if __name__ == "__main__":
    sys.exit(main())
