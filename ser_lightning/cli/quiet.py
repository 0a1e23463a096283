"""Third-party notes that tell the user nothing, hidden before the packages that write them are imported."""

import logging
import os
import warnings

QUIET_LOGS = (
    "GPU available:",  # the accelerator that is used shows in the config and in the module's summary
    "TPU available:",
    "HPU available:",
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes falls back to its own code, which is what the tests run
    "💡 Tip:",  # advertises packages that this project does not use
)
QUIET_WARNINGS = (
    r".*does not have many workers",  # batches come encoded from a cache: workers would only copy them
    r".*`is_gradient_checkpointing` is deprecated",  # peft asks transformers by an old name
    r".*isinstance\(treespec, LeafSpec\)",  # inside Lightning, on PyTorch's account
    r"Total length of `list` across ranks is zero",  # no validation pairs, the normal case; an empty seed is an error
    r".*is smaller than the logging interval",  # a seed of few steps an epoch is what this project is for
    r"Found \d+ module\(s\) in eval mode at the start of training",  # a body that is not trained, on purpose
    r".*_checkpointing.* is deprecated",  # transformers 5 to peft, which renames it when it can
)


def quieten() -> None:
    """Hide third-party notes that tell the user nothing; warnings other than these are left alone."""
    for name in ("lightning.pytorch.utilities.rank_zero", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_is_worth_reading)
    # Lightning itself calls jsonargparse in ways that jsonargparse calls deprecated.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(QUIET_LOGS)
