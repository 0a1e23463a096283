"""What the judge reads: against plain transformers, in any batch, cached and whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from ser_lightning.errors import UserError
from ser_lightning.evolution import comparison_states as judging
from ser_lightning.evolution.comparisons import encode_comparisons
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.records import PreferencePair
from tests.helpers import data, evolution, module, slow, trainer

PAIRS = [
    PreferencePair(i, [{"role": "user", "content": "q" * (3 * i + 1)}], "yes " * (i + 1), "no", None) for i in range(5)
]


def states(tiny_model_dir, pairs, tokens=(400, 1000)):
    backbone = Backbone(str(tiny_model_dir), train="head")
    with torch.no_grad():
        return judging.comparison_states(load_reward_model(backbone).eval(), load_tokenizer(backbone), pairs, tokens)


def test_they_are_the_difference_of_what_plain_transformers_has_behind_the_question(tiny_model_dir, tiny_tokenizer):
    rows = encode_comparisons(tiny_tokenizer, PAIRS, 400)
    body = AutoModel.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        last = [body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in rows]
    wanted = torch.stack(last[:5]) - torch.stack(last[5:])  # five sixths of two layers are two
    assert torch.allclose(states(tiny_model_dir, PAIRS), wanted, atol=1e-5)


def test_batches_change_nothing_and_a_swap_turns_the_sign(tiny_model_dir):
    found = states(tiny_model_dir, PAIRS)
    assert torch.allclose(found, states(tiny_model_dir, PAIRS, (400, 1)), atol=1e-5)
    swapped = [PreferencePair(p.pair_id, p.prompt, p.response_b, p.response_a, None) for p in PAIRS]
    assert torch.allclose(found, -states(tiny_model_dir, swapped), atol=1e-5)


def test_states_that_are_not_finite_are_refused(tiny_model_dir):
    backbone = Backbone(str(tiny_model_dir), train="head")
    model = load_reward_model(backbone).eval()
    with torch.no_grad():
        model.body.norm.weight.fill_(torch.nan)
        with pytest.raises(UserError, match="pairwise_judge: got NaN"):
            judging.comparison_states(model, load_tokenizer(backbone), PAIRS, (400, 1000))


@pytest.mark.parametrize("train", ["head", *slow("lora", "full")])
def test_a_run_compares_every_pair_once_and_the_next_one_finds_it(tiny_model_dir, pairs_file, monkeypatch, train):
    model = module(tiny_model_dir, train=train, pairwise_judge=True)
    trainer("run", evolution(max_rounds=0)).fit(model, data(pairs_file))
    judge = model.judge
    assert judge is not None and judge.states.shape == (80, 16)
    assert bool((judge.pair_id[1:] > judge.pair_id[:-1]).all())
    pairs = model.trainer.datamodule.data.store.read_texts(range(80))
    order = sorted(pairs, key=lambda pair: pair.pair_id)
    assert torch.allclose(judge.states, states(tiny_model_dir, order, (128, 1000)), atol=1e-5)

    def computes(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(judging, "comparison_states", computes)
    again = module(tiny_model_dir, train=train, pairwise_judge=True)
    trainer("other", evolution(max_rounds=0)).fit(again, data(pairs_file))
    assert torch.equal(again.judge.states, judge.states)
    [file] = model.trainer.datamodule.feature_files("x")[0].parent.glob("features-comparisons-*.bin")
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(AssertionError, match="computed again"):
        trainer("third", evolution(max_rounds=0)).fit(
            module(tiny_model_dir, train=train, pairwise_judge=True), data(pairs_file)
        )


def test_an_arrival_without_a_new_pair_has_nothing_to_compare():
    store = SimpleNamespace(parts=[3, 3], num_tokens=np.zeros((3, 2), dtype=np.int64))
    found = judging._computed(None, None, None, SimpleNamespace(data=SimpleNamespace(store=store)), 0, 64)
    assert list(found) == []
