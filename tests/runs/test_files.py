"""The files of a run: what is written is what is read, and damage is named."""

import csv
import math

import pytest
import torch

from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.runs.files import (
    ROUNDS,
    RoundRow,
    check_scale,
    delivered_round,
    read_audit,
    read_config,
    read_rounds,
    read_weights,
    round_files,
    run_above,
    write_audit,
    write_rounds,
)

COLUMNS = (
    "round,scored,kept,flipped,status,pseudo_label_accuracy,pool_accuracy,seed_oof_accuracy,test_accuracy,calibration_error,"
    "length_correlation,tokens,seconds,delivered,net_label_change,forecast_accuracy,forecast_low,forecast_high,"
    "forecast_error,predicted_gain,predicted_last_round"
)


def row(number, delivered=False):
    return RoundRow(number, 100, 40, 3, 1, 0.8, float("nan"), 0.7, 0.75, 0.05, -0.1, 12345, 2.5, delivered)


def test_rounds_csv_has_the_promised_columns(tmp_path):
    write_rounds(tmp_path, [row(0), row(1, True)])
    with (tmp_path / ROUNDS).open(newline="") as file:
        assert file.readline().strip() == COLUMNS
        file.seek(0)
        read = list(csv.DictReader(file))
    assert [r["delivered"] for r in read] == ["0", "1"]
    assert (read[0]["pseudo_label_accuracy"], read[0]["pool_accuracy"], read[0]["tokens"]) == ("0.8", "nan", "12345")


def test_rounds_are_read_as_they_were_written(tmp_path):
    write_rounds(tmp_path, [row(0), row(1, True)])
    first, second = read_rounds(tmp_path)
    assert (first["seed_oof_accuracy"], second["round"], second["tokens"]) == (0.7, 1, 12345)
    assert math.isnan(first["pool_accuracy"])
    assert delivered_round(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no rounds.csv; give the folder of a fit that has finished round 0"),
        ("round,delivered\n", "has no line"),
        ("round,delivered\n0,yes\n", "is it damaged?"),
        ("round,delivered\n0\n", "is it damaged?"),
        ("round,delivered\n0,0\n", "marks no round as delivered"),
    ],
)
def test_a_damaged_table_of_rounds_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / ROUNDS).write_text(text)
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        delivered_round(tmp_path)


def test_an_audit_has_a_reason_for_every_pair(tmp_path):
    ids, reward = torch.arange(3), torch.tensor([2.0, 0.5, -0.1])
    pool = PairScores(ids, reward, torch.zeros(3), ids, ids)
    result = SelectionResult(reward.sigmoid(), torch.tensor([True, False, False]), 1, False, "")
    path = round_files(tmp_path, 0).audit
    assert read_audit(path) is None
    path.parent.mkdir(parents=True)
    write_audit(path, pool, result)
    audit = read_audit(path)
    assert audit["label"].tolist() == [1, 1, 0]
    assert audit["kept"].tolist() == [True, False, False]
    assert audit["reason"].tolist() == ["kept", "not sure enough", "not sure enough"]


def test_a_config_that_is_no_mapping_is_named(tmp_path):
    with pytest.raises(UserError, match="has no config.yaml"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="holds no config"):
        read_config(tmp_path)


def test_a_file_knows_the_run_above_it(tmp_path):
    file = tmp_path / "run" / "rounds" / "0" / "model.pt"
    assert run_above(file) is None
    file.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    assert run_above(file) == tmp_path / "run"
    assert run_above(file, levels=2) is None


@pytest.mark.parametrize(
    "text",
    [
        "round,delivered\n1,1\n",
        "round,delivered\n0,1\n0,0\n",
        "round,delivered\nnan,1\n",
        "round,delivered\n0,1\n1,1\n",
        "round\n0\n",
        "round,delivered\n../../x,1\n",
        "\0\0",
    ],
)
def test_rounds_that_cannot_be_are_damage(tmp_path, text):
    (tmp_path / ROUNDS).write_text(text)
    with pytest.raises(UserError, match="damaged|no line"):
        delivered_round(tmp_path)


DAMAGED = [b"", b"\xff\xfe", b"PK\x03\x04half", b"- a\n- b", b"a: !!python/object/apply:os.getcwd []", b"{" * 5000]
SCALES = [(0.0, 0.0), (0.0, -1.0), (0.0, math.nan), (math.inf, 1.0), ("0", 1.0), (0.0, None)]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_are_named(tmp_path, content):
    for name in ("config.yaml", "model.pt"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"model\.pt"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(("zero", "temperature"), SCALES)
def test_a_scale_that_is_none_is_damage(tmp_path, zero, temperature):
    with pytest.raises(UserError, match="is it damaged"):
        check_scale(tmp_path / "model.pt", zero, temperature)
    check_scale(tmp_path / "model.pt", -0.5, 0.1)
