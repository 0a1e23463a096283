"""The table of the study of trained bodies, by hand."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.shared.compiled_layers import CompiledLayers
from benchmarks.trained.tables import trained_table
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.readings import Reading, read_states
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.records import Padded


def run_of(condition, seed, *credit, fifth=0):
    test = {"prompt": [*range(100)], "credit": {str(n): text * 10 for n, text in enumerate(credit)}}
    return {"condition": condition, "seed": seed, "fifth": fifth, "delivered": len(credit) - 1, "test": test}


def test_every_line_is_of_the_random_seeds_that_have_all_of_it():
    """Frozen 0.3, by its delivered round 0.2; standard 0.4, with all labels 0.6.

    Ours is there of random seed 0 alone: 0.5, evolved 0.8, with all labels 0.9.
    """
    runs = {
        "frozen": [run_of("frozen", seed, "1110000000", "1100000000") for seed in range(3)],
        "standard": [run_of("standard", seed, "1111000000") for seed in range(3)],
        "standard_all": [run_of("standard_all", seed, "1111110000") for seed in range(2)],
        "ours": [run_of("ours", 0, "1111100000", "0000000000", "1111111100")],
        "ours_all": [run_of("ours_all", seed, "1111111110") for seed in range(2)],
    }
    runs["taught"] = [run_of("taught", seed, "1111111000") for seed in range(2)]
    by_seed = {name: {run["seed"]: run for run in some} for name, some in runs.items()}
    found = trained_table({"small": by_seed, "large": {name: by_seed[name] for name in ("ours", "standard")}})
    means = {}
    for line in found.splitlines()[2:]:
        body, name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        means[body, name] = [cell.split()[0] for cell in cells]
    small = {
        "standard": ["2", "0.400", "-", "-", "0.600", "-"],
        "`[mean, judge]`": ["1", "0.500", "0.800", "0.300", "0.900", "0.200"],
        "frozen body, `auto`": ["2", "0.300", "0.200", "-0.100", "-", "-0.400"],
        "`[mean, judge]`, taught": ["2", "0.300", "0.700", "0.400", "0.900", "0.100"],
        "`[mean, judge]` minus standard": ["1", "0.100", "-", "-", "0.300", "-"],
        "frozen body, `auto` minus standard": ["3", "-0.100", "-", "-", "-", "-"],
        "frozen body, `auto` minus `[mean, judge]`": ["1", "-0.200", "-0.600", "-0.400", "-", "-"],
        "`[mean, judge]`, taught minus `[mean, judge]`": [
            "1",
            "-0.200",
            "-0.100",
            "0.100",
            "0.000",
            "-",
        ],
        "`[mean, judge]`, taught minus frozen body, `auto`": ["2", "0.000", "0.500", "0.500", "-", "-"],
    }
    large = {  # what was not run is left out
        "standard": ["3", "0.400", "-", "-", "-", "-"],
        "`[mean, judge]`": ["1", "0.500", "0.800", "0.300", "-", "-"],
        "`[mean, judge]` minus standard": ["1", "0.100", "-", "-", "-", "-"],
    }
    assert means == {
        (body, name): cells for body, of in (("small", small), ("large", large)) for name, cells in of.items()
    }
    assert trained_table({}).count("\n") == 1


@pytest.mark.slow  # for the C++ compiler
def test_compiled_layers_give_the_states_and_gradients_of_plain_ones(tiny_model_dir):
    """Also of a layer in the middle, which is read by a hook that comes and goes with each forward pass."""
    model = load_reward_model(Backbone(str(tiny_model_dir), train="full", attn_implementation="eager"))
    readings = [Reading("judge", 1), Reading("last", 2)]
    batches = [torch.randint(3, 99, (2, length)) for length in (5, 9, 17)]

    def found():
        model.zero_grad()
        states = [read_states(model.body, Padded(ids, torch.ones_like(ids)), readings) for ids in batches]
        sum(state.square().sum() for state in states).backward()
        return [*states, *(p.grad.clone() for p in model.body.parameters())]

    plain = found()
    CompiledLayers().on_fit_start(None, SimpleNamespace(reward_model=model))
    torch.testing.assert_close(found(), plain, rtol=1e-4, atol=1e-5)
