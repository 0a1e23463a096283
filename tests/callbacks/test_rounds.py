import io

import torch
from rich.console import Console

from ser_lightning.callbacks.rounds import choose_round, print_rounds, rounds_table
from ser_lightning.runs.files import RoundRow


def row(number, delivered=False):
    return RoundRow(number, 100, 40, 3, 1, 0.8, float("nan"), 0.7, 0.75, 0.05, -0.1, 12345, 2.5, delivered)


def test_the_best_round_out_of_fold_is_delivered_and_the_earlier_of_equal_ones():
    seed = torch.tensor([1.0] * 60 + [0.0] * 40)
    better = torch.tensor([1.0] * 70 + [0.0] * 30)
    a_little_worse = torch.tensor([1.0] * 69 + [0.0] * 31)
    collapsed = torch.tensor([1.0] * 50 + [0.0] * 50)
    assert choose_round([seed]) == 0
    assert choose_round([seed, better]) == 1
    assert choose_round([seed, better, a_little_worse]) == 1
    assert choose_round([seed, better, better.flip(0)]) == 1
    assert choose_round([seed, collapsed, seed.flip(0)]) == 0
    assert choose_round([better, collapsed, seed]) == 0
    assert choose_round([torch.empty(0), torch.empty(0)]) == 1


def test_the_table_fits_into_80_columns():
    long = RoundRow(**{**vars(row(3, True)), "scored": 20400, "kept": 10200, "seconds": 1234.5})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rounds_table([row(10), long]))
    text = console.export_text()
    assert "…" not in text and "10200" in text and "* 3" in text and "nan" not in text


def test_around_the_table_stand_the_outcome_how_the_round_was_chosen_and_what_the_words_mean(capsys):
    print_rounds([row(0), row(1, delivered=True)], ["It helped."], [20, 20])
    said = capsys.readouterr().out
    assert said.index("It helped.") < said.index("Rounds of self-evolution") < said.index("* is delivered:")
    assert "* is delivered: chosen out of fold on the seed, without test or pool labels." in said
    for word in ("kept", "flipped", "kept correct", "pool correct", "seed oof", "test", "calib. error", "length corr."):
        assert any(line.startswith(f"{word:14}") for line in said.splitlines()), word
    assert "different seed pairs" not in said
    unjudged = [RoundRow(**{**vars(row(n, n == 1)), "seed_oof_accuracy": float("nan")}) for n in range(2)]
    print_rounds(unjudged)
    said = capsys.readouterr().out
    assert "* is delivered: the last round, unjudged: there were no folds, without test or pool labels." in said


def test_rounds_of_a_seed_that_has_grown_are_not_to_be_compared(capsys):
    print_rounds([row(0), row(1, delivered=True)], [], [20, 31])
    assert "seed oof is of different seed pairs (pairs by round: 0: 20, 1: 31)" in capsys.readouterr().out
