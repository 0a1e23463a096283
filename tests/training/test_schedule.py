import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ser_lightning.errors import UserError
from ser_lightning.training.schedule import fuse, lr_factor, make_optimizer


@pytest.mark.parametrize(
    ("num_steps", "warmup_share", "decay", "expected"),
    [
        (4, 0.0, "linear", [1.0, 0.75, 0.5, 0.25]),
        (5, 0.4, "linear", [1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]),
        (5, 0.4, "none", [1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        (5, 0.1, "linear", [1.0, 0.8, 0.6, 0.4, 0.2]),  # a tenth of five steps is none
        (1, 0.9, "linear", [1.0]),
    ],
)
def test_factors_by_hand(num_steps, warmup_share, decay, expected):
    factors = [lr_factor(step, num_steps, warmup_share, decay) for step in range(num_steps)]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup_share", [0.0, 0.1, 0.5, 0.99])
def test_every_step_moves_and_none_beyond_the_peak(num_steps, warmup_share):
    factors = [lr_factor(step, num_steps, warmup_share, "linear") for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1]) and factors[peak:] == sorted(factors[peak:], reverse=True)
    assert lr_factor(num_steps, num_steps, warmup_share, "linear") == 0
    assert lr_factor(num_steps + 3, num_steps, warmup_share, "linear") == 0


def test_a_schedule_without_an_end_is_refused_where_it_needs_one():
    assert lr_factor(7, math.inf, 0.0, "none") == 1
    for warmup_share, decay in ((0.0, "linear"), (0.1, "none")):
        with pytest.raises(UserError, match=r"trainer\.max_epochs: got -1 without max_steps"):
            lr_factor(7, math.inf, warmup_share, decay)


def test_each_group_keeps_its_own_peak():
    one, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    made = make_optimizer(lambda p: torch.optim.SGD([{"params": p, "lr": 0.5}, {"params": [other]}], lr=0.1), [one], "")
    assert [group["initial_lr"] for group in made.param_groups] == [0.5, 0.1]


@pytest.mark.parametrize("arguments", [{"lr": -1.0}, {"lr": 0.1, "momentums": 0.9}])
def test_refused_arguments_are_one_line_that_names_the_place(arguments):
    with pytest.raises(UserError, match=r"^model.critic_optimizer: got arguments that it refuses \(.*; mend its init"):
        make_optimizer(
            lambda p: torch.optim.SGD(p, **arguments), [torch.nn.Parameter(torch.zeros(2))], "model.critic_optimizer"
        )


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_fused_where_that_is_worth_it_and_nobody_has_said_otherwise(make):
    def trained(device, **settings):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(5, 3))
        optimizer = make([weight], lr=0.1, **settings)
        fuse(optimizer, device)
        for _ in range(3):
            (weight**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return optimizer.param_groups[0]["fused"], weight.detach()

    plain, fused = trained("cuda"), trained("cpu")
    assert plain[0] is None and fused[0] is True
    torch.testing.assert_close(fused[1], plain[1])
    assert trained("cpu", fused=False)[0] is False
    assert trained("cpu", foreach=True)[0] is None


def test_only_adam_is_fused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.randn(2))], lr=0.1)
    fuse(optimizer, "cpu")
    assert optimizer.param_groups[0]["fused"] is None


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_shards_beside_whole_tensors_are_trained_one_by_one(one_process):
    """PyTorch's default on CUDA is one kernel for all, which refuses a list of both."""
    start = torch.randn(4, 3)

    def trained(parameters):
        optimizer = make_optimizer(lambda p: torch.optim.AdamW(p, lr=0.1), parameters, "model.optimizer")
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        [group] = optimizer.param_groups
        return group["foreach"], [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in parameters]

    mesh = init_device_mesh("cpu", (1,))
    sharded = torch.nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        torch._foreach_mul([sharded, start], 2)  # what is avoided
    foreach, found = trained([torch.nn.Parameter(start.clone()), sharded])
    usual, expected = trained([torch.nn.Parameter(start.clone()) for _ in range(2)])
    assert (foreach, usual) == (False, None)
    assert all(map(torch.equal, found, expected))
