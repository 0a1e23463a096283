"""Conversations -> text, through the tokenizer's chat template, which is code by the model's author.

transformers renders it in Jinja's sandbox, where it can read and write nothing. Here it also gets the same date every
day, and a limit of time, memory and size: a template that loops or multiplies strings ends in one line.

What it writes before a response, the header, tells where the response begins. A prompt or a response may hold the
header as text, so it tells only where it stands once for each turn for which the template writes it.
"""

import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError
from ser_lightning.records import Turn

# Templates such as Llama 3's write today's date into the system turn: ids and rewards would change overnight. This is
# the date that they take where there is no clock.
FIXED_DATE = "26 Jul 2024"
_CLOCK = f"{{% macro strftime_now(format) %}}{FIXED_DATE}{{% endmacro %}}"
MAX_SECONDS, MAX_SECONDS_PER_TURN = 10.0, 1e-3
"""Of CPU time, for one call; a usual template takes 0.02 ms a turn."""
MAX_GROWTH, MAX_EXTRA = 100, 1_000_000
"""Most characters that a template may make of each character of a conversation, and most that it may add."""
MAX_BYTES = 2 * 1024**3
"""Most by which the process may grow while a template is rendered."""
_STATM = Path("/proc/self/statm")
_ONE_LIMIT = threading.Lock()
"""The limit is the whole process's: of two threads, one would take that of the other for what was there before."""


class TemplateRefused(UserError):
    """A chat template that raises, or goes beyond its limits."""

    def __init__(self, reason: str, what: str = "a conversation", prompt: Sequence[Turn] = ()) -> None:
        self.reason = reason
        roles = f" for the roles {', '.join(turn['role'] for turn in prompt)}" if prompt else ""
        super().__init__(
            f"chat template refuses {what}: got {reason}{roles}; use turns that the template takes, or another template"
        )


def with_fixed_date(template: str) -> str:
    """A chat template that takes every day for the same one, also where others render it."""
    return _CLOCK + template if "strftime_now" in template and not template.startswith(_CLOCK) else template


def fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer that is about to be saved write the date of training, on which rewards and answers depend."""
    template = tokenizer.get_chat_template()
    if (dated := with_fixed_date(template)) != template:
        tokenizer.chat_template = dated


def render_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Turn]], add_generation_prompt: bool = False
) -> list[str]:
    """What the chat template makes of conversations.

    Args:
        conversations: N, each of at least one turn.
        add_generation_prompt: go on to where a response begins.

    Returns:
        N texts.

    Raises:
        TemplateRefused: it raises for one of them, takes too long, or gives too much.
    """
    template = with_fixed_date(tokenizer.get_chat_template())

    def render() -> Any:
        _check_operators(template)
        return tokenizer.apply_chat_template(
            list(conversations), chat_template=template, add_generation_prompt=add_generation_prompt, tokenize=False
        )

    texts: list[str] = _limited(render, MAX_SECONDS + MAX_SECONDS_PER_TURN * sum(map(len, conversations)))
    for turns, text in zip(conversations, texts, strict=True):
        given = sum(len(turn["content"]) for turn in turns)
        if len(text) > MAX_EXTRA + MAX_GROWTH * given:
            raise TemplateRefused(f"{len(text):,} characters for {given:,} of a conversation")
    return texts


@lru_cache(maxsize=8)
def _check_operators(template: str) -> None:
    """Refuse `a ** b`, which no template needs: one such operation can take hours, and nothing can end it."""
    before = ""
    for _, kind, value in Environment().lex(template):
        if value == "**" and kind == "operator" and before not in ("(", ","):  # there it unpacks keyword arguments
            raise TemplateRefused("the operator **")
        before = before if kind == "whitespace" else value


def _limited(render: Callable[[], Any], seconds: float) -> Any:
    """What `render` returns; whatever a template raises becomes a `TemplateRefused`."""
    try:
        with _time_limit(seconds), _memory_limit(MAX_BYTES):
            return render()
    except TemplateRefused:
        raise
    except _TimeIsUp as error:
        raise TemplateRefused(f"no end within {seconds:.0f} seconds") from error
    except MemoryError as error:
        raise TemplateRefused(f"more than {MAX_BYTES / 1024**3:.0f} GiB of memory used") from error
    except Exception as error:  # nothing but the template runs here: it may divide by zero, or add None to a text
        raise TemplateRefused(" ".join(str(error).split())[:200] or type(error).__name__) from error


class _TimeIsUp(Exception):
    """A template did not end in time."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` in the block after so many seconds of CPU time; without a limit outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():  # where alone a signal can raise
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _memory_limit(num_bytes: int) -> Iterator[None]:
    """Make the block raise `MemoryError` where the process grows by more; without a limit where there is no /proc."""
    if not _STATM.is_file():
        yield
        return
    with _ONE_LIMIT:
        now = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = min([now + num_bytes, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


PROBES = ("Alpha beta.", "7 of them", "zulu")
"""Made-up responses whose ids differ from the first one on."""


@dataclass(frozen=True)
class Header:
    """What a chat template writes between the user's turn and any response.

    Attributes:
        ids: as the tokenizer writes them.
        text: what they stand for, without white space around it.
        is_in_every_turn: earlier turns of the assistant have it as well; templates of thinking models may write more
            before the last one.
    """

    ids: tuple[int, ...]
    text: str
    is_in_every_turn: bool = True


def header_ends(ids: list[int], header: Sequence[int]) -> list[int]:
    """Positions after each occurrence of `header`, ascending.

    Example:
        >>> header_ends([5, 1, 2, 9, 1, 2, 7, 8], header=(1, 2))
        [3, 6]
    """
    wanted, size, last = list(header), len(header), len(ids) - len(header)
    found, place = [], -1
    for _ in range(ids.count(wanted[0])):
        place = ids.index(wanted[0], place + 1)
        if place <= last and ids[place : place + size] == wanted:
            found.append(place + size)
    return found


def known_start(
    header: Header, rows: Sequence[list[int]], responses: Sequence[str], num_assistant_turns: int
) -> int | None:
    """Where the responses to one prompt begin, if the header tells.

    Args:
        header: of the template that wrote the rows.
        rows: C > 0 lists of ids, the prompt with each response.
        responses: C texts, or longer ones of which the rows have the front.
        num_assistant_turns: in each conversation, the response included.

    Returns:
        A position, None where the header may stand elsewhere too, or is not there as such.
    """
    if any(header.text in text for text in responses):
        return None
    ends = [header_ends(row, header.ids) for row in rows]
    expected = num_assistant_turns if header.is_in_every_turn else 1
    starts = {found[-1] if len(found) == expected else None for found in ends}
    return starts.pop() if len(starts) == 1 else None
