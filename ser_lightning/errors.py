"""Errors that are the user's to mend: one line each, with what was wrong, what was got and how to fix it."""

import errno
from collections.abc import Iterable


class UserError(ValueError):
    """One or more problems with the user's data or config; the command line prints a line for each and exits with 2.

    Args:
        problems: one sentence or several, each "what: got; fix" on a single line.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one `UserError` that holds every problem, or return when there is none."""
    if found := list(problems):
        raise UserError(found)


class NothingToDo(UserError):
    """What was asked for is done already; no error where the same command may come twice (`--ckpt_path auto`)."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(error: BaseException | None) -> str | None:
    """What to say where an error comes from a disk that is full, else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            what = f" for {error.filename}" if error.filename else ""
            return f"disk: got no room{what} ({error.strerror}); free some, then resume with --ckpt_path last"
        error = error.__cause__ or error.__context__
    return None
