"""The Hub, asked once whether it is there: without it `huggingface_hub` tries every file six times, for 40 seconds."""

import sys
from functools import lru_cache
from pathlib import Path

TIMEOUT_S = 5.0
"""To be answered; what answers later counts as not there."""


def without_hub(path: str) -> bool:
    """Whether a model or data set has to come from what was downloaded before, because the Hub cannot be reached.

    Then `huggingface_hub`, transformers and `datasets` are set offline, as `HF_HUB_OFFLINE=1` does: what is in the
    cache is found at once, and what is not there is said at once.

    Args:
        path: a folder or a name on the Hub; nobody asks the Hub for a folder that is there.
    """
    return not Path(path).expanduser().exists() and not _is_reachable()


@lru_cache(maxsize=1)
def _is_reachable() -> bool:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)  # an answer of any kind is one
        return True
    except Exception:  # its HTTP library, which has changed and may again, has a dozen kinds
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
