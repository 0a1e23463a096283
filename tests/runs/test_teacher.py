"""What a finished run teaches: the labels that its delivered round keeps, and one line for each run that cannot."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ser_lightning.errors import UserError
from ser_lightning.runs.teacher import read_teacher
from ser_lightning.utils.checksums import write_recorded
from tests.helpers import read_csv

RULE = ("--evolution.rule=ser_lightning.TopShareRule", "--evolution.rule.share=0.5")


def checkpoint_of(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def test_a_teacher_has_the_kept_labels_of_the_delivered_round(tiny_fit):
    run = tiny_fit(*RULE)
    [number] = [int(row["round"]) for row in read_csv(run / "rounds.csv") if row["delivered"] == "1"]
    audit = pq.read_table(run / f"rounds/{number}/audit.parquet").to_pylist()
    kept = {row["pair_id"]: row for row in audit if row["kept"]}
    teacher = read_teacher(run)
    assert teacher.selection.round == number and len(teacher.selection) == len(kept) > 10
    taught = zip(teacher.selection.pair_id.tolist(), teacher.selection.label.tolist(), strict=True)
    assert dict(taught) == {i: row["label"] for i, row in kept.items()}
    sure = [max(kept[i]["probability"], 1 - kept[i]["probability"]) for i in teacher.selection.pair_id.tolist()]
    assert teacher.selection.probability.tolist() == pytest.approx(sure)


def test_each_fold_has_labels_of_models_that_never_saw_it(tiny_fit):
    run = tiny_fit(*RULE)
    saved = checkpoint_of(run)["callbacks"]["EvolutionCallback"]["fold_history"]
    found = read_teacher(run).fold_selections
    assert found.keys() == saved.keys() == {0, 1}
    for fold, past in saved.items():  # two rounds, of which the last one labels for no later one
        assert [one["round"] for one in past] == [0]
        assert torch.equal(found[fold].pair_id, past[0]["pair_id"]) and torch.equal(found[fold].label, past[0]["label"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "checkpoints/last.ckpt").unlink(), "has no checkpoints/last.ckpt; give the whole folder"),
        (lambda run: _change(run, finished=False), "whose evolution is not finished; resume it with --run_dir"),
        (lambda run: _change(run, fold_history=None), "cannot read .*last.ckpt"),
        (lambda run: (run / "rounds.csv").unlink(), "has no rounds.csv; give the folder of a fit that has"),
        (lambda run: [file.unlink() for file in run.glob("rounds/*/audit.parquet")], "is gone, which holds the"),
        (lambda run: _keep_none(run), "keeps no pseudo-label, so it has nothing to teach"),
        (lambda run: shutil.rmtree(run), "has no rounds.csv"),
    ],
    ids=["no_checkpoint", "unfinished", "no_folds", "no_round", "no_audit", "nothing_kept", "no_run"],
)  # fmt: skip
def test_a_run_that_cannot_teach_is_named_in_one_line(tiny_fit, damage, said):
    run = tiny_fit(*RULE)
    damage(run)
    with pytest.raises(UserError, match=said) as error:
        read_teacher(run)
    assert len(error.value.problems) == 1 and str(run) in str(error.value)


def _change(run: Path, **values) -> None:
    saved = checkpoint_of(run)
    saved["callbacks"]["EvolutionCallback"].update(values)
    torch.save(saved, run / "checkpoints/last.ckpt")


def _keep_none(run: Path) -> None:
    for file in run.glob("rounds/*/audit.parquet"):
        rows = pq.read_table(file).to_pylist()
        table = pa.Table.from_pylist([{**row, "kept": False} for row in rows])
        write_recorded(file, lambda stream, table=table: pq.write_table(table, stream))
