"""What one step learns from, by hand and by naive loops."""

import math

import numpy as np
import pytest
import torch

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.errors import UserError
from ser_lightning.records import Rollout
from ser_lightning.rl.experience import PPOSettings, in_table, make_experience, measure, micro_batches

PLAIN = PPOSettings(whiten_advantages=False, gamma=0.9, gae_lambda=0.8)
LENGTHS = [3, 1, 4, 2]
"""Response tokens of four rows, of which two and two answer one prompt."""


def rollout_of(lengths=LENGTHS, num_prompt_tokens=(2, 3, 3, 1)):
    """Rows of made-up ids, padded as `Generator.sample` pads them."""
    width = max(lengths)
    response_mask = torch.tensor([[column < n for column in range(width)] for n in lengths])
    prompt_mask = torch.tensor([[column >= 3 - n for column in range(3)] for n in num_prompt_tokens])
    mask = torch.cat([prompt_mask, response_mask], 1).long()
    ids = torch.arange(3, 3 + mask.numel()).reshape(mask.shape) * mask
    return Rollout(ids, mask, response_mask, torch.tensor([n < width for n in lengths]))


def numbers(mask, seed):
    """Random numbers with rubbish outside the mask."""
    x = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(mask, x, math.nan)


def experience(estimator, settings=PLAIN, kl_weight=0.3, lengths=LENGTHS):
    rollout = rollout_of(lengths)
    mask = rollout.response_mask
    logp, ref_logp, value = (torch.nan_to_num(numbers(mask, seed)) for seed in (1, 2, 3))
    score = torch.tensor([1.0, -2.0, 0.5, 4.0])
    used = value if estimator == "gae" else None
    made = make_experience(rollout, score, logp, ref_logp, used, kl_weight, estimator, 2, settings)
    return made, score, logp, ref_logp, value


def whitened(rows):
    """Lists to mean 0 and variance 1, over all of their numbers."""
    flat = [x for row in rows for x in row]
    mean = sum(flat) / len(flat)
    scale = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
    return [[(x - mean) / scale for x in row] for row in rows]


def naive_gae(score, logp, ref_logp, value, settings, kl_weight):
    """The definitions as sums over the tokens to come; rewards, then advantages of each row."""
    rewards = [[-kl_weight * float(logp[i, t] - ref_logp[i, t]) for t in range(n)] for i, n in enumerate(LENGTHS)]
    for i, row in enumerate(rewards):
        row[-1] += float(score[i])
    advantages = []
    for i, row in enumerate(rewards):
        values = [*value[i, : len(row)].tolist(), 0.0]
        errors = [r + settings.gamma * values[t + 1] - values[t] for t, r in enumerate(row)]
        decay = settings.gamma * settings.gae_lambda
        advantages.append([sum(decay ** (u - t) * errors[u] for u in range(t, len(row))) for t in range(len(row))])
    return advantages


def same(found, rows):
    """Whether (R, A) holds the numbers of each row, and 0 after them."""
    padded = torch.tensor([[*row, *[0.0] * (found.shape[1] - len(row))] for row in rows])
    return torch.allclose(found, padded, atol=1e-5)


@pytest.mark.parametrize("whitens", [False, True])
def test_gae_follows_the_naive_loop(whitens):
    settings = PPOSettings(gamma=0.9, gae_lambda=0.8, whiten_advantages=whitens)
    made, score, logp, ref_logp, value = experience("gae", settings)
    advantages = naive_gae(score, logp, ref_logp, value, settings, kl_weight=0.3)
    returns = [[a + float(value[i, t]) for t, a in enumerate(row)] for i, row in enumerate(advantages)]
    assert same(made.advantage, whitened(advantages) if settings.whiten_advantages else advantages)
    assert same(made.returns, returns)  # of the advantages as they were before whitening


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
@pytest.mark.parametrize("whitens", [False, True])
def test_the_others_compare_whole_responses_to_one_prompt(estimator, whitens):
    made, score, logp, ref_logp, _ = experience(estimator, PPOSettings(whiten_advantages=whitens))
    totals = [
        float(score[i]) - 0.3 * sum(float(logp[i, t] - ref_logp[i, t]) for t in range(n)) for i, n in enumerate(LENGTHS)
    ]
    by_row = []
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        difference = totals[one] - totals[other]
        deviation = abs(difference) / math.sqrt(2)  # the unbiased one of two numbers
        by_row.append(difference if estimator == "rloo" else difference / 2 / (deviation + 1e-4))
    advantages = [[a] * n for a, n in zip(by_row, LENGTHS, strict=True)]
    assert same(made.advantage, whitened(advantages) if whitens else advantages)
    assert made.value is None and made.returns is None


def test_the_score_comes_with_the_last_real_token():
    made, score, *_ = experience("gae", PPOSettings(whiten_advantages=False, gamma=0.0), kl_weight=0.0)
    for i, n in enumerate(LENGTHS):  # with gamma 0 the return of a token is its own reward
        assert made.returns[i].tolist() == pytest.approx([0.0] * (n - 1) + [float(score[i])] + [0.0] * (4 - n))


def test_the_kl_is_the_log_ratio_of_the_responses_tokens():
    made, _, logp, ref_logp, _ = experience("rloo")
    assert same(made.kl, [(logp[i, :n] - ref_logp[i, :n]).tolist() for i, n in enumerate(LENGTHS)])


@pytest.mark.parametrize("estimator", ["gae", "rloo", "grpo"])
def test_what_stands_behind_a_response_changes_nothing(estimator):
    rollout = rollout_of()
    rows = [numbers(rollout.response_mask, seed) for seed in (1, 2, 3)]
    score = torch.tensor([1.0, -2.0, 0.5, 4.0])
    clean, dirty = (
        make_experience(rollout, score, a, b, c if estimator == "gae" else None, 0.3, estimator, 2, PPOSettings())
        for a, b, c in ([torch.nan_to_num(x) for x in rows], rows)
    )
    assert torch.equal(clean.advantage, dirty.advantage) and torch.equal(clean.kl, dirty.kl)


@pytest.mark.parametrize("budget", [1, 13, 20, 1000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget):
    rollout = rollout_of()
    parts = list(micro_batches(rollout, np.array([3, 0, 2]), budget, PADDED, "cpu"))
    places = [(row, column) for row in (0, 2, 3) for column in range(LENGTHS[row])]
    assert sorted(divmod(place, 4) for part in parts for place in part.table_places.tolist()) == places
    assert all(len(part.inputs.input_ids) == 1 or part.inputs.input_ids.numel() <= budget for part in parts)
    for part in parts:  # the token itself, and the one before it
        where = part.table_places
        assert torch.equal(part.response_ids, rollout.response_ids.flatten()[where])
        before = rollout.input_ids[where // 4, where % 4 + 2]
        assert torch.equal(part.inputs.input_ids.flatten()[part.state_places], before)
    assert not list(micro_batches(rollout, np.array([], np.int64), budget, PADDED, "cpu"))  # a rank without a share


def test_what_was_computed_stands_in_its_places():
    mask = rollout_of().response_mask
    parts = [
        (torch.tensor([8, 9, 10, 11]), torch.tensor([1.0, 2.0, 3.0, 4.0])),
        (torch.tensor([12, 4]), torch.tensor([5.0, 6.0])),
    ]
    assert in_table(parts, mask).tolist() == [[0, 0, 0, 0], [6, 0, 0, 0], [1, 2, 3, 4], [5, 0, 0, 0]]


class _Table:
    """A policy of looked-up log-probabilities: what a token is depends on its id and the role alone."""

    device = "cpu"

    def __init__(self, layout):
        self.layout = layout

    def hidden(self, role, inputs):
        shift = {"policy": 0, "reference": 7, "critic": 0}[role]
        return torch.stack([inputs.input_ids.float() + shift, torch.ones(inputs.input_ids.shape)], -1)

    def head(self, role):
        return lambda hidden: hidden[:, :1] * torch.linspace(0, 0.01, 40)

    def values(self, hidden):
        return hidden[:, 0] / 10


@pytest.mark.parametrize("layout", [PADDED, Layout(shares_prompts=True), Layout(True, row_multiple=64)])
@pytest.mark.parametrize("budget", [1, 1000])
def test_measuring_in_batches_gives_each_token_its_own_number(budget, layout):
    rollout = rollout_of()
    logp, ref_logp, value = measure(_Table(layout), rollout, 0.5, budget, has_critic=True)
    assert measure(_Table(layout), rollout, 0.5, budget)[2] is None
    logits = torch.linspace(0, 0.01, 40)
    for i, n in enumerate(LENGTHS):
        for t in range(4):
            before, token = int(rollout.input_ids[i, 2 + t]), int(rollout.input_ids[i, 3 + t])
            expected = [(logits * (before + s) / 0.5).log_softmax(-1)[token] for s in (0, 7)] if t < n else [0, 0]
            assert [float(logp[i, t]), float(ref_logp[i, t])] == pytest.approx([float(x) for x in expected], abs=1e-5)
            assert float(value[i, t]) == pytest.approx(before / 10 if t < n else 0.0)


def test_settings_that_cannot_work_are_all_named():
    wrong = PPOSettings(
        epochs=0,
        minibatches=0,
        clip_range=0.0,
        value_clip_range=-1.0,
        gamma=1.1,
        gae_lambda=-0.1,
    )
    found = wrong.problems("rloo", 1)
    names = "epochs minibatches clip_range value_clip_range gamma gae_lambda responses_per_prompt"
    assert [line.split(":")[0].split(".")[1] for line in found] == names.split()
    assert PPOSettings().problems("gae", 1) == PPOSettings().problems("grpo", 2) == []
    assert len(PPOSettings().problems("gae", 0)) == 1


def test_a_group_that_is_not_whole_is_refused():
    rollout = rollout_of()
    zeros = torch.zeros(rollout.response_mask.shape)
    with pytest.raises(UserError, match="got 3 for 4 responses"):
        make_experience(rollout, torch.zeros(4), zeros, zeros, None, 0.1, "rloo", 3, PPOSettings())
