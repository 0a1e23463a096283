"""Alerts and tables for people who are not at the terminal: Weights & Biases and webhooks, where they are on."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from ser_lightning.callbacks.webhook import WebhookCallback

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
    files = [folder / "rounds.csv", folder / "report.html", folder / "config.yaml"]
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
