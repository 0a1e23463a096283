import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from ser_lightning.errors import UserError
from ser_lightning.rl import policy_math as pm

NAN = float("nan")
LENGTHS = (3, 1, 5, 0, 4)
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
"""(5, 5), padded on the right; one row keeps nothing, one everything."""
HOLED = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]).bool()


def rows(mask, *tensors):
    """What a naive loop sees: for each row, the kept entries of each tensor as lists of floats."""
    for r in range(len(mask)):
        columns = [c for c in range(mask.shape[1]) if mask[r, c]]
        yield [[float(x[r, c]) for c in columns] for x in tensors]


def scattered(mask, lists):
    """The kept entries back in their places, 0 elsewhere."""
    out = torch.zeros(mask.shape)
    for r, values in enumerate(lists):
        columns = [c for c in range(mask.shape[1]) if mask[r, c]]
        for c, value in zip(columns, values, strict=True):
            out[r, c] = value
    return out


def per_token(mask, score=None):
    """Every function of (R, A) tensors, with the inputs that a mask cuts, as (name, function, number of inputs)."""
    score = torch.linspace(-1, 2, len(mask)) if score is None else score
    return [
        ("whiten", lambda x: pm.whiten(x, mask), 1),
        ("sequence_kl", lambda x: pm.sequence_kl(x, mask), 1),
        ("token_rewards", lambda x: pm.token_rewards(score, x, mask, 0.3), 1),
        ("gae", lambda x, y: torch.stack(pm.gae(x, y, mask, 0.9, 0.8)), 2),
    ]


NAMES = [name for name, _, _ in per_token(MASK)]


@pytest.mark.parametrize("mask", [MASK, HOLED])
@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_what_stands_outside_the_mask_changes_neither_result_nor_gradient(index, garbage, mask):
    _, function, num_inputs = per_token(mask)[index]
    clean = [torch.randn(mask.shape).masked_fill(~mask, 0.0).requires_grad_() for _ in range(num_inputs)]
    dirty = [x.detach().masked_fill(~mask, garbage).requires_grad_() for x in clean]
    expected, result = function(*clean), function(*dirty)
    assert torch.equal(result, expected)
    if result.shape == mask.shape:
        assert (result[~mask] == 0).all()
    expected.sum().backward()
    result.sum().backward()
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(y.grad, x.grad)


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_the_order_of_the_rows_does_not_matter(index):
    order = torch.tensor([3, 0, 4, 1, 2])
    score = torch.randn(5)
    name, function, num_inputs = per_token(MASK, score)[index]
    permuted = per_token(MASK[order], score[order])[index][1]
    inputs = [torch.randn(5, 5) for _ in range(num_inputs)]
    result, again = function(*inputs), permuted(*(x[order] for x in inputs))
    if name in ("whiten", "whiten, mean kept", "token_rewards", "sequence_kl"):
        result = result[order]
    elif name == "gae":
        result = result[:, order]
    torch.testing.assert_close(again, result)


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_padding_on_the_left_shifts_the_result(index, shift):
    _, function, num_inputs = per_token(MASK)[index]
    pad = torch.nn.functional.pad
    shifted = per_token(pad(MASK, (shift, 0)))[index][1]
    inputs = [torch.randn(5, 5) for _ in range(num_inputs)]
    result, again = function(*inputs), shifted(*(pad(x, (shift, 0), value=7.0) for x in inputs))
    torch.testing.assert_close(again, pad(result, (shift, 0)) if result.dim() > 1 else result)


def test_whitened_entries_have_mean_0_and_variance_1():
    x = 5 * torch.randn(MASK.shape) + 3
    values = x[MASK].double()
    expected = (values - values.mean()) / values.std(unbiased=False)
    torch.testing.assert_close(pm.whiten(x, MASK)[MASK].double(), expected, atol=1e-5, rtol=1e-5)


def test_ranks_whiten_as_one(monkeypatch):
    x = torch.randn(MASK.shape) * torch.tensor([1.0, 1.0, 8.0, 1.0, 3.0])[:, None]
    parts = [(x[:2], MASK[:2]), (x[2:], MASK[2:])]
    whole, of_ranks = pm.whiten(x, MASK), []
    monkeypatch.setattr(pm, "sum_over_ranks", lambda sums: of_ranks.append(sums) or sums)
    for part in parts:
        pm.whiten(*part)
    monkeypatch.setattr(pm, "sum_over_ranks", lambda _: sum(of_ranks))
    torch.testing.assert_close(torch.cat([pm.whiten(*part) for part in parts]), whole)


def test_whitening_takes_constants_large_means_and_nothing():
    assert pm.whiten(torch.full((5, 5), 0.1), MASK).abs().max().item() < 1e-6
    assert torch.equal(pm.whiten(torch.randn(5, 5), torch.zeros(5, 5).bool()), torch.zeros(5, 5))
    far = pm.whiten(torch.tensor([[100000.0, 100001.0]]), torch.ones(1, 2).bool())
    assert far[0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)


NUM_HIDDEN, NUM_VOCABULARY = 6, 50


class Head(torch.nn.Linear):
    """A head that counts the rows of each call."""

    def __init__(self):
        super().__init__(NUM_HIDDEN, NUM_VOCABULARY)
        self.calls = []

    def forward(self, hidden):
        self.calls.append(len(hidden))
        return super().forward(hidden)


def plain_logps(hidden, head, ids, temperature):
    logits = head(hidden) / temperature
    distribution = torch.distributions.Categorical(logits=logits)
    return torch.log_softmax(logits, -1)[torch.arange(len(ids)), ids], distribution.entropy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_size", [1, 4, 10, 99])
def test_token_logps_and_their_gradients_are_those_of_log_softmax(chunk_size, temperature):
    head, hidden = Head(), torch.randn(10, NUM_HIDDEN, requires_grad=True)
    ids = torch.randint(NUM_VOCABULARY, (10,))
    weights = torch.randn(2, 10)
    found = []
    for function, extra in ((pm.token_logps, (chunk_size,)), (plain_logps, ())):
        logp, entropy = function(hidden, head, ids, temperature, *extra)
        inputs = [hidden, *head.parameters()]
        gradients = torch.autograd.grad((weights[0] * logp + weights[1] * entropy).sum(), inputs)
        found.append([logp, entropy, *gradients])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(x.shape) for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


def test_logits_exist_one_chunk_at_a_time_and_are_not_kept_for_the_backward_pass():
    head, ids = Head(), torch.randint(NUM_VOCABULARY, (10,))
    hidden = torch.randn(10, NUM_HIDDEN, requires_grad=True)
    for function, extra, allowed in ((pm.token_logps, (4,), 4), (plain_logps, (), 10)):
        saved = []
        head.calls = []
        with Shapes() as shapes:
            with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x.shape) or x, lambda x: x):
                logp, entropy = function(hidden, head, ids, 1.0, *extra)
            (logp.sum() + entropy.sum()).backward()
        rows_of_logits = {shape[0] for shape in shapes.seen if len(shape) == 2 and shape[1] == NUM_VOCABULARY}
        assert max(rows_of_logits - {NUM_HIDDEN}) == allowed  # less the head's weight, transposed
        has_kept_logits = any(shape[-1:] == (NUM_VOCABULARY,) for shape in saved)
        assert has_kept_logits == (function is plain_logps)
        assert sorted(head.calls) == ([10] if function is plain_logps else [2, 2, 4, 4, 4, 4])


def test_without_gradient_the_head_runs_once():
    head, hidden, ids = Head(), torch.randn(10, NUM_HIDDEN), torch.randint(NUM_VOCABULARY, (10,))
    with torch.no_grad():
        logp, _ = pm.token_logps(hidden, head, ids, 1.0, 4)
    assert head.calls == [4, 4, 2]
    torch.testing.assert_close(logp, plain_logps(hidden, head, ids, 1.0)[0].detach())


def test_half_precision_logits_are_taken_apart_in_float32():
    head, hidden = Head().bfloat16(), torch.randn(10, NUM_HIDDEN).bfloat16()
    ids = torch.randint(NUM_VOCABULARY, (10,))
    logp, entropy = pm.token_logps(hidden, head, ids, 0.7, 4)
    assert logp.dtype == entropy.dtype == torch.float32
    expected, _ = plain_logps(hidden, lambda x: head(x).double(), ids, 0.7)
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=1e-5)


def test_forbidden_tokens_leave_entropy_and_gradient_finite():
    logits = torch.tensor([[1.0, -math.inf, 2.0]], requires_grad=True)
    logp, entropy = pm.token_logps(logits, lambda x: x, torch.tensor([2]), 1.0, 1)
    probs = [math.exp(1) / (math.exp(1) + math.exp(2)), math.exp(2) / (math.exp(1) + math.exp(2))]
    assert logp.item() == pytest.approx(math.log(probs[1]), rel=1e-5)
    assert entropy.item() == pytest.approx(scipy_entropy(probs), rel=1e-5)
    (logp + entropy).sum().backward()
    assert logits.grad.isfinite().all()


def test_no_positions_give_nothing_but_keep_the_graph():
    head = Head()
    logp, entropy = pm.token_logps(torch.zeros(0, NUM_HIDDEN), head, torch.zeros(0, dtype=torch.int64), 1.0, 4)
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert torch.equal(head.weight.grad, torch.zeros(NUM_VOCABULARY, NUM_HIDDEN))


def test_k3_is_unbiased():
    for _ in range(5):
        log_p, log_q = torch.randn(2, 7, dtype=torch.float64).log_softmax(-1)
        expectation = (log_p.exp() * pm.kl_k3(log_p, log_q)).sum().item()
        assert expectation == pytest.approx(scipy_entropy(log_p.exp().numpy(), log_q.exp().numpy()), rel=1e-9)


def test_k3_by_hand():
    logp, ref_logp = torch.tensor([math.log(0.5), math.log(0.2)]), torch.tensor([math.log(0.25), math.log(0.6)])
    assert pm.kl_k3(logp, ref_logp).tolist() == pytest.approx([0.5 - 1 + math.log(2), 3 - 1 - math.log(3)])
    assert (pm.kl_k3(torch.randn(1000), torch.randn(1000)) >= 0).all()


def test_summed_over_a_response_k1_samples_the_kl_of_whole_responses():
    """Two tokens from two states, all 9 responses enumerated."""
    log_p, log_q = torch.randn(2, 4, 3, dtype=torch.float64).log_softmax(-1)  # row 0: first token, row 1 + i: after i
    probs, ratios, log_ratios = [], [], []
    for i in range(3):
        for j in range(3):
            kl = torch.stack([log_p[0, i] - log_q[0, i], log_p[1 + i, j] - log_q[1 + i, j]])
            probs.append((log_p[0, i] + log_p[1 + i, j]).exp().item())
            ratios.append((log_q[0, i] + log_q[1 + i, j]).exp().item())
            log_ratios.append(pm.sequence_kl(kl[None], torch.ones(1, 2).bool()).item())
    expectation = sum(p * x for p, x in zip(probs, log_ratios, strict=True))
    assert expectation == pytest.approx(scipy_entropy(probs, ratios), rel=1e-9)


def test_sequence_kl_by_hand():
    kl = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]]).bool()
    assert pm.sequence_kl(kl, mask).tolist() == [3.0, 48.0, 0.0]


def test_rewards_by_hand():
    score, kl = torch.tensor([10.0, 20.0, NAN]), torch.tensor([[1.0, -2.0, 9.0], [3.0, 4.0, 5.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    rewards = pm.token_rewards(score, kl, mask, 0.5)
    assert rewards.tolist() == [[-0.5, 11.0, 0.0], [-1.5, -2.0, 17.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("mask", [MASK, HOLED])
def test_rewards_follow_the_naive_loop_and_sum_to_score_less_kl(mask):
    score, kl = torch.randn(len(mask)), torch.randn(mask.shape)
    expected = []
    for r, (kl_of_row,) in enumerate(rows(mask, kl)):
        expected.append([-0.3 * x for x in kl_of_row])
        if kl_of_row:
            expected[-1][-1] += score[r].item()
    rewards = pm.token_rewards(score, kl, mask, 0.3)
    torch.testing.assert_close(rewards, scattered(mask, expected))
    total = torch.where(mask.any(-1), score - 0.3 * pm.sequence_kl(kl, mask), 0.0)
    torch.testing.assert_close(rewards.sum(-1), total)


def test_gae_by_hand():
    rewards, values = torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([[0.5, 0.25, 7.0]])
    advantages, returns = pm.gae(rewards, values, torch.tensor([[True, True, False]]), 0.5, 0.5)
    # delta_1 = 2 - 0.25 = 1.75; delta_0 = 1 + 0.5 * 0.25 - 0.5 = 0.625; A_0 = 0.625 + 0.25 * 1.75
    assert advantages[0].tolist() == [1.0625, 1.75, 0.0]
    assert returns[0].tolist() == [1.5625, 2.0, 0.0]


@pytest.mark.parametrize("mask", [MASK, HOLED])
@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.8), (0.9, 0.0), (1.0, 1.0)])
def test_gae_is_the_discounted_sum_of_td_errors(mask, gamma, lambda_):
    rewards, values = torch.randn(mask.shape), torch.randn(mask.shape)
    expected = []
    for reward, value in rows(mask, rewards, values):
        after = [*value, 0.0][1:]
        delta = [r + gamma * a - v for r, v, a in zip(reward, value, after, strict=True)]
        expected.append([sum((gamma * lambda_) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(delta))])
    advantages, returns = pm.gae(rewards, values, mask, gamma, lambda_)
    torch.testing.assert_close(advantages, scattered(mask, expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])


def test_with_lambda_1_the_returns_are_the_rewards_to_come_whatever_the_values():
    rewards = torch.randn(MASK.shape)
    expected = []
    for (row,) in rows(MASK, rewards):
        expected.append([sum(0.9**k * r for k, r in enumerate(row[t:])) for t in range(len(row))])
    for _ in range(2):
        _, returns = pm.gae(rewards, torch.randn(MASK.shape), MASK, 0.9, 1.0)
        torch.testing.assert_close(returns, scattered(MASK, expected), atol=1e-5, rtol=1e-5)


def test_true_values_leave_no_advantage():
    rewards = torch.randn(MASK.shape)
    _, values = pm.gae(rewards, torch.zeros(MASK.shape), MASK, 0.9, 1.0)
    for lambda_ in (0.0, 0.5, 1.0):
        assert pm.gae(rewards, values, MASK, 0.9, lambda_)[0].abs().max().item() < 1e-5


def test_rloo_by_hand_and_by_loop():
    assert pm.rloo_advantages(torch.tensor([1.0, 3.0, 5.0, 8.0]), 2).tolist() == [-2.0, 2.0, -3.0, 3.0]
    returns = torch.randn(12)
    expected = []
    for i in range(12):
        others = [returns[j].item() for j in range(12) if j // 4 == i // 4 and j != i]
        expected.append(returns[i].item() - sum(others) / 3)
    assert pm.rloo_advantages(returns, 4).tolist() == pytest.approx(expected, abs=1e-6)


def test_grpo_by_hand_and_by_loop():
    # Mean 2, unbiased standard deviation 1.
    tiny = 1e-4 * torch.tensor([1.0, 2.0, 3.0])  # whose deviation is as large as what is added to it
    assert pm.grpo_advantages(tiny, 3).tolist() == pytest.approx([-0.5, 0.0, 0.5], rel=1e-3)
    returns = torch.randn(8)
    expected = []
    for group in (returns[:4].tolist(), returns[4:].tolist()):
        mean = sum(group) / 4
        std = math.sqrt(sum((x - mean) ** 2 for x in group) / 3)
        expected += [(x - mean) / (std + 1e-4) for x in group]
    assert pm.grpo_advantages(returns, 4).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("advantages_of", [pm.rloo_advantages, pm.grpo_advantages])
def test_group_advantages(advantages_of):
    returns = 4 * torch.randn(12)
    advantages = advantages_of(returns, 3)
    assert advantages.shape == (12,)
    assert advantages.view(4, 3).sum(-1).abs().max().item() < 1e-5  # the baselines average to the group's mean
    shift = torch.tensor([5.0, -3.0, 0.0, 1.0]).repeat_interleave(3)
    torch.testing.assert_close(advantages_of(returns + shift, 3), advantages, atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 1, 11, 10, 9, 3, 4, 5, 7, 8, 6])  # inside groups, and whole groups
    torch.testing.assert_close(advantages_of(returns[order], 3), advantages[order])
    assert advantages_of(torch.full((6,), 0.1), 3).tolist() == [0.0] * 6
    with pytest.raises(UserError, match="group_size: got 1"):
        advantages_of(returns, 1)
    with pytest.raises(UserError, match="group_size: got 5 for 12 responses"):
        advantages_of(returns, 5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_stopped"),
    [
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.4, True),  # good enough already
        (0.5, 2.0, -1.0, False),  # good, and has become rarer: must come back
        (1.5, -2.0, 3.0, False),  # bad, and has become commoner: must go
        (0.5, -2.0, 1.6, True),
        (1.5, 0.0, 0.0, False),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss, is_stopped):
    logp = torch.tensor([math.log(0.3 * ratio)], requires_grad=True)
    old_logp = torch.tensor([math.log(0.3)])
    total, num_clipped = pm.clipped_policy_loss(logp, old_logp, torch.tensor([advantage]), 0.2)
    assert total.item() == pytest.approx(loss, rel=1e-5)
    assert num_clipped.item() == is_stopped
    total.backward()
    assert logp.grad.item() == pytest.approx(0.0 if is_stopped else -advantage * ratio, rel=1e-5)


def test_policy_loss_is_a_sum_over_the_tokens():
    logp, old_logp, advantages = 0.3 * torch.randn(13), 0.3 * torch.randn(13), torch.randn(13)
    loss, num_clipped = 0.0, 0
    for x, y, a in zip(logp.tolist(), old_logp.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(x - y)
        bounded = min(max(ratio, 0.8), 1.2)
        loss -= min(ratio * a, bounded * a)
        num_clipped += bounded * a < ratio * a
    total, found = pm.clipped_policy_loss(logp, old_logp, advantages, 0.2)
    assert 0 < num_clipped < 13 and found.item() == num_clipped
    assert total.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("clip_range", [0.0, 0.2])
def test_at_ratio_1_the_gradient_is_that_of_reinforce(clip_range):
    logits, ids, advantages = torch.randn(13, 7, requires_grad=True), torch.randint(7, (13,)), torch.randn(13)
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, None])[:, 0]
    loss, num_clipped = pm.clipped_policy_loss(logp, logp.detach(), advantages, clip_range)
    (gradient,) = torch.autograd.grad(loss, logits)
    # d log p(y) / d logits = onehot(y) - p
    of_logp = torch.nn.functional.one_hot(ids, 7) - logits.detach().softmax(-1)
    torch.testing.assert_close(gradient, -advantages[:, None] * of_logp)
    assert num_clipped.item() == 0


def test_value_loss_by_hand():
    values = torch.tensor([1.0, 1.5, 0.0, 2.0], requires_grad=True)
    old_values, returns = torch.tensor([0.9, 1.0, 1.0, 1.0]), torch.tensor([2.0, 2.0, 2.0, 1.2])
    total = pm.clipped_value_loss(values, old_values, returns, 0.2)
    # Within range; 1.5 counts as 1.2, further off; 0 as 0.8, nearer: the raw one counts; 2 as 1.2, nearer.
    assert total.item() == pytest.approx(0.5 * (1.0**2 + 0.8**2 + 2.0**2 + 0.8**2))
    total.backward()
    assert values.grad.tolist() == pytest.approx([-1.0, 0.0, -2.0, 0.8])


def test_value_loss_is_a_sum_over_the_tokens():
    values, old_values, returns = torch.randn(3, 13).unbind()
    loss = 0.0
    for v, o, t in zip(values.tolist(), old_values.tolist(), returns.tolist(), strict=True):
        bounded = min(max(v, o - 0.2), o + 0.2)
        loss += 0.5 * max((v - t) ** 2, (bounded - t) ** 2)
    assert pm.clipped_value_loss(values, old_values, returns, 0.2).item() == pytest.approx(loss, rel=1e-5)


def test_values_that_have_not_moved_are_not_clipped():
    values, returns = torch.randn(13, requires_grad=True), torch.randn(13)
    (gradient,) = torch.autograd.grad(pm.clipped_value_loss(values, values.detach(), returns, 0.2), values)
    torch.testing.assert_close(gradient, (values - returns).detach())


def test_fixed_kl_stays_and_the_config_has_the_last_word():
    control = pm.FixedKL(0.05)
    control.update(1000.0, 512)
    control.load_state_dict(pm.FixedKL(0.7).state_dict())
    assert control.weight == 0.05


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.6, 1.01), (5.4, 0.99), (6.0, 1.0), (600.0, 1.02), (0.0, 0.98), (-50.0, 0.98)]
)
def test_adaptive_kl_by_hand(kl, factor):
    control = pm.AdaptiveKL(0.1, target=6.0, horizon=10000)
    control.update(kl, num_responses=1000)
    assert control.weight == pytest.approx(0.1 * factor)


def test_adaptive_kl_finds_the_weight_that_holds_the_target():
    control = pm.AdaptiveKL(0.1, target=6.0, horizon=1000)
    for _ in range(500):
        control.update(3.0 / control.weight, 100)  # a policy whose KL falls with the weight
    assert control.weight == pytest.approx(0.5, rel=1e-3)


def test_adaptive_kl_goes_on_where_it_stopped():
    first, straight = (pm.AdaptiveKL(0.1, 6.0, 1000) for _ in range(2))
    for kl in (7.0, 3.0, 20.0):
        first.update(kl, 64)
        straight.update(kl, 64)
    second = pm.AdaptiveKL(0.9, 6.0, 1000)
    second.load_state_dict(first.state_dict())
    second.update(5.0, 64)
    straight.update(5.0, 64)
    assert second.weight == straight.weight != first.weight


def test_kl_control_says_what_is_wrong_with_its_settings():
    for weight in (-0.1, NAN, math.inf):
        with pytest.raises(UserError, match="kl.weight: got"):
            pm.FixedKL(weight)
    assert pm.FixedKL(0.0).weight == 0.0
    with pytest.raises(UserError) as error:
        pm.AdaptiveKL(0.0, -1.0, 0)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["kl.weight", "kl.target", "kl.horizon"]
    assert pm.FixedKL(0.1).problems(500) == pm.AdaptiveKL(0.1, 6.0, 101).problems(500) == []
    line = "kl.horizon: got 100; need more than 100 for 500 responses"
    assert pm.AdaptiveKL(0.1, 6.0, 100).problems(500) == [line]
