"""What is done to files of every kind, and what is right to happen then."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Right = Literal["same", "refused", "any"]
"""The command gives what it gives for the sound folder or refuses; it refuses; it may do either."""
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        3.5,
        10**400,
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "12",
        "../../x",
        "[/b]",
        "\x1b[2J",
    ),
    *([], [1], {}, {"x": 1}, {"class_path": "os.getcwd"}, "null", "\ud800"),
)


@dataclass(frozen=True)
class Damage:
    """What was done to a folder."""

    kind: str
    right: Right


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _zeros(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    length = min(len(content) - start, rng.randint(1, 400))
    return content[:start] + bytes(length) + content[start + length :]


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": lambda rng, content: content[: rng.randrange(1, len(content))],
    "a bit turned": _flip,
    "zeros": _zeros,
    "empty": lambda rng, content: b"",
    "binary": lambda rng, content: rng.randbytes(200),
    "longer": lambda rng, content: content + rng.randbytes(20),
}


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += _leaves(value, (*path, key))
    return found


def set_somewhere(rng: random.Random, content: Any) -> str:
    """Give one place of a tree another value, or none.

    Returns:
        The place.
    """
    path = rng.choice(_leaves(content))
    node = content
    for key in path[:-1]:
        node = node[key]
    if rng.random() < 0.2:
        del node[path[-1]]
    else:
        node[path[-1]] = rng.choice(ODD)
    return ".".join(str(key) for key in path if not isinstance(key, int))
