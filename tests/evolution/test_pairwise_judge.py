"""The judge's head, its calibration, and when it is used."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ser_lightning.evaluation.calibration import fit_temperature
from ser_lightning.evolution.pairwise_judge import PairwiseJudge, hold_vote, joined
from ser_lightning.evolution.selection import SelectionContext
from ser_lightning.records import PairScores

NUM_SEED, NUM_PAIRS, SIZE = 60, 200, 5
SEED, POOL = torch.arange(NUM_SEED) * 3, torch.arange(NUM_SEED, NUM_PAIRS) * 3


def states_and_labels(strength=1.5):
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (NUM_PAIRS,), generator=generator).float()
    states = torch.randn(NUM_PAIRS, SIZE, generator=generator)
    states[:, 0] += strength * (2 * label - 1)
    return states, label


def scores(pair_id, margin):
    tokens = torch.ones_like(pair_id)
    return PairScores(pair_id, margin / 2 + 5, 5 - margin / 2, tokens, tokens)


def learnt(states, label):
    return PairwiseJudge(torch.arange(NUM_PAIRS) * 3, states).learn(SEED, label[:NUM_SEED], range(NUM_SEED), POOL)


def test_the_head_is_the_penalised_logistic_regression_of_scikit_learn():
    states, label = states_and_labels()
    head = learnt(states, label)
    x = states / (states.square().mean(0).sqrt() * SIZE**0.5)
    oracle = LogisticRegression(C=1 / head.penalty, fit_intercept=False, tol=1e-10, max_iter=1000)
    oracle.fit(x[:NUM_SEED], label[:NUM_SEED])
    margin = torch.from_numpy(oracle.decision_function(x[NUM_SEED:].numpy()))
    assert torch.allclose(head.logits(POOL), margin / fit_temperature(head.out_of_fold, label[:NUM_SEED]), atol=1e-4)


def test_swapping_all_responses_turns_every_logit():
    states, label = states_and_labels()
    other = learnt(-states, 1 - label)
    assert torch.allclose(learnt(states, label).logits(POOL), -other.logits(POOL), atol=1e-6)


def test_what_is_left_out_is_not_seen():
    states, label = states_and_labels()
    turned = label.clone()
    turned[:10] = 1 - turned[:10]
    head, other = learnt(states, label), learnt(states, turned)
    other = type(head)(head.judge, head.scale, SEED, turned[:NUM_SEED], head.penalty, head.out_of_fold)
    assert not torch.allclose(head.logits(POOL), other.logits(POOL))
    unscaled = [h.logits(POOL, left_out=SEED[:10]) * h.temperature for h in (head, other)]
    assert torch.allclose(*unscaled, rtol=1e-12)


def test_seed_logits_come_in_the_order_that_is_asked_for():
    states, label = states_and_labels()
    head, order = learnt(states, label), torch.randperm(NUM_SEED)
    assert torch.equal(head.seed_logits(SEED[order]), head.out_of_fold[order] / head.temperature)


def test_a_pair_that_was_not_compared_is_an_error():
    states, label = states_and_labels()
    for unknown in (1, 10_000):
        with pytest.raises(KeyError):
            learnt(states, label).logits(torch.tensor([0, unknown]))


def test_a_good_judge_beside_a_poor_model_is_used_and_a_poor_one_is_not():
    generator = torch.Generator().manual_seed(1)
    for strength, noise, is_used in ((2.0, 3.0, True), (0.0, 0.3, False)):
        states, label = states_and_labels(strength)
        target = label[:NUM_SEED]
        margin = (2 * target - 1) + noise * torch.randn(NUM_SEED, generator=generator)
        context = SelectionContext(scores(SEED, margin), target)
        vote = hold_vote(context, learnt(states, label))
        assert vote.is_used == is_used
        assert (vote.context is context) != is_used
        assert ("helps" in vote.message) == is_used


def test_joined_margins_are_sums_of_logits_and_levels_stay():
    one = scores(torch.tensor([3, 6]), torch.tensor([1.0, -2.0]))
    both = joined(one, 2.0, torch.tensor([0.5, 4.0]))
    assert both.margin.tolist() == [1.0, 3.0]
    assert (both.reward_a + both.reward_b).tolist() == [5.0, 5.0]
    assert both.pair_id is one.pair_id
