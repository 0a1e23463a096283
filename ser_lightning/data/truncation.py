"""How much of a prompt fits: the oldest turns go first, then the beginning of the last one.

A search asks a template again and again, which may refuse some of the cuts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ser_lightning.data.templates import TemplateRefused
from ser_lightning.data.turns import SYSTEM_ROLES
from ser_lightning.records import Turn

Encoding = TypeVar("Encoding")
_MAX_TRIES = 8


def shortest_cuts(prompt: list[Turn]) -> Iterator[list[Turn]]:
    """The last turn emptied; and for templates that refuse that, its last character, and its last that is no space."""
    system, turns = _system_and_turns(prompt)
    for last in turns[-1:]:
        text = last["content"]
        ends = [0, 1, len(text) - len(text.rstrip()) + 1] if text.strip() else [0]
        yield from ([*system, _tail(last, end)] for end in dict.fromkeys(ends))


def longest_cut(
    prompt: list[Turn], attempt: Callable[[list[Turn]], tuple[int, Encoding]], max_length: int
) -> Encoding | None:
    """The encoding of the longest cut of a prompt that fits; None where nothing does that the template takes.

    Args:
        prompt: does not fit as a whole.
        attempt: from a prompt to its length in ids and its encoding.
    """
    system, turns = _system_and_turns(prompt)
    encode = tolerant(attempt)
    found = ((cut, encode(cut)) for cut in shortest_cuts(prompt))
    shortest = next(((cut, tried) for cut, tried in found if tried is not None and tried[0] <= max_length), None)
    if shortest is None:
        return None
    # Many templates insist on a dialogue that the user opens.
    starts = [i for i in range(1, len(turns)) if turns[i]["role"] == "user" or i == len(turns) - 1]
    whole_turns, last_length = _most_turns(lambda start: encode([*system, *turns[start:]]), starts, max_length)
    if whole_turns is not None:
        return whole_turns
    last = turns[-1]
    keep = lambda n: encode([*system, _tail(last, n)])  # noqa: E731
    if not starts and (whole := keep(len(last["content"]))) is not None:
        last_length = max(last_length, whole[0])
    least = (len(shortest[0][-1]["content"]), *shortest[1])
    return longest_fit(keep, least, (len(last["content"]), last_length), max_length)


def tolerant(attempt: Callable[..., Encoding]) -> Callable[..., Encoding | None]:
    """`attempt` that gives None where the template refuses: many take only some of the cuts of a conversation."""

    def tried(*args: Any) -> Encoding | None:
        try:
            return attempt(*args)
        except TemplateRefused:
            return None

    return tried


def longest_fit(
    keep: Callable[[int], tuple[int, Encoding] | None],
    least: tuple[int, int, Encoding],
    most: tuple[int, int],
    max_length: int,
) -> Encoding:
    """Search for the most characters that fit; ids grow almost in step with characters.

    Args:
        keep: from a number of characters to the length in ids (of the longest conversation) and the encoding, None
            where the template refuses.
        least: characters that fit, the length with them, and the encoding.
        most: characters that do not fit, and the length with them.
    """
    (fitting, fit_length, best), (too_many, too_long) = least, most
    for _ in range(_MAX_TRIES):
        if fit_length == max_length or too_many - fitting <= 1:
            break
        guess = fitting + (too_many - fitting) * (max_length - fit_length) // max(1, too_long - fit_length)
        guess = min(max(guess, fitting + 1), too_many - 1)
        tried = keep(guess)
        if tried is not None and tried[0] <= max_length:
            fitting, (fit_length, best) = guess, tried
        else:
            too_many, too_long = guess, max(max_length + 1, tried[0] if tried else 0)
    return best


def _most_turns(
    encode: Callable[[int], tuple[int, Encoding] | None], starts: Sequence[int], max_length: int
) -> tuple[Encoding | None, int]:
    """Search for the first start from which the turns fit: doubling from the end, then halving.

    Args:
        encode: from a start to the length in ids and the encoding, None where the template refuses.
        starts: where a cut may begin, ascending.

    Returns:
        The encoding, None if none fits; and the length of the shortest that does not fit.
    """
    best: Encoding | None = None
    fitting, too_many, too_long, step = 0, len(starts) + 1, max_length + 1, 1  # counted from the end
    while too_many - fitting > 1:
        count = min(fitting + step, too_many - 1) if too_many > len(starts) else (fitting + too_many) // 2
        tried = encode(starts[-count])
        if tried is not None and tried[0] <= max_length:
            fitting, best, step = count, tried[1], 2 * step
        else:
            too_many, too_long = count, max(max_length + 1, tried[0] if tried else 0)
    return best, too_long


def _system_and_turns(prompt: list[Turn]) -> tuple[list[Turn], list[Turn]]:
    num_system = sum(turn["role"] in SYSTEM_ROLES for turn in prompt[:1])
    return prompt[:num_system], prompt[num_system:]


def _tail(turn: Turn, num_characters: int) -> Turn:
    return {**turn, "content": turn["content"][len(turn["content"]) - num_characters :]}
