"""Weights and scale of a round's model: written, read as data, and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ser_lightning.runs.files import reading
from ser_lightning.runs.shapes import IDENTITY, LARGE, NUMBER, READING, check_shape
from ser_lightning.training.checkpoints import is_whole
from ser_lightning.utils.checksums import write_recorded


def write_weights(file: Path, content: Mapping[str, Any]) -> None:
    """Weights and plain values by name, as a round's `model.pt` holds them, or the state at the end of a phase."""
    write_recorded(file, lambda stream: torch.save(content, stream))


def read_weights(file: Path) -> dict[str, Any]:
    """What a round's `model.pt` or a checkpoint holds, as data: nothing in it is run.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    with reading(file):
        if not is_whole(file):
            raise ValueError("it is cut off, changed, or none")
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the reader of tensors fails on damage in every way there is
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
            raise ValueError(f"no tensors and plain values: {reason}") from error
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__}, no weights by name")
    return saved


def read_model(file: Path) -> dict[str, Any]:
    """`weights`, `zero`, `temperature`, `identity` and `reading` of a round's `model.pt`.

    Raises:
        UserError: it is damaged.
    """
    saved = read_weights(file)
    check_model(file, saved)
    return {"identity": None, "reading": None, **saved}


def check_model(file: Path, saved: Mapping[str, Any]) -> None:
    """`UserError` where weights, scale or identity of a reward model are none."""
    with reading(file, has_record=False):
        if missing := {"weights", "zero", "temperature"} - saved.keys():
            raise ValueError(f"it holds no {min(missing)}")
        _check_tensors(saved["weights"])
        if not saved["weights"]:
            raise ValueError("it holds no weights")
        if problem := scale_problem(saved["zero"], saved["temperature"]):
            raise ValueError(problem)
        if saved.get("identity") is not None:
            check_shape(saved["identity"], IDENTITY, "identity")
        if saved.get("reading") is not None:
            check_shape(saved["reading"], READING, "reading")


def check_weights(file: Path, weights: Any, what: str = "run") -> None:
    """`UserError` where the weights in a file of a `run` or a `model` are no finite tensors by name."""
    with reading(file, has_record=False, what=what):
        _check_tensors(weights)


def _check_tensors(weights: Any) -> None:
    """`ValueError` where these are no finite tensors by name."""
    if not isinstance(weights, dict):
        raise ValueError("it holds no weights by name")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is no tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has NaN or infinity in it")


def scale_problem(zero: Any, temperature: Any) -> str | None:
    """What is wrong with the scale of a reward model; None where nothing is."""
    numbers = [type(value) in NUMBER and abs(value) < LARGE for value in (zero, temperature)]
    if all(numbers) and temperature > 0:
        return None
    return f"it has the zero {zero!r} and the temperature {temperature!r}; need finite numbers, the second above 0"
