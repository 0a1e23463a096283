"""Every format of `docs/data.md`, each to the same canonical pair."""

import hashlib
import json

import pytest

from ser_lightning.data.formats import (
    canonical_pair,
    content_hash,
    earlier_prompts,
    parse_candidates,
    parse_row,
    prompt_hash,
)
from ser_lightning.errors import UserError

PROMPT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Sum?"},
]
TEXT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sum?\n\nAssistant:"


def better(pair) -> str:
    return pair.response_a if pair.label == 1 else pair.response_b


def turns(*contents: str) -> list[dict]:
    return PROMPT + [{"role": "assistant", "content": content} for content in contents]


ROWS = {
    "turns and texts": {"prompt": PROMPT, "chosen": "4", "rejected": "5"},
    "transcript and texts": {"prompt": TEXT, "chosen": "4", "rejected": "5"},
    "transcript up to the last question": {"prompt": TEXT[:-12], "chosen": "4", "rejected": "5"},
    "turns and lists of the response": {
        "prompt": PROMPT,
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
    "implicit prompt": {"chosen": turns("4"), "rejected": turns("5")},
    "whole dialogues beside a text prompt": {"prompt": "Sum?", "chosen": turns("4"), "rejected": turns("5")},
    "raw transcripts": {"chosen": f"{TEXT} 4", "rejected": f"{TEXT} 5"},
    "label 1": {"prompt": PROMPT, "response_a": "4", "response_b": "5", "label": 1},
    "label a": {"prompt": PROMPT, "response_a": "4", "response_b": "5", "label": "a"},
    "label b": {"prompt": PROMPT, "response_a": "5", "response_b": "4", "label": "b"},
    "label 0 as text": {"prompt": PROMPT, "response_a": "5", "response_b": "4", "label": "0"},
    "label as a float, as pandas writes it": {"prompt": PROMPT, "response_a": "4", "response_b": "5", "label": 1.0},
    "label as a bool": {"prompt": PROMPT, "response_a": "5", "response_b": "4", "label": False},
    "columns of both kinds, one filled": {
        "prompt": PROMPT, "chosen": "4", "rejected": "5", "response_a": None, "response_b": None, "label": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_format_gives_the_same_pair(row):
    pair = parse_row(row, {}, "here")
    assert pair.prompt == PROMPT
    assert {pair.response_a, pair.response_b} == {"4", "5"}
    assert better(pair) == "4"
    assert pair.pair_id == canonical_pair(PROMPT, "5", "4", None).pair_id


@pytest.mark.parametrize("label", [None, "", "null", float("nan"), "absent"])
def test_rows_without_a_label_are_unlabelled(label):
    row = {"prompt": "Hi", "response_a": "4", "response_b": "5", "label": label}
    if label == "absent":
        del row["label"]
    assert parse_row(row, {}, "here").label is None


@pytest.mark.parametrize("label", [0.5, "0.5", "tie", "Tie"])
def test_a_tie_is_a_tie_from_either_side(label):
    row = {"prompt": "Hi", "response_a": "4", "response_b": "5", "label": label}
    assert parse_row(row, {}, "here") == parse_row({**row, "response_a": "5", "response_b": "4"}, {}, "here")
    assert parse_row(row, {}, "here").label == 0.5


def test_columns_are_mapped_and_the_projects_own_names_still_count():
    row = {"question": "Hi", "response_j": "4", "response_k": "5", "row": 17}
    columns = {"prompt": "question", "chosen": "response_j", "rejected": "response_k", "id": "row"}
    pair = parse_row(row, columns, "here")
    assert (pair.prompt[0]["content"], better(pair), pair.source_id) == ("Hi", "4", "17")
    other_file = {"prompt": "Hi", "chosen": "4", "rejected": "5", "id": "x"}
    assert parse_row(other_file, columns, "here").pair_id == pair.pair_id


def test_order_and_id_come_from_the_content_alone():
    pairs = [canonical_pair(PROMPT, str(i), str(i + 1000), 1) for i in range(400)]
    swapped = [canonical_pair(PROMPT, str(i + 1000), str(i), 0) for i in range(400)]
    assert pairs == swapped
    assert len({pair.pair_id for pair in pairs}) == 400
    assert all(0 <= pair.pair_id < 2**63 for pair in pairs)
    assert 160 < sum(pair.label for pair in pairs) < 240  # the chosen one is a half of the time


def test_a_text_that_is_given_to_many_prompts_is_a_half_of_the_time():
    pairs = [canonical_pair([{"role": "user", "content": str(i)}], "I cannot help.", "Sure!", 0) for i in range(400)]
    assert 160 < sum(pair.response_a == "Sure!" for pair in pairs) < 240


def test_ids_are_the_same_on_every_machine_and_in_every_release():
    digest = hashlib.blake2b(b'["a", "b"]', digest_size=8).hexdigest()
    assert content_hash("a", "b") == int(digest, 16) // 2 == 7812291399151582853
    assert content_hash("a", "b") != content_hash("ab") != content_hash("", "ab")


def test_prompts_that_differ_in_case_or_white_space_are_one():
    one, other = ([{"role": "user", "content": text}] for text in ("What  is it?\n", "what is IT?"))
    assert prompt_hash(one) == prompt_hash(other) != prompt_hash([{"role": "system", "content": "what is it?"}])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "chosen": " ", "rejected": "5"}, "empty"),
        ({"prompt": "Hi", "chosen": "4", "rejected": None}, "empty"),
        ({"prompt": "", "chosen": "4", "rejected": "5"}, "empty"),
        ({"prompt": "Hi", "chosen": [], "rejected": [{"role": "assistant", "content": "5"}]}, "empty"),
        ({"prompt": "Hi", "chosen": "4\n", "rejected": " 4"}, "identical"),
        ({"chosen": f"{TEXT} 4", "rejected": f"\n\nHuman: Ho{TEXT} 5"}, "dialogues_part"),
        ({"chosen": turns("4"), "rejected": turns("4", "5")}, "dialogues_part"),
    ],
)
def test_rows_that_are_no_pair_say_why(row, reason):
    assert parse_row(row, {}, "here") == reason


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "good": "4", "bad": "5"}, "got the columns prompt, good, bad; needs chosen and rejected"),
        ({"chosen": "4", "rejected": "5"}, "f, line 3: got neither a prompt column nor a transcript"),
        ({"prompt": "Hi", "response_a": "4", "response_b": "5", "label": "c"}, "got the label 'c'; use 1 or 'a'"),
        ({"prompt": "Hi", "response_a": "4", "response_b": "5", "label": -1}, "f, line 3: got the label -1; use 1"),
        ({"prompt": 5, "chosen": "4", "rejected": "5"}, r"f, line 3: got a int \('5'\) in prompt; use text"),
        (
            {"prompt": [{"text": "Hi"}], "chosen": "4", "rejected": "5"},
            "f, line 3: got text in turn 1 of prompt, which nothing reads",
        ),
        (
            {"prompt": "Hi", "chosen": "4", "rejected": turns("5")},
            "f, line 3: got a text in chosen beside a list of turns",
        ),
        ({"prompt": "Hi", "chosen": "4", "rejected": "5", "response_a": "4", "response_b": "5"}, "all filled"),
    ],
)
def test_rows_in_no_format_are_errors(row, message):
    with pytest.raises(UserError, match=message):
        parse_row(row, {}, "f, line 3")


def test_empty_and_doubled_turns_of_a_transcript_are_joined():
    text = "\n\nHuman: one\n\nHuman: two\n\nAssistant:\n\nHuman: three\n\nAssistant: four\n\nHuman: five\n\nAssistant:"
    pair = parse_row({"prompt": text, "chosen": "4", "rejected": "5"}, {}, "here")
    assert [(turn["role"], turn["content"]) for turn in pair.prompt] == [
        ("user", "one\n\ntwo\n\nthree"),
        ("assistant", "four"),
        ("user", "five"),
    ]


def test_half_a_surrogate_pair_does_not_stop_the_run():
    row = json.loads('{"prompt": "Hi \\ud83d", "chosen": "4", "rejected": "5"}')
    assert parse_row(row, {}, "here").prompt[0]["content"] == "Hi ?"


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        ({"prompt": "Sum?", "chosen": "4", "rejected": "5"}, ["4"], ["5"]),
        ({"prompt": "Sum?", "chosen": ["4", "four"], "rejected": ["5", "", "4"]}, ["4", "four"], ["5", "", "4"]),
        ({"q": "Sum?", "chosen": ["4"], "no": "\ud800"}, ["4"], ["?"]),
    ],
)
def test_rows_of_several_responses(row, chosen, rejected):
    columns = {"prompt": "q", "rejected": "no"}
    assert parse_candidates(row, columns, "here") == ([{"role": "user", "content": "Sum?"}], chosen, rejected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "here: got no chosen, but the columns prompt, chosen, rejected; give a text"),
        ({"rejected": []}, "here: got no rejected, but the columns"),
        ({"chosen": turns("4")}, "here: got a dict in chosen; give a text, or a list of texts"),
        ({"rejected": ["4", 5]}, "here: got a int in rejected; give a text, or a list of texts"),
        ({"prompt": "\n"}, "here: got an empty prompt; fill it, or remove the row"),
        ({"prompt": 4}, "here: got a int"),
    ],
)
def test_rows_that_are_not_of_several_responses(change, message):
    with pytest.raises(UserError, match=message):
        parse_candidates({"prompt": "Sum?", "chosen": "4", "rejected": "5", **change}, {}, "here")


def test_lists_of_texts_are_no_pair():
    with pytest.raises(UserError, match="here: got a list of texts, .* the command `bench` alone, in chosen"):
        parse_row({"prompt": "Sum?", "chosen": ["4"], "rejected": ["5", "6"]}, {}, "here")


def test_earlier_prompts_are_those_that_end_with_the_user():
    roles = ["system", "user", "assistant", "user", "user", "assistant", "user"]
    prompt = [{"role": role, "content": f"Turn  {i}, \u00e4"} for i, role in enumerate(roles)]
    assert earlier_prompts(prompt) == [prompt_hash(prompt[:end]) for end in (2, 4, 5)]
    assert earlier_prompts(prompt[1:2]) == []
