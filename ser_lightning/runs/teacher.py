"""What a finished run teaches another: the pseudo-labels that its delivered model keeps, and those for each fold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ser_lightning.errors import UserError
from ser_lightning.records import Selection
from ser_lightning.runs.files import delivered_round, reading, round_files
from ser_lightning.runs.pair_tables import read_audit
from ser_lightning.runs.weights import read_weights
from ser_lightning.training.checkpoints import LAST

_CALLBACK, _DATA = "EvolutionCallback", "PreferenceDataModule"
"""Under which names a checkpoint holds their state."""


@dataclass(frozen=True)
class Teacher:
    """The labels of a finished run."""

    run: Path
    fingerprint: str
    """Of its splits and seed labels, as the data module of the run gave it."""
    selection: Selection
    """Labels of its delivered model for pairs of its pool."""
    fold_selections: dict[int, Selection]
    """For each fold of its seed, labels of models that never saw the fold; empty without folds or later rounds."""


def read_teacher(run: Path) -> Teacher:
    """The pseudo-labels that the delivered round of a run keeps.

    Raises:
        UserError: the run is not finished, its delivered round keeps no pseudo-label, or a file is missing or damaged.

    Example:
        >>> teacher = read_teacher(Path("runs/mine"))  # doctest: +SKIP
        >>> len(teacher.selection)  # doctest: +SKIP
        412
    """
    number, checkpoint = delivered_round(run), run / LAST
    if not checkpoint.is_file():
        raise UserError(f"data.teacher: got {run}, which has no {LAST}; give the whole folder of a finished fit")
    saved = read_weights(checkpoint)
    with reading(checkpoint, has_record=False):
        state, data = saved["callbacks"][_CALLBACK], saved[_DATA]
        if not state["finished"]:
            raise UserError(
                f"data.teacher: got {run}, whose evolution is not finished; resume it with --run_dir {run} "
                "--ckpt_path last"
            )
        folds = {int(fold): _latest(past, number) for fold, past in dict(state["fold_history"]).items()}
        fingerprint = str(data["fingerprint"])
    selection = _kept(run, number)
    if len(selection) == 0:
        raise UserError(
            f"data.teacher: got {run}, whose delivered round {number} keeps no pseudo-label, so it has nothing to "
            "teach; train on its seed alone, without data.teacher, or give another run"
        )
    return Teacher(run, fingerprint, selection, folds)


def _kept(run: Path, number: int) -> Selection:
    """What a round has selected, by its audit."""
    file = round_files(run, number).audit
    if (audit := read_audit(file)) is None:
        raise UserError(f"data.teacher: {file} is gone, which holds the pseudo-labels; give a whole run folder")
    kept = audit["kept"]
    prob_a = torch.from_numpy(audit["probability"][kept]).float()
    return Selection(
        torch.from_numpy(audit["pair_id"][kept]),
        torch.from_numpy(audit["label"][kept]).to(torch.int8),
        torch.maximum(prob_a, 1 - prob_a),
        status=0,
        round=number,
    )


def _latest(past: list[Mapping[str, Any]], number: int) -> Selection:
    """The last selection of a fold's models up to a round."""
    found = [Selection(**one) for one in past if one["round"] <= number]
    return found[-1] if found else Selection.empty()
