"""The files of a run: what is written is what is read, and damage is named."""

import csv
import math
import re

import pytest
import torch

from ser_lightning.errors import UserError
from ser_lightning.runs.config import read_config
from ser_lightning.runs.files import (
    ROUNDS,
    RoundRow,
    delivered_round,
    read_json,
    read_rounds,
    round_files,
    run_above,
    write_json,
    write_rounds,
)
from ser_lightning.runs.shapes import COST, GUARDS, NOTES
from ser_lightning.runs.weights import check_model, read_model, read_weights, write_weights

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


def table(*changes):
    """Two good lines of `rounds.csv`, delivered is the second; each change is (line, column, cell)."""
    cells = ["100", "40", "3", "1", "0.8", "nan", "0.7", "0.75", "0.05", "-0.1", "12345", "2.5"]
    lines = [[str(number), *cells, str(number), *["nan"] * 7] for number in (0, 1)]
    for line, column, cell in changes:
        lines[line][COLUMNS.split(",").index(column)] = cell
    return "\n".join([COLUMNS, *map(",".join, lines)]) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no rounds.csv; give the folder of a fit that has finished round 0"),
        (COLUMNS + "\n", "has no line"),
        (table((1, "delivered", "0")), "marks no round as delivered"),
        (table((0, "delivered", "1")), "marks 2 rounds as delivered"),
        (table((1, "delivered", "yes")), "could not convert string to float: 'yes'"),
        (table()[:-40], "is it damaged?"),
        (table((0, "round", "1")), "does not count its rounds from 0"),
        (table((0, "round", "nan")), "does not count its rounds from 0"),
        (table((1, "round", "../../x")), "is it damaged?"),
        (table((1, "kept", "-1")), "the kept of round 1 is -1.0"),
        (table((1, "tokens", "nan")), "the tokens of round 1 is nan"),
        (table((1, "test_accuracy", "1.5")), "the test_accuracy of round 1 is 1.5"),
        (table((1, "calibration_error", "inf")), "the calibration_error of round 1 is inf"),
        ("round,delivered\n0,1\n", "no column scored"),
        ("\0\0", "has no line"),
    ],
)
def test_a_damaged_table_of_rounds_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / ROUNDS).write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        delivered_round(tmp_path)


def test_an_older_table_without_the_later_columns_is_read(tmp_path):
    lines = [",".join(line.split(",")[:14]) for line in table().splitlines()]
    (tmp_path / ROUNDS).write_text("\n".join(lines) + "\n")
    assert delivered_round(tmp_path) == 1


def test_a_config_that_is_no_mapping_is_named(tmp_path):
    with pytest.raises(UserError, match="has no config.yaml"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="holds no config"):
        read_config(tmp_path)


def test_a_config_that_grows_without_end_is_named(tmp_path):
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
    for text in ("\n".join(lines), "a: &a [*a]"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config.yaml \(it has more than 100,000 values\)"):
            read_config(tmp_path)


def test_weights_that_are_no_table_are_named(tmp_path):
    torch.save(torch.zeros(2), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model.pt \(it holds a Tensor, no weights by name\); is it damaged"):
        read_weights(tmp_path / "model.pt")


def test_a_file_knows_the_run_above_it(tmp_path):
    file = tmp_path / "run" / "rounds" / "0" / "model.pt"
    assert run_above(file) is None
    file.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    assert run_above(file) == tmp_path / "run"
    assert run_above(file, levels=2) is None


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


MODEL = {"weights": {"w": torch.ones(2)}, "zero": -0.5, "temperature": 0.1}


@pytest.mark.parametrize(("zero", "temperature"), SCALES)
def test_a_scale_that_is_none_is_damage(tmp_path, zero, temperature):
    with pytest.raises(UserError, match="is it damaged"):
        check_model(tmp_path / "model.pt", {**MODEL, "zero": zero, "temperature": temperature})
    check_model(tmp_path / "model.pt", MODEL)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {}},
        {"weights": [torch.ones(2)]},
        {"weights": {"w": 1.0}},
        {"weights": {"w": torch.tensor([1.0, math.nan])}},
        {"weights": {"w": torch.tensor([1.0, -math.inf])}},
        {"identity": {"base": 1, "template": ""}},
        {"identity": {"base": "x"}},
    ],
)
def test_weights_that_are_none_are_damage(tmp_path, change):
    write_weights(tmp_path / "model.pt", {**MODEL, **change})
    with pytest.raises(UserError, match=r"model\.pt .*is it damaged"):
        read_model(tmp_path / "model.pt")


CARD = {"pair_id": "1", "prompt": "", "response_a": "", "response_b": "", "probability": 0.5, "before": None}
WRONG_SHAPES = [
    (NOTES, []),
    (NOTES, {"pairs": {"seed": "many"}}),
    (NOTES, {"cards": {"most": [CARD | {"label": 1}], "least": [], "flipped": []}}),
    (NOTES, {"cards": {"most": []}}),
    (NOTES, {"reliability": [{"pairs": 1, "confidence": math.nan, "right": 1}]}),
    (GUARDS, {}),
    (GUARDS, [{"guard": "flips"}]),
    (COST, {"other": 1.0}),
    (COST, {"other": {"tokens": 1}}),
]


@pytest.mark.parametrize(("shape", "content"), WRONG_SHAPES)
def test_json_of_another_shape_is_damage(tmp_path, shape, content):
    write_json(tmp_path / "x.json", content)
    with pytest.raises(UserError, match=r"x\.json .*is it damaged"):
        read_json(tmp_path / "x.json", shape)


def test_every_byte_of_a_file_with_a_checksum_counts(tmp_path):
    """One bit of each file that a round leaves, as far as none of its own checks could find."""
    files = round_files(tmp_path, 0)
    files.folder.mkdir(parents=True)
    write_weights(files.model, MODEL)
    write_json(files.cost, {"other": {"tokens": 1, "seconds": 2.5}})
    write_rounds(tmp_path, [row(0, True)])
    reads = [
        (files.model, read_model, b"\x80?", b"\x80@"),  # 1.0 -> 4.0
        (files.cost, lambda path: read_json(path, COST), b"2.5", b"3.5"),
        (tmp_path / ROUNDS, lambda path: read_rounds(path.parent), b"12345", b"12346"),
    ]
    for path, read, old, new in reads:
        read(path)
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.raises(UserError, match="is it damaged"):
            read(path)
        path.write_bytes(content)
        read(path)


def test_weights_of_another_round_are_not_taken(tmp_path):
    for number, value in ((0, 1.0), (1, 2.0)):
        round_files(tmp_path, number).folder.mkdir(parents=True)
        write_weights(round_files(tmp_path, number).model, {**MODEL, "weights": {"w": torch.full((2,), value)}})
    round_files(tmp_path, 1).model.write_bytes(round_files(tmp_path, 0).model.read_bytes())
    with pytest.raises(UserError, match=r"its checksum is not the one in checksums\.json"):
        read_model(round_files(tmp_path, 1).model)


def test_weights_without_a_record_are_held_to_their_own_checksums(tmp_path):
    """As a checkpoint is, and what an earlier version wrote."""
    file = tmp_path / "model.pt"
    torch.save(MODEL, file)
    assert read_model(file)["zero"] == -0.5
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\x80?", b"\x80@"))
    with pytest.raises(UserError, match="it is cut off, changed, or none"):
        read_model(file)
