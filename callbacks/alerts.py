"""Alerts and tables beyond the terminal: Weights & Biases and webhooks, where they are configured."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from ser_lightning.errors import UserError
from ser_lightning.runs.config import has_secrets, read_config
from ser_lightning.runs.files import CONFIG, PAGE, ROUNDS

CARD_COLUMNS = ("pair_id", "prompt", "response_a", "response_b", "probability", "before", "label", "reason")


def alert(trainer: Trainer, title: str, text: str) -> None:
    """Say it in terminal and log, to `wandb` and to webhooks where they are on; what fails only adds a warning."""
    rank_zero_warn(f"{title}: {text}")
    for callback in trainer.callbacks:
        if isinstance(callback, WebhookCallback):
            callback.send(trainer, title, text)
    for run in _wandb_runs(trainer):
        _try("alert", partial(run.alert, title=title, text=text, level="WARN", wait_duration=0))


def log_round_tables(
    trainer: Trainer, rows: Sequence[dict[str, float]], cards: dict[str, list[dict[str, Any]]], number: int
) -> None:
    """The table of rounds so far, and pairs of a round to read, as `wandb` tables.

    Args:
        cards: pairs by why they were chosen, as in `rounds/<r>/report.json`.
        number: of the round that the pairs are of.
    """
    pairs = [[number, kind, *(card[name] for name in CARD_COLUMNS)] for kind, found in cards.items() for card in found]
    for run in _wandb_runs(trainer):
        _try("tables", partial(_send_tables, run, rows, pairs))


def log_run_artifact(trainer: Trainer, folder: Path) -> None:
    """Tables, audits, guards and page of a run as one `wandb` artifact; no weights."""
    files = [folder / name for name in (ROUNDS, PAGE, CONFIG)]
    if (folder / CONFIG).is_file() and has_secrets(read_config(folder)):
        files.remove(folder / CONFIG)
    files += sorted(folder.glob("rounds/*/audit.parquet")) + sorted(folder.glob("rounds/*/guards.json"))
    for run in _wandb_runs(trainer):
        _try("artifact", partial(_send_files, run, folder, [file for file in files if file.is_file()]))


def _send_tables(run: Any, rows: Sequence[dict[str, float]], pairs: list[list[Any]]) -> None:
    import wandb

    rounds = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    read = wandb.Table(columns=["round", "chosen_as", *CARD_COLUMNS], data=pairs)
    run.log({"rounds": rounds, "pairs_to_read": read})


def _send_files(run: Any, folder: Path, files: list[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(f"rounds-{run.id}", type="rounds")
    for file in files:
        artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
    run.log_artifact(artifact)


def _wandb_runs(trainer: Trainer) -> list[Any]:
    """On rank 0, where runs live."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _try(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        rank_zero_warn(f"wandb: {what} not sent ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


TIMEOUT_S, ATTEMPTS, BACKOFF_S = 5.0, 3, 0.5
"""To connect and be answered; for an alert; the pause before the second attempt, doubled before each further one."""


class WebhookCallback(Callback):
    """Post every alert as JSON, `{"title": ..., "text": ..., "run": ...}`, from a thread of its own.

    Args:
        url: http or https address that takes a POST, or `$NAME` for one that an environment variable holds: such an
            address is a secret, and a config is copied around.
    """

    def __init__(self, url: str) -> None:
        self.url = os.environ.get(url[1:], "") if url.startswith("$") else url
        if not self.url:
            raise UserError(f"webhook.url: got {url}, which is not set; export {url[1:]}=https://...")
        if (scheme := urlsplit(self.url).scheme) not in ("http", "https"):
            raise UserError(f"webhook.url: got {scheme or 'no scheme'}; use an http or https address")
        self._thread: ThreadPoolExecutor | None = None
        self._sent: list[Future[str]] = []

    def send(self, trainer: Trainer, title: str, text: str) -> None:
        """Queue an alert, on rank 0; returns at once."""
        if trainer.is_global_zero:
            self._thread = self._thread or ThreadPoolExecutor(1, "webhook")
            content = {"title": title, "text": text, "run": str(trainer.default_root_dir)}
            self._sent.append(self._thread.submit(self._post, content))
            self._report()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait one time-out for alerts that are not yet sent, once training is over."""
        if self._thread is not None:
            wait(self._sent, TIMEOUT_S)
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._report()
            if self._sent:
                _warn_of_webhook("the address does not answer")
            self._thread, self._sent = None, []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As after training: a crash skips `teardown`."""
        self.teardown(trainer, pl_module, "fit")

    def _post(self, content: dict[str, str]) -> str:
        """What went wrong, if anything."""
        retries = urllib3.Retry(
            ATTEMPTS - 1, backoff_factor=BACKOFF_S, status_forcelist=(429, *range(500, 600)), allowed_methods=None
        )
        try:
            answer = urllib3.request("POST", self.url, json=content, retries=retries, timeout=TIMEOUT_S)
            return f"status {answer.status}" if answer.status >= 300 else ""
        except Exception as error:
            return type(error).__name__

    def _report(self) -> None:
        """From the training's own thread, where warnings are seen."""
        done = [future for future in self._sent if future.done()]
        self._sent = [future for future in self._sent if future not in done]
        for future in done:
            if problem := "never sent" if future.cancelled() else future.result():
                _warn_of_webhook(problem)


def _warn_of_webhook(problem: str) -> None:
    """Never prints the address: it may hold a secret."""
    rank_zero_warn(f"webhook: an alert was not sent ({problem}); training goes on")
