import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from ser_lightning.data.layouts import PADDED, Layout
from ser_lightning.models.backbone import Backbone, LoraSettings, load_tokenizer
from ser_lightning.models.policy import Policy, load_policy
from ser_lightning.rl.experience import in_table, measure
from ser_lightning.rl.rollout import (
    Generator,
    Sampling,
    batch_of,
    draw,
    response_logps,
    response_texts,
    response_values,
    uniform_numbers,
)

PROMPTS = [[5, 9, 17], [33, 8, 44, 12, 90, 7], [61], [70, 71, 72, 73]]
ROOM = 12


@pytest.fixture
def policy(tiny_model_dir):
    """Sharpened, so that the tiny model's near-uniform distribution ends responses now and then."""
    made = load_policy(
        Backbone(str(tiny_model_dir), train="lora", lora=LoraSettings(r=4, dropout=0.0)), has_critic=True
    )
    with torch.no_grad():
        made.lm.lm_head.weight.mul_(30)
    return made.eval()


def generator(stop=(40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50), tokens_per_batch=10_000, **kwargs):
    return Generator(Sampling(ROOM, **kwargs), list(stop), 0, tokens_per_batch)


def naive_response(lm, prompt, numbers, stop, temperature):
    """One row alone, the whole sequence through plain transformers for every token."""
    ids = list(prompt)
    for number in numbers.tolist():
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature
        token, cumulated = -1, 0.0
        while cumulated <= number:
            token += 1
            cumulated += float(logits.softmax(-1)[token])
        ids.append(token)
        if token in stop:
            return ids[len(prompt) :], True
    return ids[len(prompt) :], False


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_responses_are_those_of_a_naive_loop_over_plain_transformers(policy, tiny_model_dir, temperature):
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        lm.lm_head.weight.mul_(30)
    made, numbers = generator(temperature=temperature), uniform_numbers((3,), len(PROMPTS), ROOM)
    rollout = made.sample(policy, "policy", PROMPTS, numbers)
    ends = []
    for row, prompt in enumerate(PROMPTS):
        ids, has_ended = naive_response(lm, prompt, numbers[row], made.stop_ids, temperature)
        assert rollout.response_ids[row][rollout.response_mask[row]].tolist() == ids
        assert bool(rollout.has_ended[row]) == has_ended
        ends.append(has_ended)
    assert any(ends) and not all(ends)  # both kinds of rows were tested


def test_batches_and_company_change_nothing(policy):
    numbers = uniform_numbers((3,), len(PROMPTS), ROOM)
    whole = generator().sample(policy, "policy", PROMPTS, numbers)
    cut = generator(tokens_per_batch=20).sample(policy, "policy", PROMPTS, numbers)
    assert torch.equal(whole.input_ids, cut.input_ids) and torch.equal(whole.response_mask, cut.response_mask)
    for row, prompt in enumerate(PROMPTS):
        alone = generator().sample(policy, "policy", [prompt], numbers[row : row + 1])
        assert torch.equal(alone.response_ids[0], whole.response_ids[row][whole.response_mask[row]])


def test_a_prompt_that_is_asked_several_times_is_read_once_and_answered_as_ever(policy, monkeypatch):
    asked = [PROMPTS[i] for i in (1, 0, 1, 2, 1, 0)]
    numbers = uniform_numbers((5,), len(asked), ROOM)
    alone = [generator().sample(policy, "policy", [p], numbers[i : i + 1]) for i, p in enumerate(asked)]
    read = []
    plain = Policy.next_hidden
    monkeypatch.setattr(Policy, "next_hidden", lambda *args: read.append(args[2].shape) or plain(*args))
    together = generator().sample(policy, "policy", asked, numbers)
    assert read[0][0] == 3
    for row, one in enumerate(alone):
        assert torch.equal(together.response_ids[row][together.response_mask[row]], one.response_ids[0])


def test_a_rollout_is_padded_left_and_right_and_masked(policy):
    rollout = generator().sample(policy, "policy", PROMPTS, uniform_numbers((3,), len(PROMPTS), ROOM))
    assert rollout.num_prompt_columns == 6
    for row, prompt in enumerate(PROMPTS):
        num_pads, length = 6 - len(prompt), int(rollout.num_response_tokens[row])
        assert rollout.input_ids[row, :6].tolist() == [0] * num_pads + prompt
        expected = [0] * num_pads + [1] * (len(prompt) + length)
        assert rollout.attention_mask[row].tolist() == expected + [0] * (rollout.input_ids.shape[1] - len(expected))
        assert rollout.response_mask[row].tolist() == [i < length for i in range(rollout.response_mask.shape[1])]


def test_the_end_is_part_of_a_response_and_nothing_comes_behind_it(policy):
    made = generator()
    rollout = made.sample(policy, "policy", PROMPTS * 4, uniform_numbers((5,), 16, ROOM))
    assert rollout.has_ended.any() and not rollout.has_ended.all()
    for row in range(16):
        ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        assert not set(ids[:-1]) & set(made.stop_ids)
        assert (ids[-1] in made.stop_ids) == bool(rollout.has_ended[row])
        assert rollout.has_ended[row] or len(ids) == ROOM


def test_texts_leave_out_the_token_that_ended_them_and_no_other(policy, tiny_model_dir):
    tokenizer = load_tokenizer(Backbone(str(tiny_model_dir)))
    rollout = generator().sample(policy, "policy", PROMPTS, uniform_numbers((3,), len(PROMPTS), ROOM))
    for row, text in enumerate(response_texts(tokenizer, rollout)):
        ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        assert text == tokenizer.decode(ids[:-1] if rollout.has_ended[row] else ids, skip_special_tokens=True).strip()


def test_draw_follows_the_distribution():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    numbers = (torch.arange(4000) + 0.5) / 4000
    counts = torch.bincount(draw(logits.expand(4000, 4), numbers, 0.5), minlength=4)
    expected = (logits.double() / 0.5).softmax(-1) * 4000
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.99


def test_draw_at_the_edges():
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    assert draw(logits, torch.tensor([0.0]), 1.0).item() == 0
    assert (
        draw(logits, torch.tensor([0.5]), 1.0).item() == 2
    )  # the number belongs to the next token, not a forbidden one
    assert draw(logits, torch.tensor([1 - 2**-24]), 1.0).item() == 2


def test_numbers_depend_on_their_seed_alone():
    assert torch.equal(uniform_numbers((1, "a", 2), 3, 4), uniform_numbers((1, "a", 2), 3, 4))
    assert not torch.equal(uniform_numbers((1, "a", 2), 3, 4), uniform_numbers((1, "a", 3), 3, 4))


@pytest.mark.parametrize("layout", [PADDED, Layout(shares_prompts=True)])
def test_log_probabilities_are_those_of_each_row_alone_in_plain_transformers(policy, tiny_model_dir, layout):
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        lm.lm_head.weight.mul_(30)
    rollout = generator().sample(policy, "policy", PROMPTS, uniform_numbers((3,), len(PROMPTS), ROOM))
    batch = batch_of(rollout, np.arange(len(PROMPTS)), layout)
    with torch.no_grad():
        logp, entropy = (in_table([(batch.table_places, x)], rollout.response_mask)
                         for x in response_logps(policy, "policy", batch, 0.7))  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        logits = lm(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
        plain = torch.distributions.Categorical(logits=logits)
        assert torch.allclose(logp[row, : len(ids)], plain.log_prob(torch.tensor(ids)), atol=1e-4)
        assert torch.allclose(entropy[row, : len(ids)], plain.entropy(), atol=1e-4)
        assert not logp[row, len(ids) :].any() and not entropy[row, len(ids) :].any()


def test_some_rows_of_a_rollout_are_the_same_rows(policy):
    with torch.no_grad():
        policy.value_head.weight.normal_()
    rollout = generator().sample(policy, "policy", PROMPTS, uniform_numbers((3,), len(PROMPTS), ROOM))
    logp, _, values = measure(policy, rollout, 1.0, 10_000, has_critic=True)
    assert logp[rollout.response_mask].all() and values[rollout.response_mask].all()
    for rows in ([2], [3, 0]):
        part = batch_of(rollout, np.array(rows), PADDED)
        longest = max(len(PROMPTS[row]) + int(rollout.num_response_tokens[row]) for row in rows)
        assert part.inputs.input_ids.shape == (len(rows), longest)
        with torch.no_grad():
            own, own_values = response_logps(policy, "policy", part, 1.0)[0], response_values(policy, part)
        assert torch.allclose(own, logp.flatten()[part.table_places], atol=1e-5)
        assert torch.allclose(own_values, values.flatten()[part.table_places], atol=1e-5)
