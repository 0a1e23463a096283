import math
from pathlib import Path

import pytest
import yaml

from ser_lightning.errors import UserError
from ser_lightning.evaluation.thresholds import failures, make_gate, read_gate

KNOWN = ("accuracy_b", "difference", "calibration_error_b")


def write(text):
    Path("gate.yaml").write_text(text)
    return Path("gate.yaml")


def test_thresholds_that_are_kept_and_not():
    gate = read_gate(write("accuracy_b: {min: 0.6, max: 0.9}\ndifference: {min: 0}\n"), KNOWN)
    assert failures(gate, {"accuracy_b": 0.6, "difference": 0.0}) == []
    [low] = failures(gate, {"accuracy_b": 0.5, "difference": 0.1})
    assert low == "gate: accuracy_b is 0.5, below the 0.6 that it needs"
    assert len(failures(gate, {"accuracy_b": 0.95, "difference": -0.1})) == 2
    assert len(failures(gate, {"accuracy_b": math.nan, "difference": 0.0})) == 2  # neither bound is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy_b: {min: 0.6}", "unknown figure acuracy_b; did you mean accuracy_b?"),
        ("accuracy_b: 0.6", "use min, max or both"),
        ("accuracy_b: {least: 0.6}", "use min, max or both"),
        ("accuracy_b: {min: high}", "the threshold 'high'; use a number"),
        ("accuracy_b: {min: .nan}", "use a number"),
        ("", "holds no thresholds"),
        ("accuracy_b: {min: -0.5}", "accuracy_b the min -0.5, which nothing can fail"),
        ("accuracy_b: {min: 0}", "which nothing can fail"),
        ("difference: {min: -1}", "difference the min -1, which nothing can fail"),
        ("calibration_error_b: {max: 1.02}", "the max 1.02, which nothing can fail"),
    ],
)
def test_a_wrong_gate_is_one_line(text, message):
    with pytest.raises(UserError, match="--gate") as error:
        read_gate(write(text), KNOWN)
    assert len(error.value.problems) == 1 and message in error.value.problems[0]


def test_no_gate_is_made_that_cannot_fail():
    runs = [{"accuracy": a, "low": 0.0, "high": 1.0, "calibration_error": 0.9} for a in (0.2, 0.9)]
    with pytest.raises(UserError) as error:
        make_gate(Path("made.yaml"), runs)
    assert len(error.value.problems) == 3 and all("give more pairs" in line for line in error.value.problems)
    assert not Path("made.yaml").exists()


def test_a_gate_from_baselines_lets_them_pass_and_stops_what_is_clearly_worse():
    runs = [{"accuracy": a, "low": a - 0.04, "high": a + 0.04, "calibration_error": 0.05} for a in (0.70, 0.72, 0.71)]
    gate = make_gate(Path("made.yaml"), runs)
    assert yaml.safe_load(Path("made.yaml").read_text()) == gate == read_gate(Path("made.yaml"), KNOWN)
    expected = 0.71 - 2 * math.sqrt(0.0001 * 4 / 3 + 0.02**2)
    assert gate["accuracy_b"]["min"] == pytest.approx(expected, abs=1e-4)
    for run in runs:
        assert not failures(gate, {"accuracy_b": run["accuracy"], "difference": 0.0, "calibration_error_b": 0.05})
    assert len(failures(gate, {"accuracy_b": 0.6, "difference": -0.1, "calibration_error_b": 0.2})) == 3
