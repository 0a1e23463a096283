"""The function for TRL gives what plain transformers gives; `tests/test_recipes.py` trains with it."""

import pytest

from ser_lightning import Scorer, UserError, reward_function
from tests.helpers import plain_reward, save_reward_model

DIALOGUE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture
def model(tiny_tokenizer, tmp_path):
    save_reward_model(tmp_path / "model", tiny_tokenizer, 60)
    return tmp_path / "model"


@pytest.fixture
def reward(model):
    return reward_function(Scorer.load(model, device="cpu"))


def answer(text):
    return [{"role": "assistant", "content": text}]


def test_texts_and_turns_get_the_rewards_of_plain_transformers(model, reward):
    expected = [plain_reward(model, prompt, text)[0] for prompt, text in (("Hi", "a"), ("Why?", "So."))]
    assert reward(["Hi", "Why?"], ["a", "So."]) == pytest.approx(expected, abs=1e-5)
    turns = [[{"role": "user", "content": text}] for text in ("Hi", "Why?")]
    found = reward(
        prompts=turns, completions=[answer("a"), answer("So.")], completion_ids=[[1], [2]], trainer_state=None
    )
    assert found == pytest.approx(expected, abs=1e-5) and all(type(one) is float for one in found)
    assert reward([], []) == []


def test_a_completion_of_several_turns_is_judged_by_its_last_one(model, reward):
    completion = [*DIALOGUE[1:], *answer("So.")]
    assert reward([DIALOGUE[:1]], [completion]) == pytest.approx([plain_reward(model, DIALOGUE, "So.")[0]], abs=1e-5)


def test_a_completion_that_is_too_long_is_judged_by_its_front(reward):
    with pytest.warns(UserWarning, match="1 of 2 responses are longer than its max_length of 60 tokens"):
        found = reward(["Hi", "Hi"], ["a", "b" * 500])
    assert found[1] == pytest.approx(reward(["Hi"], ["b" * 400])[0], abs=1e-5) != found[0]


@pytest.mark.parametrize(("prompt", "completion"), [("Hi", answer("a")), (DIALOGUE, [])])
def test_a_completion_that_is_of_another_kind_is_an_error(reward, prompt, completion):
    with pytest.raises(UserError, match=r"^completion: got \d turns for a prompt of type (str|list); give both as"):
        reward([prompt], [completion])
