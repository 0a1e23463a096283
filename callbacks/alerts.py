"""Alerts and tables for people who are not at the terminal: Weights & Biases and webhooks, where they are on."""

import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from ser_lightning.errors import raise_problems
from ser_lightning.runs.files import CONFIG, PAGE, ROUNDS, has_secrets, read_config

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
        trainer: has the loggers.
        rows: lines of `rounds.csv`.
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


MAX_WAITING = 100
"""Alerts that wait while the address does not answer; later ones are dropped with a warning."""
BACKOFF_S = 0.5
"""Pause before the second attempt, doubled before each further one."""


class WebhookCallback(Callback):
    """Post every alert as JSON, `{"title": ..., "text": ..., "run": ...}`, from a thread of its own.

    Args:
        url: http or https address that takes a POST, or `$NAME` for one that an environment variable holds: such an
            address is a secret, and a config is copied around.
        timeout_s: seconds for an attempt to connect and be answered.
        attempts: at most, for an alert; after that it is dropped with a warning.
    """

    def __init__(self, url: str, timeout_s: float = 5.0, attempts: int = 3) -> None:
        problems = []
        if url.startswith("$"):
            name, url = url[1:], os.environ.get(url[1:], "")
            problems += [] if url else [f"webhook.url: got ${name}, which is not set; export {name}=https://..."]
        if not problems and urlsplit(url).scheme not in ("http", "https"):
            problems.append(f"webhook.url: got {urlsplit(url).scheme or 'no scheme'}; use an http or https address")
        if timeout_s <= 0:
            problems.append(f"webhook.timeout_s: got {timeout_s}; need more than 0")
        if attempts < 1:
            problems.append(f"webhook.attempts: got {attempts}; need at least 1")
        raise_problems(problems)
        self.url, self.timeout_s, self.attempts = url, timeout_s, attempts
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._failures: list[str] = []

    def send(self, trainer: Trainer, title: str, text: str) -> None:
        """Queue an alert, on rank 0; returns at once."""
        if not trainer.is_global_zero:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait({"title": title, "text": text, "run": str(trainer.default_root_dir)})
        except queue.Full:
            self._failures.append(f"{MAX_WAITING} alerts wait already")
        self._report()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give what waits one time-out to get away, after training is over."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As after training: a crash skips `teardown`."""
        self._finish()

    def _finish(self) -> None:
        if self._thread is None:
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._failures.append(f"{MAX_WAITING} alerts were never sent")
        self._thread.join(self.timeout_s)
        if self._thread.is_alive():
            self._failures.append("the address does not answer; what still waits is not sent")
        self._thread = None
        self._report()

    def _work(self) -> None:
        retries = urllib3.Retry(
            self.attempts - 1, backoff_factor=BACKOFF_S, status_forcelist=(429, *range(500, 600)), allowed_methods=None
        )
        pool = urllib3.PoolManager(retries=retries, timeout=self.timeout_s)
        while (content := self._waiting.get()) is not None:
            try:
                answer = pool.request(
                    "POST", self.url, body=json.dumps(content), headers={"Content-Type": "application/json"}
                )
                if answer.status >= 300:
                    self._failures.append(f"status {answer.status}")
            except Exception as error:
                self._failures.append(type(error).__name__)

    def _report(self) -> None:
        """From the training's own thread, where warnings are seen. Never prints the address: it may hold a secret."""
        while self._failures:
            rank_zero_warn(f"webhook: an alert was not sent ({self._failures.pop(0)}); training goes on")
