import csv
import io

import pytest
import torch
from rich.console import Console

from ser_lightning.callbacks.rounds import RoundRow, choose_round, rounds_table, write_atomically, write_rounds

COLUMNS = (
    "round,scored,kept,flipped,status,pseudo_label_accuracy,pool_accuracy,seed_oof_accuracy,test_accuracy,calibration_error,"
    "length_correlation,tokens,seconds,delivered,net_label_change,forecast_accuracy,forecast_low,forecast_high,"
    "forecast_error,predicted_gain,predicted_last_round"
)


def row(number, delivered=False):
    return RoundRow(number, 100, 40, 3, 1, 0.8, float("nan"), 0.7, 0.75, 0.05, -0.1, 12345, 2.5, delivered)


def test_rounds_csv_has_the_promised_columns(tmp_path):
    file = tmp_path / "rounds.csv"
    write_rounds(file, [row(0), row(1, True)])
    assert file.read_text().splitlines()[0] == COLUMNS
    read = list(csv.DictReader(file.open()))
    assert [r["delivered"] for r in read] == ["0", "1"]
    assert (read[0]["pseudo_label_accuracy"], read[0]["pool_accuracy"], read[0]["tokens"]) == ("0.8", "nan", "12345")


def test_writing_atomically_leaves_the_old_file_when_it_fails(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")

    def fail(handle):
        handle.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_latest_round_within_one_standard_error_of_the_best_is_delivered():
    seed = torch.tensor([1.0] * 60 + [0.0] * 40)
    better = torch.tensor([1.0] * 70 + [0.0] * 30)
    about_as_good = torch.cat([torch.ones(68), torch.zeros(2), torch.ones(1), torch.zeros(29)])
    collapsed = torch.tensor([1.0] * 50 + [0.0] * 50)
    assert choose_round([seed]) == 0
    assert choose_round([seed, better]) == 1
    assert choose_round([seed, better, about_as_good]) == 2
    assert choose_round([seed, better, collapsed]) == 1
    assert choose_round([better, collapsed, seed]) == 0
    assert choose_round([torch.empty(0), torch.empty(0)]) == 1


def test_the_table_fits_into_80_columns():
    long = RoundRow(**{**vars(row(3, True)), "scored": 20400, "kept": 10200, "seconds": 1234.5})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rounds_table([row(10), long]))
    text = console.export_text()
    assert "…" not in text and "20400" in text and "* 3" in text
