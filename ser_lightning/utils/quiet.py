"""Third-party notes that tell the user nothing, hidden before the packages that write them are imported."""

import logging
import os
import sys
import warnings
from pathlib import Path

from ser_lightning.utils.terminal import visible

PACKAGE = Path(__file__).parent.parent
OWN = (PACKAGE, *(PACKAGE.parent / name for name in ("callbacks", "datamodules")))
"""Folders of this project's code, installed or in a checkout."""

QUIET_LOGS = (
    "GPU available:",  # the accelerator that is used shows in the config and in the module's summary
    "TPU available:",
    "HPU available:",
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes falls back to its own code, which is what the tests run
    "💡 Tip:",  # advertises packages that this project does not use
    "Trainer already configured with model summary",  # which is one line here
    "Token indices sequence length is longer",  # of texts that are cut after it
)
LOGGERS = ("lightning.pytorch", "lightning.fabric")
"""Whose lines go around progress bars."""
QUIET_WARNINGS = (
    r".*does not have many workers",  # batches come encoded from a cache: workers would only copy them
    r".*`is_gradient_checkpointing` is deprecated",  # peft asks transformers by an old name
    r".*isinstance\(treespec, LeafSpec\)",  # inside Lightning, on PyTorch's account
    r"Total length of `list` across ranks is zero",  # no validation pairs, the normal case; an empty seed is an error
    r".*is smaller than the logging interval",  # a seed of few steps an epoch is what this project is for
    r"Found \d+ module\(s\) in eval mode at the start of training",  # a body that is not trained, on purpose
    r"Precision \S+ is not supported by the model summary",  # whose bytes are not shown
    r".*_checkpointing.* is deprecated",  # transformers 5 to peft, which renames it when it can
)


def quieten() -> None:
    """Hide third-party notes that tell the user nothing; warnings other than these are left alone."""
    for name in ("lightning.pytorch.utilities.rank_zero", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_is_worth_reading)
    logging.getLogger("transformers.tokenization_utils_base").addFilter(_is_worth_reading)
    # Lightning itself calls jsonargparse in ways that jsonargparse calls deprecated.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    if not sys.stderr.isatty():  # bars of transformers, which would leave all their states in a file
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message)


def plain_warnings() -> None:
    """Show warnings of this project as one line, without the place in its code; call it when Lightning is imported."""
    others = warnings.formatwarning

    def format_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning) and any(map(Path(filename).is_relative_to, OWN)):
            return f"warning: {visible(str(message))}\n"
        return others(message, category, filename, lineno, line)

    if others.__name__ != format_warning.__name__:
        warnings.formatwarning = format_warning


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Also shows control characters, which come from names and data, as their escapes."""
    text = record.getMessage()
    if (shown := visible(text)) != text:
        record.msg, record.args = shown, ()
    return not text.startswith(QUIET_LOGS)
