"""`python -m ser_lightning COMMAND`: Lightning's four commands, and a line in `COMMANDS` for every other one."""

import sys
from importlib import import_module

from ser_lightning.cli.quiet import quieten
from ser_lightning.errors import UserError, no_room, outside_problem
from ser_lightning.utils.terminal import visible

DEBUG = "--debug"
"""Anywhere in a command line: a traceback for every error but those that name the user's fix."""
MAX_LINE = 2000

COMMANDS = {
    "export": ("ser_lightning.export.reward:main", "write a run's reward model as an ordinary transformers folder"),
    "compare": ("ser_lightning.cli.compare:main", "two reward models on the same labelled pairs; gates for a build"),
    "bench": (
        "ser_lightning.cli.bench:main",
        "RewardBench 1 and 2, and other files of best-of-n rows, scored by section",
    ),
    "score": ("ser_lightning.cli.score:main", "rewards of the pairs or responses in a file, by any reward model"),
    "report": ("ser_lightning.report.page:main", "one page on a run, or on several side by side"),
    "query": ("ser_lightning.cli.query:main", "the pool pairs that are worth a human label, as a file to annotate"),
    "plan": ("ser_lightning.cli.plan:main", "what a fit of a reward model will take: weights, memory, tokens, time"),
}
"""name -> (module:function that takes the arguments behind the name, what `--help` says)"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line; 0, or 2 after a line for each of the user's problems; a command may have codes of its own.

    Args:
        argv: the command line without the program's name; the process's own by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    is_debug = DEBUG in argv
    argv = [word for word in argv if word != DEBUG]
    quieten()
    try:
        return _dispatch(argv)
    except UserError as error:
        problems = error.problems
    except Exception as error:
        fix = "free some, then run the command again"
        problem = (no_room(error) if argv[:1] == ["fit"] else no_room(error, fix)) or outside_problem(error)
        if is_debug or problem is None:
            raise
        problems = [problem]
    for problem in problems:
        print(f"error: {visible(problem)[:MAX_LINE]}", file=sys.stderr)
    return 2


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        module, _, function = COMMANDS[argv[0]][0].partition(":")
        return getattr(import_module(module), function)(argv[1:]) or 0
    from ser_lightning.cli.lightning import run  # the other commands start faster without Lightning

    run(argv, epilog=f"more commands: {'; '.join(f'{name} ({text})' for name, (_, text) in COMMANDS.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
