"""Guards in real runs of the tiny model: what they stop, what they take back, and that warnings change nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ser_lightning.callbacks.guards import GuardCallback
from ser_lightning.callbacks.rounds import choose_round
from ser_lightning.callbacks.state import EvolutionState
from ser_lightning.errors import UserError
from ser_lightning.evolution.guards import KINDS
from ser_lightning.evolution.selection import TopShareRule
from tests.helpers import equal, fit, weights


def only(guard, level, threshold):
    """That guard and no other."""
    levels = dict.fromkeys(KINDS, "ignore")
    return GuardCallback({**levels, guard: level}, {guard: threshold})


class FlippingRule(TopShareRule):
    """Every label on the wrong side."""

    def select(self, scores, context):
        result = super().select(scores, context)
        return replace(result, prob_a=1 - result.prob_a)


class ChangingRule(TopShareRule):
    """Says the contrary of itself from round 1 on."""

    def select(self, scores, context):
        result = super().select(scores, context)
        return replace(result, prob_a=1 - result.prob_a) if context.history else result


def found(round):
    return {f["guard"]: f for f in json.loads(Path(f"run/rounds/{round}/guards.json").read_text())}


def test_labels_turned_round_are_never_trained_on(tiny_model_dir, pairs_file):
    guards = only("disagreement", "stop", 0.05)
    said = r"round 0, guard disagreement: 1\.000, at most 0\.050 is fine: labels contradict"
    with pytest.warns(UserWarning, match=said):
        _, callback = fit(tiny_model_dir, pairs_file, "run", guards, rule=FlippingRule(0.5), max_rounds=2)
    assert [row.round for row in callback.state.rows] == [0] and callback.state.finished
    assert found(0)["disagreement"]["fired"] and found(0).keys() == {"disagreement"}


def test_a_round_that_is_taken_back_is_not_delivered(tiny_model_dir, pairs_file):
    guards = only("flips", "rollback", 0.5)
    with pytest.warns(UserWarning, match="an earlier round is delivered"):
        model, callback = fit(tiny_model_dir, pairs_file, "run", guards, rule=ChangingRule(0.5), max_rounds=3)
    assert callback.state.barred == [1] == [callback.state.rows[-1].round]
    assert callback.state.delivered == 0
    assert equal(weights(model), torch.load("run/rounds/0/model.pt", weights_only=True)["weights"])


def test_round_0_has_nothing_to_go_back_to(tiny_model_dir, pairs_file):
    guards = only("disagreement", "rollback", 0.05)
    with pytest.warns(UserWarning, match="guard disagreement"):
        _, callback = fit(tiny_model_dir, pairs_file, "run", guards, rule=FlippingRule(0.5))
    assert callback.state.barred == [] and callback.state.delivered == 0


def test_a_warning_changes_nothing(tiny_model_dir, pairs_file):
    guards = only("chance", "warn", 0.99)
    with pytest.warns(UserWarning, match="evolution goes on") as warned:
        model, callback = fit(tiny_model_dir, pairs_file, "run", guards)
    said = [str(one.message) for one in warned if "guard chance" in str(one.message)]
    assert len(said) == 2 and KINDS["chance"].meaning in said[0]
    assert said[1].startswith("round 1, guard chance: ")
    assert said[1].endswith("at least 0.990 is fine (evolution goes on)")
    plain, without = fit(tiny_model_dir, pairs_file, "plain")
    assert equal(weights(model), weights(plain))
    assert [row.kept for row in callback.state.rows] == [row.kept for row in without.state.rows]
    assert not Path("plain/rounds/0/guards.json").exists()


def test_what_was_barred_is_in_the_checkpoint():
    state = EvolutionState(barred=[2])
    assert EvolutionState.from_dict(state.to_dict()).barred == [2]


def test_the_best_of_what_is_left_is_chosen():
    credits = [torch.tensor([1.0, 0, 1, 0] * 20), torch.tensor([1.0, 1, 1, 0] * 20), torch.tensor([0.0, 0, 1, 0] * 20)]
    assert choose_round(credits) == 1
    assert choose_round(credits, barred=[1]) == 0
    assert choose_round([torch.empty(0)] * 3, barred=[2]) == 1


def test_wrong_settings_are_one_line_each():
    with pytest.raises(UserError) as error:
        GuardCallback({"flips": "shout", "flip": "warn"}, {"length": 1.5})
    assert error.value.problems == [
        f"guards.levels: got 'flip', which is no guard; use {', '.join(KINDS)}",
        "guards.levels.flips: got 'shout'; use one of ignore, warn, stop, rollback",
        "guards.thresholds.length: got 1.5; need a share in [0, 1]",
    ]
