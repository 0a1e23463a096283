"""The exact head against scikit-learn and what swapping a pair's responses must do."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from ser_lightning.training.linear_head import (
    choose_penalty,
    curvature_root,
    difference_scale,
    fit_linear_head,
    log_loss,
)


def pairs(n, size, seed=0):
    """(n, size) differences whose numbers differ in scale, and labels that a direction gives with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, size, generator=generator) * torch.logspace(0, -2, size)
    x = x / difference_scale([x])
    direction = torch.randn(size, generator=generator)
    margin = x @ direction
    label = (torch.rand(n, generator=generator) < torch.sigmoid(2 * margin / margin.std())).float()
    return x, label


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("n", "size"), [(40, 12), (25, 90)])
def test_it_is_logistic_regression(n, size, penalty):
    x, label = pairs(n, size)
    oracle = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    expected = oracle.fit(x.double().numpy(), label.numpy()).coef_[0]
    assert np.allclose(fit_linear_head(x, label, penalty), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_a_root_of_more_pairs_gives_the_same_head(penalty):
    """Oracle: the margins of scikit-learn's heads on some of the pairs."""
    x, label = pairs(400, 12)
    root = curvature_root(x.split(70), penalty)
    for rows in (slice(0, 400), slice(0, 400, 8), slice(0, 10)):
        oracle = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-12, solver="newton-cholesky")
        expected = oracle.fit(x[rows].double().numpy(), label[rows].numpy()).coef_[0]
        weight = fit_linear_head(x[rows], label[rows], penalty, root)
        assert np.allclose(x.double() @ weight, x.double().numpy() @ expected, atol=1e-4)


def test_a_soft_label_counts_as_both_labels_in_its_shares():
    x, _ = pairs(30, 8)
    soft = torch.linspace(0, 1, 30)
    oracle = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, solver="newton-cholesky")
    both = np.concatenate([np.ones(30), np.zeros(30)])
    weight = torch.cat([soft, 1 - soft]).numpy()
    expected = oracle.fit(torch.cat([x, x]).double().numpy(), both, sample_weight=weight).coef_[0]
    assert np.allclose(fit_linear_head(x, soft, 1.0), expected, rtol=1e-4, atol=1e-6)


def test_swapping_responses_and_the_order_of_pairs_change_nothing():
    x, label = pairs(50, 20)
    weight = fit_linear_head(x, label, 0.5)
    swapped = torch.arange(50) % 3 == 0
    sign = torch.where(swapped, -1.0, 1.0)
    order = torch.randperm(50)
    again = fit_linear_head((x * sign[:, None])[order], torch.where(swapped, 1 - label, label)[order], 0.5)
    assert torch.allclose(weight, again, rtol=1e-4, atol=1e-7)


def test_the_penalty_is_the_one_that_a_naive_loop_finds_and_groups_are_never_split():
    x, label = pairs(60, 30)
    group = [i // 3 for i in range(60)]
    choice = choose_penalty(x, label, group, num_folds=4, penalties=(0.1, 1.0, 10.0))
    losses, margins = {}, {}
    for penalty in (0.1, 1.0, 10.0):
        margins[penalty] = torch.zeros(60, dtype=torch.float64)
        for kept, left_out in GroupKFold(4).split(x, groups=group):
            assert not {group[i] for i in kept} & {group[i] for i in left_out}
            margins[penalty][left_out] = x[left_out].double() @ fit_linear_head(x[kept], label[kept], penalty)
        losses[penalty] = float(log_loss(margins[penalty], label).mean())
    assert choice.penalty == min(losses, key=losses.get)
    assert torch.allclose(choice.margin, margins[choice.penalty], rtol=1e-4, atol=1e-5)
    assert float(choice.loss.mean()) == pytest.approx(losses[choice.penalty], rel=1e-5)


def test_one_group_leaves_the_strongest_penalty_and_no_margin():
    x, label = pairs(6, 4)
    choice = choose_penalty(x, label, [7] * 6)
    assert choice.penalty == 100 and choice.margin.tolist() == [0.0] * 6
    assert choice.loss.tolist() == pytest.approx([np.log(2)] * 6)


def test_scaled_differences_vary_alike_and_chunks_do_not_matter():
    x = torch.randn(200, 6) * torch.tensor([1.0, 10, 100, 0.1, 5, 0])
    scale = difference_scale([x], num_readings=2)
    assert torch.allclose(scale, difference_scale(x.split(33), num_readings=2))
    scaled = (x / scale).square().mean(0)
    assert torch.allclose(scaled[:5], torch.full((5,), 1 / 3), rtol=1e-4)
    assert scaled[5] == 0 and torch.isfinite(scale).all()


def test_a_tie_is_half_a_win_for_either_response():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator)
    decided = (x[:30].sum(1) > 0).float()
    soft = fit_linear_head(x, torch.cat([decided, torch.full((10,), 0.5)]), 1.0)
    both = torch.cat([decided, torch.zeros(10), decided, torch.ones(10)])
    assert torch.allclose(soft, fit_linear_head(torch.cat([x, x]), both, 2.0), atol=1e-4)


def test_ties_tell_more_than_leaving_them_out_does():
    """Annotators with noise call the 30 % of pairs with the smallest perceived margin a tie."""
    gains = []
    for repeat in range(20):
        generator = torch.Generator().manual_seed(repeat)
        weight = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0) * 2
        x = torch.randn(1100, 32, generator=generator)
        margin = x @ weight + torch.randn(1100, generator=generator)
        is_tie, label = margin.abs() < margin.abs().quantile(0.3), (margin > 0).float()
        train, test = torch.arange(1100) < 100, (torch.arange(1100) >= 100) & ~is_tie
        right = []
        for keep, target in ((train & ~is_tie, label), (train, label.where(~is_tie, torch.tensor(0.5)))):
            found = fit_linear_head(x[keep], target[keep], 3.0)
            right.append(float(((x[test].double() @ found > 0) == (label[test] > 0)).double().mean()))
        gains.append(right[1] - right[0])
    assert sum(gains) / len(gains) > 0.01
