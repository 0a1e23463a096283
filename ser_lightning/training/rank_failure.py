"""When a rank dies, the others end soon, and the original error is printed first."""

import os
import signal
import threading
import time

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

FOLLOW_UP_SECONDS = 3.0
"""How long a rank that has only lost another one waits, so that the error of that one is printed first."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Socket Timeout", "Broken pipe")


def lost_rank(error: BaseException) -> str | None:
    """What to say where a collective operation failed because another rank is gone, else None."""
    is_network = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    reason = next((text for text in _LOST if text in str(error)), None)
    if not is_network or reason is None:
        return None
    return f"ranks: got {reason!r}: another rank has ended; its own error, if it had time for one, stands above"


class EndAfterSigterm(Callback):
    """Limits the time that one of several ranks takes to end after SIGTERM, which need not reach the others.

    Lightning answers the signal with a collective operation, and ends the rank at its next batch. A rank that waits for
    the others reaches neither: Python runs no handler while C++ code waits. So a thread reads the signal from the file
    descriptor of `signal.set_wakeup_fd`. The others end when they lose this rank.

    Args:
        grace_seconds: time to end by itself.
    """

    def __init__(self, grace_seconds: float = 10.0) -> None:
        self.grace_seconds = grace_seconds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the thread, if there are several ranks."""
        if trainer.world_size > 1:
            signals, written = os.pipe()
            os.set_blocking(written, False)
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(signals,), name="end-after-sigterm", daemon=True).start()

    def _listen(self, signals: int) -> None:
        while signal.SIGTERM not in os.read(signals, 64):
            continue
        time.sleep(self.grace_seconds)
        os._exit(128 + signal.SIGTERM)


def end_with_parent(grace_seconds: float = 20.0, poll_seconds: float = 1.0) -> None:
    """End this process some time after the one that started it, whatever it waits for.

    A rank that Lightning started would otherwise wait in a collective operation for the rank 0 that was killed.

    Args:
        grace_seconds: time to end by itself, when the parent has ended in good order.
        poll_seconds: how often to look.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
