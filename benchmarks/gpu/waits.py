"""How often the host waits for the card, and where in the code."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.job import without_paths


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Waits in this context by the line of Python that makes them; none is counted without a card.

    PyTorch warns of calls that synchronise with the card, and says nothing of those that somebody asks for by name, as
    `torch.cuda.synchronize` is.
    """
    found: Counter[str] = Counter()

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        if "synchronizing" in str(message):
            found[f"{without_paths(filename)}:{lineno}"] += 1

    if not torch.cuda.is_available():
        yield found
        return
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def summary(found: Counter[str], number: int = 1) -> dict[str, Any]:
    """Waits for each of a number of steps, and the places that make most of them."""
    return {"a_step": found.total() / number, "places": dict(found.most_common(12))}
