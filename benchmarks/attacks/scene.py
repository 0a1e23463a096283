"""Sound folders to be damaged, and commands whose end is judged: a tiny model of bytes, its run, its export."""

import contextlib
import csv
import io
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.shared.tiny_model import write_model, write_pairs
from ser_lightning.__main__ import main

HANGS_AFTER = 60
"""Seconds; the slowest of these commands takes ten."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    """On standard error."""
    fault: str = ""
    """Why this is no good end; empty for a good one."""


def run_command(*words: str) -> Ended:
    """Run a command line in this process: it has to end with a result, or with a line for what is wrong."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), _limit():
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0) if not isinstance(stop.code, str) else 1
        except Hang:
            return Ended(-1, said.getvalue(), "hangs")
        except BaseException:
            return Ended(-1, said.getvalue(), f"traceback: {traceback.format_exc()[-1500:]}")
    text = said.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text:
        return Ended(code, text, f"traceback: {text[-1500:]}")
    if code not in (0, 2) or (code == 2) != bool(lines):
        return Ended(code, text, f"code {code} and {len(lines)} lines")
    if any("\x1b" in line for line in lines):
        return Ended(code, text, "a command to the terminal")
    return Ended(code, lines[0] if lines else "")


class Hang(BaseException):
    """A command takes longer than any should."""


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fit_words(folder: Path, run: Path, *more: str) -> list[str]:
    """A fit of a second or two on the model and the pairs of a scene: seed model and one round, adapters."""
    return [
        *("fit", "--config", "rm.yaml", f"--model.backbone.path={folder / 'base'}", f"--run_dir={run}"),
        *(
            "--model.backbone.train=lora",
            f"--data.path={folder / 'pairs.jsonl'}",
            f"--data.cache_dir={folder / 'cache'}",
        ),
        *("--data.max_length=64", "--data.pairs_per_step=8", "--data.seed_fraction=0.3"),
        *("--evolution.max_rounds=1", "--evolution.seed_epochs=1", "--evolution.epochs_per_round=1"),
        *("--evolution.folds=2", "--evolution.rule=ser_lightning.TopShareRule", "--trainer.accelerator=cpu"),
        *("--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false", *more),
    ]


def must_end_well(*words: str) -> None:
    """Run a command that has no reason to fail."""
    ended = run_command(*words)
    if ended.code or ended.fault:
        raise RuntimeError(f"{' '.join(words)}: {ended}")


def make_scene(folder: Path) -> Path:
    """`base/`, `pairs.jsonl`, `run/`, `half/` (the same run, broken off), `export/`, `rewards.jsonl`."""
    folder.mkdir(parents=True)
    write_model(folder / "base")
    write_pairs(folder / "pairs.jsonl", 60)
    must_end_well(*fit_words(folder, folder / "run"))
    must_end_well(*fit_words(folder, folder / "half", "--trainer.max_epochs=5"))
    must_end_well("export", str(folder / "run"), f"--to={folder / 'export'}")
    pairs = f"--data={folder / 'pairs.jsonl'}"
    must_end_well("score", f"--model={folder / 'export'}", pairs, f"--out={folder / 'rewards.jsonl'}")
    return folder


def results_of(run: Path) -> dict[str, Any]:
    """What a run has found, without its times: rounds, labels, weights."""
    with (run / "rounds.csv").open(newline="") as file:
        rounds = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    found: dict[str, Any] = {"rounds": rounds}
    for folder in sorted((run / "rounds").iterdir()):
        found[f"audit {folder.name}"] = pq.read_table(folder / "audit.parquet").to_pydict()
        weights = torch.load(folder / "model.pt", weights_only=True)["weights"]
        found[f"model {folder.name}"] = {name: tensor.tolist() for name, tensor in weights.items()}
    return found


def drafts(folder: Path) -> Sequence[Path]:
    """Files that a writer had not finished."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix in (".new", ".draft")]
