"""Errors that are the user's to mend: one line each, with what was wrong, what was got and how to fix it."""

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
