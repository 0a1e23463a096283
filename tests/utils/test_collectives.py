import pytest
import torch

from ser_lightning.utils.collectives import gather_over_ranks, sum_gradients, sum_over_ranks


@pytest.fixture(params=["no ranks", "one rank"])
def ranks(request, tmp_path):
    """Without `torch.distributed`, and with it in a world of one process."""
    if request.param == "one rank":
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield request.param
    if request.param == "one rank":
        torch.distributed.destroy_process_group()


def test_a_sum_over_one_is_the_value_and_leaves_it_alone(ranks):
    values = torch.tensor([[1.5, -2.0], [0.0, 3.0]], dtype=torch.float64)
    total = sum_over_ranks(values)
    assert total.dtype == torch.float64 and total.tolist() == [[1.5, -2.0], [0.0, 3.0]]
    assert values.tolist() == [[1.5, -2.0], [0.0, 3.0]]


def test_what_is_gathered_of_one_is_a_list_of_it(ranks):
    value = {"texts": ["a", "b"], "id": 3}
    assert gather_over_ranks(value) == [value]
    assert gather_over_ranks([]) == [[]]


def test_gradients_of_one_stay_and_a_missing_one_adds_nothing(ranks):
    with_gradient, without = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    (3 * with_gradient).sum().backward()
    sum_gradients([with_gradient, without])
    assert with_gradient.grad.tolist() == [3.0, 3.0]
    assert without.grad is None or without.grad.tolist() == [0.0, 0.0]
