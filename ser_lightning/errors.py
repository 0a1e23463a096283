"""Errors that are the user's to mend: one line each, with what was wrong, what was got and how to fix it."""

import difflib
import errno
import re
from collections import Counter
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """One or more problems with the user's data or config; the command line prints a line for each and exits with 2.

    Args:
        problems: one sentence or several, each "what: got; fix"; a line end in one, from data, is shown as `\\n`.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        found = [problems] if isinstance(problems, str) else problems
        self.problems = [problem.replace("\n", "\\n") for problem in found]
        super().__init__("\n".join(self.problems))


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one `UserError` that holds every problem, or return when there is none."""
    if found := list(problems):
        raise UserError(found)


def describe(error: BaseException) -> str:
    """An exception on one line: its class, and what it says."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def problems_of(check: Callable[[], object]) -> list[str]:
    """The problems of the `UserError` that a call raises, if any: those of several calls are reported at once."""
    try:
        check()
    except UserError as error:
        return error.problems
    return []


class Terminated(BaseException):
    """SIGTERM has arrived."""


class Causes:
    """Problems of many rows, one line for each cause: the first, and how many others differ in their numbers alone."""

    MAX_CAUSES = 10

    def __init__(self, problems: Iterable[str] = ()) -> None:
        self._first: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self.add(problems)

    def add(self, problems: Iterable[str]) -> None:
        """Take more problems in."""
        for problem in problems:
            cause = re.sub(r"\d+", "0", problem)
            self._first.setdefault(cause, problem)
            self._counts[cause] += 1

    @property
    def is_full(self) -> bool:
        """Whether there are so many causes that no more would be read."""
        return len(self._first) >= self.MAX_CAUSES

    def lines(self) -> list[str]:
        """In the order in which they were met."""
        counted = ((first, self._counts[cause] - 1) for cause, first in self._first.items())
        return [first + (f" ({more:,} more like this)" if more else "") for first, more in counted]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` where a known name is like this one, else nothing."""
    found = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean {found[0]}?" if found else ""


class NothingToDo(UserError):
    """What was asked for is done already; no error where the same command may come twice (`--ckpt_path auto`)."""


_OUTSIDE = ("pyarrow", "safetensors", "safetensors_rust", "yaml", "zipfile", "pickle", "_pickle", "json",
            "_csv", "zlib", "lzma", "gzip", "jinja2", "huggingface_hub", "tokenizers", "datasets")  # fmt: skip
"""Packages whose own exceptions are about a file that they were given."""
_DAMAGED = (RecursionError, EOFError, UnicodeError)


def outside_problem(error: BaseException | None) -> str | None:
    """One line for an error that comes from a file or the disk, not from a mistake in this project; else None."""
    first = error
    while error is not None:
        kinds = type(error).__mro__
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or type(error).__name__
            return f"{error.filename or 'disk'}: {reason}; check the path and its permissions"
        if type(error).__module__.startswith("wandb."):
            return f"wandb: {' '.join(str(error).split())} Or set WANDB_MODE=offline, and send the run later"
        if isinstance(error, _DAMAGED) or any(kind.__module__.split(".")[0] in _OUTSIDE for kind in kinds):
            reason = " ".join(str(error).split())[:200] or "no reason given"
            return f"a file: cannot be read ({type(error).__name__}: {reason}); is it damaged? --debug shows where"
        error = error.__cause__ or error.__context__
    if isinstance(first, RuntimeError) and "home directory" in str(first):  # of Path.expanduser
        return "a path: begins with ~ and a user that this machine does not have; give the whole path"
    if isinstance(first, RuntimeError) and "PytorchStreamReader" in str(first):
        return "a file of weights: cannot be read, it is cut off or no such file; --debug shows where"
    return None


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: BaseException | None, fix: str = "free some, then resume with --ckpt_path last") -> str | None:
    """What to say where an error comes from a disk that is full, else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            what = f" for {error.filename}" if error.filename else ""
            return f"disk: got no room{what} ({error.strerror}); {fix}"
        error = error.__cause__ or error.__context__
    return None
