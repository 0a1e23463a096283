"""Guards against hand-made rounds: each fires on its fault, none on a healthy round."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, ks_2samp

from ser_lightning.callbacks.guards import GuardCallback
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evolution.guards import KINDS, RoundView, inspect_round
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.training.scoring import concatenate

NUM_SEED, NUM_POOL = 300, 1000


def scores(generator, num_pairs, quality=1.0):
    """Honest scores, the truth behind them, and lengths that say nothing."""
    margin = torch.randn(num_pairs, generator=generator) * quality
    target = (torch.rand(num_pairs, generator=generator) < (2 * margin).sigmoid()).float()
    tokens = torch.randint(20, 80, (2, num_pairs), generator=generator)
    return PairScores(torch.arange(num_pairs), margin, torch.zeros(num_pairs), tokens[0], tokens[1]), target


def with_margin(found, margin):
    return PairScores(found.pair_id, margin, torch.zeros_like(margin), found.tokens_a, found.tokens_b)


def view(round=1, seed=None, pool=None, label=None, keep=None, before=None, earlier=None, fold_pool=None):
    """A healthy round, but for what is given."""
    generator = torch.Generator().manual_seed(0)
    seed_scores, target = scores(generator, NUM_SEED)
    honest, _ = scores(generator, NUM_POOL)
    seed_scores, pool = seed or seed_scores, pool or honest
    prob_a = (2 * pool.margin).sigmoid() if label is None else label.float() * 0.8 + 0.1
    keep = torch.maximum(prob_a, 1 - prob_a) > 0.7 if keep is None else keep
    result = SelectionResult(prob_a, keep, 1, False, "")
    if before is None and round > 0:
        before = result.label.clone()
        before[:100] = 1 - before[:100]
    past = [seed_scores] * round if earlier is None else earlier
    credits = [half_credit(s.margin, target) for s in [*past, seed_scores]]
    fold_pool = [pool] if fold_pool is None else fold_pool
    context = SelectionContext(seed_scores, target)
    return RoundView(round, pool, fold_pool, result, before, context, [*past, seed_scores], credits)


def fired(one):
    return {finding.guard for finding in inspect_round(one, GuardCallback().guards) if finding.fired}


def value(one, name):
    return next(f.value for f in inspect_round(one, GuardCallback().guards) if f.guard == name)


@pytest.mark.parametrize("round", [0, 1, 2])
def test_a_healthy_round_sets_nothing_off(round):
    assert fired(view(round)) == set()


def test_labels_turned_round_set_off_disagreement():
    honest = view()
    assert "disagreement" in fired(view(label=1 - honest.result.label))
    assert value(view(label=1 - honest.result.label), "disagreement") == 1


def test_a_model_at_chance_sets_off_chance():
    good = view()
    guess = torch.randn(NUM_SEED, generator=torch.Generator().manual_seed(1))
    bad = view(0, seed=with_margin(good.context.scores, guess))
    assert "chance" in fired(bad)
    right = int(bad.seed_credits[-1].sum())
    assert value(bad, "chance") == pytest.approx(binomtest(right, NUM_SEED).proportion_ci(method="wilson").low)


def test_a_model_worse_than_an_earlier_one_sets_off_decline():
    good = view()
    wrong = good.context.scores.margin.clone()
    wrong[:60] = -wrong[:60]
    worse = view(seed=with_margin(good.context.scores, wrong), earlier=[good.context.scores])
    loss = good.seed_credits[-1] - worse.seed_credits[-1]
    assert value(worse, "decline") == pytest.approx(float(loss.mean() - 2 * loss.std() / math.sqrt(NUM_SEED)))
    assert fired(worse) == {"decline"}


def test_flipped_labels_set_off_flips():
    label = view().result.label
    assert fired(view(before=1 - label)) == {"flips"}
    assert value(view(before=1 - label), "flips") == 1
    assert math.isnan(value(view(0), "flips"))


def test_a_taste_for_length_sets_off_length():
    pool = view().pool
    biased = with_margin(pool, pool.margin + pool.length_difference / 10)
    assert "length" in fired(view(pool=biased))


def test_length_that_people_like_as_much_is_no_fault():
    """Where human labels follow length as well, so may the model's."""
    generator = torch.Generator().manual_seed(3)
    pool, _ = scores(generator, NUM_POOL)
    seed, target = scores(generator, NUM_SEED)
    seed, pool = (with_margin(s, s.margin + s.length_difference / 10) for s in (seed, pool))
    target = (seed.margin > 0).float()
    one = view(seed=seed, pool=pool)
    one = RoundView(**{**vars(one), "context": SelectionContext(seed, target)})
    assert value(one, "length") < 0.15


def length_only(stated):
    """Length is all that the model knows. Of the longer responses of the seed 64 in 100 win."""
    generator = torch.Generator().manual_seed(4)
    (seed, _), (pool, _) = scores(generator, NUM_SEED), scores(generator, NUM_POOL)
    seed, pool = (with_margin(s, s.length_difference.sign().float()) for s in (seed, pool))
    longer = (torch.arange(NUM_SEED) % 100 < 64).float()
    target = torch.where(seed.margin > 0, longer, 1 - longer)
    one = view(0, seed=seed, pool=with_margin(pool, pool.margin * stated), keep=pool.margin != 0)
    return RoundView(**{**vars(one), "context": SelectionContext(seed, target)})


def test_a_model_that_knows_length_and_how_little_it_says_is_no_fault():
    """Its labels say the longer every time, its probabilities as often as people do; of three times its margins not so.

    By hand: of pairs of unequal length the longer one wins a share p, so the temperature is 1 / logit(p).
    """
    honest, sure = length_only(1.0), length_only(3.0)
    unequal = honest.context.scores.length_difference != 0
    share = half_credit(honest.context.scores.margin, honest.context.target)[unequal].double().mean()
    assert value(honest, "length") == pytest.approx(0.0, abs=1e-3) and "length" not in fired(honest)
    stated = (3 * share.logit()).sigmoid()
    assert value(sure, "length") == pytest.approx(float(stated - share), abs=5e-3) and "length" in fired(sure)


def test_labels_that_say_a_set_off_position():
    assert {"position"} <= fired(view(label=torch.ones(NUM_POOL)))


@pytest.mark.parametrize("number", [0.0, math.nan])
def test_equal_rewards_set_off_ties(number):
    assert "ties" in fired(view(pool=with_margin(view().pool, torch.full((NUM_POOL,), number))))


def test_shrunken_rewards_set_off_spread():
    good = view()
    small = with_margin(good.context.scores, good.context.scores.margin * 0.01)
    assert fired(view(seed=small, earlier=[good.context.scores])) == {"spread"}
    assert value(view(seed=small, earlier=[good.context.scores]), "spread") == pytest.approx(0.01)


def test_seed_pairs_that_came_later_do_not_change_the_spread():
    good = view()
    seed = good.context.scores
    late = replace(with_margin(seed, seed.margin * 0.01), pair_id=seed.pair_id + 10_000)
    both = concatenate([seed, late])
    target = torch.cat([good.context.target] * 2)
    grown = RoundView(**{**vars(good), "context": SelectionContext(both, target), "seed_rounds": [seed, both]})
    found = {finding.guard: finding.value for finding in inspect_round(grown, GuardCallback().guards)}
    assert found["spread"] == pytest.approx(1)
    right = int(half_credit(both.margin, target).sum())  # `chance` counts all
    assert found["chance"] == pytest.approx(binomtest(right, len(both)).proportion_ci(method="wilson").low)


def test_a_pool_of_other_lengths_sets_off_shift():
    good = view()
    pool = good.pool
    longer = PairScores(pool.pair_id, pool.reward_a, pool.reward_b, pool.tokens_a + 30, pool.tokens_b + 30)
    assert fired(view(pool=longer)) == {"shift"}
    seed, both = good.context.scores, longer.tokens_a + longer.tokens_b
    assert value(view(pool=longer), "shift") == pytest.approx(ks_2samp(seed.tokens_a + seed.tokens_b, both).statistic)


def test_a_pool_that_models_are_less_sure_of_sets_off_shift_in_round_0_alone():
    unsure = [with_margin(view().pool, view().pool.margin * 0.3)]
    assert fired(view(0, fold_pool=unsure)) == {"shift"}
    assert fired(view(1, fold_pool=unsure)) == set()  # by then a model has learnt its own labels of the pool


def stated(one, prob_a):
    """The round, with other probabilities of the same labels."""
    result = SelectionResult(prob_a, one.result.keep, 1, False, "")
    assert torch.equal(result.label, one.result.label)
    return RoundView(**{**vars(one), "result": result})


@pytest.mark.parametrize("round", [0, 1])
def test_rewards_that_grow_without_a_better_order_set_off_overconfidence_alone(round):
    good = view(round)
    larger = with_margin(good.pool, good.pool.margin * 10)
    one = stated(RoundView(**{**vars(good), "pool": larger}), (2 * larger.margin).sigmoid())
    assert fired(one) == {"overconfidence"}
    probability, right = one.result.prob_a.double(), int(good.seed_credits[-1].sum())
    high = binomtest(right, NUM_SEED).proportion_ci(method="wilson").high
    assert value(one, "overconfidence") == pytest.approx(float((probability - 0.5).abs().mean()) + 0.5 - high)


def test_a_rule_that_states_certainty_sets_off_overconfidence_alone():
    good = view()
    assert fired(stated(good, good.result.label.float() * 0.98 + 0.01)) == {"overconfidence"}


def test_labels_of_both_views_are_held_against_the_accuracy_of_both():
    """The reward model alone is at chance; with the judge's view it is right about nearly all."""
    generator = torch.Generator().manual_seed(6)
    (both, target), (pool, _) = (scores(generator, number, quality=20.0) for number in (NUM_SEED, NUM_POOL))
    alone = with_margin(both, torch.randn(NUM_SEED, generator=generator))
    judged = view(0, seed=alone, pool=pool)
    judged = RoundView(**{**vars(judged), "context": SelectionContext(both, target)})
    right = [int(half_credit(found.margin, target).sum()) for found in (alone, both)]
    low, high = (binomtest(n, NUM_SEED).proportion_ci(method="wilson") for n in right)
    assert value(judged, "overconfidence") == pytest.approx(float(judged.result.confidence.double().mean()) - high.high)
    assert value(judged, "chance") == pytest.approx(low.low)
    assert "overconfidence" not in fired(judged)


def test_sure_labels_that_people_bear_out_are_no_overconfidence():
    generator = torch.Generator().manual_seed(5)
    (seed, target), (pool, _) = (scores(generator, number, quality=20.0) for number in (NUM_SEED, NUM_POOL))
    one = view(seed=seed, pool=pool, earlier=[seed])
    one = RoundView(
        **{
            **vars(one),
            "context": SelectionContext(seed, target),
            "seed_credits": [half_credit(seed.margin, target)] * 2,
        }
    )
    assert float(one.result.confidence.mean()) > 0.95
    assert fired(one) == set()


def test_swapping_a_and_b_changes_nothing():
    def swapped(found):
        return PairScores(found.pair_id, found.reward_b, found.reward_a, found.tokens_b, found.tokens_a)

    one = view(label=torch.ones(NUM_POOL))
    other = RoundView(
        **{
            **vars(one),
            "pool": swapped(one.pool),
            "fold_pool": [swapped(p) for p in one.fold_pool],
            "result": SelectionResult(1 - one.result.prob_a, one.result.keep, 1, False, ""),
            "label_before": 1 - one.label_before,
            "context": SelectionContext(swapped(one.context.scores), 1 - one.context.target),
            "seed_rounds": [swapped(s) for s in one.seed_rounds],
        }
    )
    settings = GuardCallback().guards
    for a, b in zip(inspect_round(one, settings), inspect_round(other, settings), strict=True):
        assert a.value == pytest.approx(b.value, nan_ok=True), a.guard
        assert a.fired == b.fired


def test_without_folds_or_kept_pairs_nothing_is_measured_that_needs_them():
    one = view(keep=torch.zeros(NUM_POOL, dtype=torch.bool))
    none = one.context.scores[torch.zeros(NUM_SEED, dtype=torch.bool)]
    empty = torch.empty(0)
    one = RoundView(
        **{
            **vars(one),
            "context": SelectionContext(none, empty),
            "seed_rounds": [none] * 2,
            "seed_credits": [empty] * 2,
        }
    )
    found = {f.guard: f for f in inspect_round(one, GuardCallback().guards)}
    assert not any(f.fired for f in found.values())
    assert {name for name, f in found.items() if math.isnan(f.value)} == set(KINDS) - {"flips", "ties"}


def test_an_ignored_guard_finds_nothing():
    settings = GuardCallback(levels={"flips": "ignore"}).guards
    assert {f.guard for f in inspect_round(view(), settings)} == set(KINDS) - {"flips"}


def test_the_message_says_what_it_means_and_what_to_do():
    finding = next(f for f in inspect_round(view(before=1 - view().result.label), GuardCallback().guards) if f.fired)
    assert finding.message == f"1.000, at most 0.350 is fine: {KINDS['flips'].meaning}; {KINDS['flips'].action}"
