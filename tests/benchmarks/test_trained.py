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


def test_every_condition_is_held_against_the_others_on_the_same_pairs():
    """Frozen 0.3, standard 0.4; ours 0.5, evolved 0.8; with all labels 0.6 and 0.9.

    Random seed 2 lacks a run and counts nowhere.
    """
    plain = {"teacher": {seed: run_of("teacher", seed, "1110000000", "1111111111") for seed in range(3)}}
    plain["seed_lora"] = {seed: run_of("seed_lora", seed, "1111000000") for seed in range(3)}
    runs = [run_of("ours", seed, "1111100000", "0000000000", "1111111100") for seed in range(3)]
    runs += [run_of("standard_all", seed, "1111110000") for seed in range(3)]
    runs += [run_of("ours_all", seed, "1111111110") for seed in range(2)]
    header, _, line = trained_table(plain, runs).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "2"
    means = [cell.split()[0] for cell in cells[1:]]
    assert means == ["0.400", "0.500", "0.100", "0.800", "0.300", "0.300", "-0.100", "0.600", "0.900", "0.200"]
    assert header.count("|") == line.count("|")
    assert trained_table({}, runs).count("\n") == 1


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
