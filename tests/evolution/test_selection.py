import math
from dataclasses import replace

import pytest
import torch

from ser_lightning.errors import UserError
from ser_lightning.evolution.selection import (
    CalibratedRule,
    PaperRule,
    ReleasedRule,
    SelectionContext,
    SelectionResult,
    TopShareRule,
    changed_share,
    most_informative_target,
)
from ser_lightning.records import PairScores, Selection


def logit(p):
    return math.log(p / (1 - p))


def scores(pairs, tokens=None):
    """Pairs of (p_a, p_b), the probabilities that the responses are good."""
    a, b = (torch.tensor([logit(p[i]) for p in pairs]) for i in (0, 1))
    tokens = tokens or [(10, 10)] * len(pairs)
    tokens_a, tokens_b = (torch.tensor([t[i] for t in tokens]) for i in (0, 1))
    return PairScores(torch.arange(len(pairs)), a, b, tokens_a, tokens_b)


def context(margins=(), right=(), history=()):
    m = torch.tensor(margins, dtype=torch.float32)
    s = PairScores(torch.arange(len(m)), m / 2, -m / 2, torch.ones(len(m)).long(), torch.ones(len(m)).long())
    target = ((m > 0) == torch.tensor(right, dtype=torch.bool)).float()
    return SelectionContext(s, target, list(history))


def selection(ids, labels, status=1, round=0):
    return Selection(torch.tensor(ids), torch.tensor(labels, dtype=torch.int8), torch.ones(len(ids)), status, round)


POOL = [
    (0.60, 0.40),  # status 1
    (0.40, 0.60),  # status 1, b wins
    (0.95, 0.56),  # status 2 only: both good
    (0.54, 0.44),  # neither: 0.54 is not > 0.55
    (0.60, 0.46),  # neither: 0.46 is not < 0.45
    (0.90, 0.10),  # both
]


def test_paper_rule_starts_with_status_1():
    result = PaperRule().select(scores(POOL), context())
    assert result.keep.tolist() == [True, True, False, False, False, True]
    assert result.label[result.keep].tolist() == [1, 0, 1]
    assert (result.status, result.converged) == (1, False)


def test_paper_rule_moves_on_to_status_2_and_then_has_converged():
    past = [selection([0, 1, 5], [1, 0, 1])]
    second = PaperRule().select(scores(POOL), context(history=past))
    assert second.keep.tolist() == [False, False, True, False, False, True]
    assert (second.status, second.converged) == (2, False)
    past.append(selection([2, 5], [1, 1], status=2))
    third = PaperRule().select(scores(POOL), context(history=past))
    assert third.converged and not third.keep.any()
    assert "0 under learning status 2 (a clear difference)" in third.message
    assert "under learning status 1" not in third.message
    past.append(Selection.empty(round=2))  # of status 0, as a chain of a fold or a run that goes on has it
    assert PaperRule().select(scores(POOL[:2]), context(history=[selection([5], [1], status=2), *past[2:]])).converged


def test_released_rule_is_an_or():
    result = ReleasedRule().select(scores(POOL), context())
    assert result.keep.tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("changed", "kept"),
    [({"tau_low": 0.47}, [0, 1, 2, 4, 5]), ({"tau_high": 0.61}, [2, 5]), ({"tau_delta": 0.5}, [0, 1, 5])],
)
def test_every_threshold_changes_what_is_kept(changed, kept):
    result = ReleasedRule(**changed).select(scores(POOL), context())
    assert result.keep.nonzero()[:, 0].tolist() == kept


def test_paper_rule_on_rewards_off_centre_says_where_p_lies():
    off = scores(POOL)
    off = PairScores(off.pair_id, off.reward_a + 9, off.reward_b + 9, off.tokens_a, off.tokens_b)
    result = PaperRule().select(off, context())
    assert result.converged and "p lies in [0.99" in result.message


@pytest.mark.parametrize("rule", [PaperRule, ReleasedRule])
def test_where_training_leaves_the_zero_open_the_mean_of_the_pool_takes_it(rule):
    """Adding a number to every reward then changes nothing, and the thresholds cut around the mean."""
    near = scores(POOL)
    mean = torch.cat([near.reward_a, near.reward_b]).mean()
    centred, off = (
        replace(near, reward_a=near.reward_a + shift, reward_b=near.reward_b + shift) for shift in (-mean, 9.0)
    )
    wanted = rule().select(centred, context())
    for pool in (near, off):
        found = rule().select(pool, replace(context(), has_zero=False))
        assert torch.equal(found.keep, wanted.keep) and found.status == wanted.status
    assert wanted.keep.any() and not torch.equal(wanted.keep, rule().select(near, context()).keep)
    nothing = rule().select(scores(POOL)[torch.zeros(6, dtype=torch.bool)], replace(context(), has_zero=False))
    assert len(nothing.keep) == 0


@pytest.mark.parametrize("rule", [PaperRule, ReleasedRule])
def test_thresholds_out_of_range_are_refused_together(rule):
    with pytest.raises(UserError, match="tau_low") as error:
        rule(tau_low=0.6, tau_high=0.5, tau_delta=1.5)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize(("rule", "name"), [(PaperRule, "min_new_share"), (CalibratedRule, "min_change_share")])
def test_a_share_that_counts_as_converged_is_below_one(rule, name):
    rule(**{name: 0})
    for share in (-0.1, 1):
        with pytest.raises(UserError, match=rf"^rule\.{name}: got {share}; need a number in \[0, 1\)$"):
            rule(**{name: share})


def test_shares_out_of_range_are_refused_together():
    with pytest.raises(UserError, match="rule.share: got 0") as error:
        TopShareRule(0, min_change_share=1.5)
    assert error.value.problems[1:] == ["rule.min_change_share: got 1.5; need a number in [0, 1)"]


def test_most_informative_target_against_a_naive_search():
    g = torch.Generator().manual_seed(3)
    confidence = 0.5 + torch.rand(200, generator=g) / 2
    best, best_worth = None, -1.0
    for c in confidence.tolist():
        kept = [x for x in confidence.tolist() if x >= c]
        worth = len(kept) * (2 * sum(kept) / len(kept) - 1) ** 2
        if worth > best_worth:
            best, best_worth = c, worth
    assert most_informative_target(confidence) == pytest.approx(best)
    assert most_informative_target(torch.empty(0)) == 0.5


def test_calibrated_rule_keeps_by_expected_correctness_on_the_seeds_scale():
    margins = [2.0] * 98
    right = [True] * 79 + [False] * 19  # with the two pseudo-pairs sigmoid(2 / T) = 80 / 100, so T = 2 / ln 4
    known = context(margins, right)
    result = CalibratedRule(target=0.75).select(scores([(0.88, 0.12), (0.6, 0.4)]), known)
    temperature, _ = known.scale()
    assert temperature == pytest.approx(2 / math.log(4), rel=1e-3)
    margin = 2 * logit(0.88)
    assert result.prob_a[0].item() == pytest.approx(1 / (1 + math.exp(-margin / temperature)), rel=1e-4)
    assert result.keep.tolist() == [True, False]


def test_calibrated_rule_that_keeps_nothing_names_the_highest_target():
    coin = context([1.0] * 100, [True] * 55 + [False] * 45)
    result = CalibratedRule(target=0.99).select(scores(POOL), coin)
    highest = result.confidence.max().item()
    assert result.converged and not result.keep.any()
    assert f"keeps nothing: the highest that any pair reaches is {highest:.3f}" in result.message


def test_calibrated_rule_sets_a_higher_target_for_a_better_seed_model():
    g = torch.Generator().manual_seed(0)
    pool = scores([(p, 1 - p) for p in (0.5 + torch.rand(300, generator=g) * 0.49).tolist()])
    margins = (torch.rand(400, generator=g) * 3).tolist()
    weak = CalibratedRule().select(pool, context(margins, [i % 5 < 3 for i in range(400)]))
    strong = CalibratedRule().select(pool, context(margins, [i % 20 < 19 for i in range(400)]))
    assert strong.confidence[strong.keep].min() > weak.confidence[weak.keep].min()
    assert strong.keep.sum() > 0 and weak.keep.sum() > 0


def test_calibrated_rule_without_evidence_says_what_to_set():
    with pytest.raises(UserError, match="folds to 2 or more"):
        CalibratedRule().select(scores(POOL), context())
    with pytest.raises(UserError, match="rule.target: got 1.2"):
        CalibratedRule(target=1.2)


def test_calibrated_rule_converges_when_the_selection_stands_still():
    known = context([2.0] * 20, [True] * 18 + [False] * 2)
    first = CalibratedRule(target=0.6).select(scores(POOL), known)
    assert not first.converged
    past = [Selection(torch.arange(6)[first.keep], first.label[first.keep], first.confidence[first.keep], 1, 0)]
    again = CalibratedRule(target=0.6).select(scores(POOL), SelectionContext(known.scores, known.target, past))
    assert again.converged


def test_top_share_keeps_the_surest():
    result = TopShareRule(0.5).select(scores(POOL), context())
    assert result.keep.nonzero()[:, 0].tolist() == [0, 2, 5] or result.keep.nonzero()[:, 0].tolist() == [1, 2, 5]
    assert TopShareRule(1.0).select(scores(POOL), context()).keep.all()


@pytest.mark.parametrize("rule", [PaperRule(), ReleasedRule(), CalibratedRule(target=0.55), TopShareRule(0.5)])
def test_swapping_the_responses_flips_labels_and_keeps_the_same_pairs(rule):
    pool, known = scores(POOL[2:]), context([2.0] * 20, [True] * 18 + [False] * 2)
    swapped = PairScores(pool.pair_id, pool.reward_b, pool.reward_a, pool.tokens_b, pool.tokens_a)
    one, other = rule.select(pool, known), rule.select(swapped, known)
    assert torch.equal(one.keep, other.keep)
    assert torch.equal(one.label[one.keep], 1 - other.label[other.keep])


def test_changed_share_counts_new_and_flipped():
    result = SelectionResult(torch.tensor([0.9, 0.1, 0.8, 0.7]), torch.tensor([True, True, True, False]), 1, False, "")
    assert changed_share(torch.arange(4), result, []) == 1.0
    assert changed_share(torch.arange(4), result, [selection([0, 1], [1, 1])]) == pytest.approx(2 / 3)


def test_rewards_that_are_no_better_than_chance_select_nothing_and_say_so():
    margin = torch.tensor([2.0, 1.0, -1.0, -2.0, 3.0, -3.0])
    seed = PairScores(torch.arange(6), margin, torch.zeros(6), *[torch.ones(6, dtype=torch.int64)] * 2)
    wrong = (margin < 0).float()
    result = CalibratedRule().select(seed, SelectionContext(seed, wrong))
    assert not result.keep.any() and result.converged and result.status == 0
    assert "no better than chance" in result.message
    assert CalibratedRule().select(seed, SelectionContext(seed, 1 - wrong)).keep.any()
