"""The synthetic world: determinism, the gold reward on hand-made texts, label noise, baselines, the shipped model."""

import math
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ser_lightning.synthetic.text import (
    CLOSERS,
    KINDS,
    OPENERS,
    Fact,
    read_prompt,
    read_statement,
    suits,
    world_facts,
)
from ser_lightning.synthetic.world import (
    GOLD_FLOOR,
    LABEL_TEMPERATURE,
    TEXTS_PER_WRITER,
    WORLD_LM_PATH,
    generate_pairs,
    generate_texts,
    gold_reward,
)

NOTE = "Tell me that Emma brings a flute and about Emma coming Tuesday."
NOTE_ANSWER = "Emma will bring a flute. Expect Emma Tuesday."


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others():
    assert list(generate_pairs(20, seed=3)) == list(generate_pairs(20, seed=3))
    assert list(generate_pairs(20, seed=3)) == list(generate_pairs(50, seed=3))[:20]
    assert list(generate_pairs(20, seed=3)) != list(generate_pairs(20, seed=4))


def test_texts_are_deterministic_and_are_not_the_pairs():
    texts = list(generate_texts(200, seed=0))
    assert texts == list(generate_texts(200, seed=0))
    responses = {response for pair in generate_pairs(100, seed=0) for response in (pair.response_a, pair.response_b)}
    assert sum(response in responses for _, response in texts) < 20


def test_turns_of_one_writer_are_alike_in_quality():
    rewards = [gold_reward(*text) for text in generate_texts(4000, seed=1)]
    means = [sum(rewards[i : i + TEXTS_PER_WRITER]) / TEXTS_PER_WRITER for i in range(0, 4000, TEXTS_PER_WRITER)]
    mixed = [sum(rewards[i::1000]) / TEXTS_PER_WRITER for i in range(1000)]
    spread = torch.tensor(means).var() / torch.tensor(mixed).var()
    assert spread > 1.5


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Emma will bring a flute. Expect Emma Tuesday.", 3.0),
        ("Sure. Emma arrives Tuesday. Also, you get a flute from Emma. Shame on you.", 2.0 - 0.7),  # unsuited, rude
        ("Let me see. Emma arrives Tuesday. Also, you get a flute from Emma. Enjoy.", 3.0 + 2 * 0.7),  # both suit
        ("Let me see. Let me see. Emma will bring a flute. Expect Emma Tuesday.", 3.0 + 0.7 - 0.7),  # a repeated one
        ("Emma will bring a flute.", 1.5),  # incomplete
        ("Emma will bring a drum. Expect Emma Tuesday.", 0.5),  # wrong
        ("Emma will bring a flute. Expect Emma Tuesday. Expect Emma Friday.", 2.0),  # contradiction
        ("Felix will bring a flute. Expect Felix Tuesday.", -2.0),  # off topic
        ("Emma will bring a flute. Expect Emma Tuesday. Emma arrives Tuesday.", 2.3),  # repetitive
        ("Emma will bring a flute. Time flies. Expect Emma Tuesday.", 2.3),  # rambling
        ("Emma will bring a flute. Expect Emma Tuesday. Get lost.", 2.0),  # rude
        ("Emma will bring a flute. Expect Emma", 0.1),  # breaks off: one fact, one rambling, unfinished
        ("", -0.7),
        (NOTE, -0.7),  # echo of the prompt
        ("Emma will bring a flute. " * 30, GOLD_FLOOR),
        ("Sure. " * 30, GOLD_FLOOR),
        ("Of course. Let me see. Yours truly. Enjoy.", 0.0),
        ("qwx \x00 ☃", -1.4),
    ],
)
def test_gold_reward_of_hand_made_responses(response, expected):
    assert gold_reward(NOTE, response) == pytest.approx(expected)


def test_gold_reward_knows_the_facts_of_the_world():
    place, other = world_facts()["animal", "otter", "home"], world_facts()["animal", "otter", "food"]
    prompt = "Say where the otter lives."
    assert gold_reward(prompt, f"The otter lives in the {place}.") == pytest.approx(3.0)
    assert gold_reward(prompt, f"The otter lives in the {place}. Also, the otter eats {other}.") == pytest.approx(3.5)
    elsewhere = next(value for value in KINDS["animal"].attributes["home"].values if value != place)
    assert gold_reward(prompt, f"The otter lives in the {elsewhere}.") == pytest.approx(-1.0)


def test_gold_reward_works_on_any_prompt():
    assert gold_reward("", "") == pytest.approx(-0.7)
    assert gold_reward("What is the capital of France?", "Paris.") == pytest.approx(-0.7)


def test_every_generated_prompt_and_statement_reads_back():
    for prompt, _ in generate_texts(500, seed=2):
        assert 1 <= len(read_prompt(prompt)) <= 2
    assert read_statement("By the way, the fair costs two coins.") == Fact("event", "fair", "fee", "two")
    assert read_statement("The fair costs many coins.") is None


def test_labels_follow_the_bradley_terry_probability():
    pairs = list(generate_pairs(6000, seed=5))
    for low, high in ((-2.0, -0.5), (-0.5, 0.5), (0.5, 2.0)):
        inside = [pair for pair in pairs if low < pair.gold_a - pair.gold_b < high]
        chances = [1 / (1 + math.exp(-(pair.gold_a - pair.gold_b) / LABEL_TEMPERATURE)) for pair in inside]
        deviation = math.sqrt(sum(p * (1 - p) for p in chances))
        assert len(inside) > 100
        assert abs(sum(pair.label for pair in inside) - sum(chances)) < 4 * deviation


def test_no_courtesy_is_good_in_itself_and_unlabelled_text_does_not_show_which_suit():
    for phrases, num_kinds in ((OPENERS, 2), (CLOSERS, 3)):
        assert len({tuple(suits(phrase, kind) for kind in KINDS) for phrase in phrases}) == len(phrases) == 10
        assert all(sum(suits(phrase, kind) for kind in KINDS) == num_kinds for phrase in phrases)
        assert all(sum(suits(phrase, kind) for phrase in phrases) == 2 * num_kinds for kind in KINDS)

    def suited_share(texts):
        found = [
            suits(phrase, read_prompt(prompt)[0].kind)
            for prompt, response in texts
            for phrase in OPENERS
            if response.startswith(phrase)
        ]
        return sum(found) / len(found)

    better = [(p.prompt, p.response_a if p.gold_a > p.gold_b else p.response_b) for p in generate_pairs(2000, seed=7)]
    assert suited_share(better) > 0.75
    assert suited_share(generate_texts(4000, seed=7)) == pytest.approx(0.4, abs=0.03)


def test_gold_of_a_pair_is_the_gold_reward_of_its_texts():
    for pair in generate_pairs(50, seed=6):
        assert pair.gold_a == gold_reward(pair.prompt, pair.response_a)
        assert pair.gold_b == gold_reward(pair.prompt, pair.response_b)


@pytest.mark.parametrize("seed", [0, 1])
def test_length_tells_next_to_nothing_and_gold_nearly_all(seed):
    pairs = list(generate_pairs(3000, seed=seed))
    longer = [(len(pair.response_a) > len(pair.response_b)) == pair.label for pair in pairs]
    better = [(pair.gold_a > pair.gold_b) == pair.label for pair in pairs]
    assert 0.45 < sum(longer) / 3000 < 0.55
    assert 0.95 < sum(better) / 3000 < 0.98
    assert len({pair.prompt for pair in pairs}) > 2000


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WORLD_LM_PATH)


@pytest.mark.parametrize("text", ["The fox lives in the pond.", "  two  spaces\n\ttab", "Zürich ☃ 漢字 \U0001f600", ""])
def test_tokenizer_round_trip_of_any_string(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None


def test_chat_template_lays_out_turns(tokenizer):
    user, assistant = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Sure."}
    text = tokenizer.apply_chat_template([user, assistant, user], tokenize=False, add_generation_prompt=True)
    assert text == "<bos><user>Hi.<assistant>Sure.<eos><user>Hi.<assistant>"
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    with pytest.raises(Exception, match="roles user and assistant, got system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_shipped_model_is_small_loads_and_knows_the_world(tokenizer):
    assert sum(file.stat().st_size for file in WORLD_LM_PATH.iterdir()) <= 8 * 2**20
    model = AutoModelForCausalLM.from_pretrained(WORLD_LM_PATH, dtype=torch.float32).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.max_position_embeddings == 256
    losses = []
    for prompt, response in islice(generate_texts(10**6, seed=11), 40):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert sum(losses) / len(losses) < 1.5


def test_shipped_model_loads_as_a_reward_model():
    model = AutoModelForSequenceClassification.from_pretrained(WORLD_LM_PATH, num_labels=1)
    assert model(input_ids=torch.tensor([[1, 3, 7, 4, 9, 2]])).logits.shape == (1, 1)
