"""Turns are kept or refused by name: what a file says never vanishes on the way to the prompt."""

import json

import pytest

from ser_lightning.data.formats import parse_candidates, parse_prompt, parse_row
from ser_lightning.data.turns import written_turns
from ser_lightning.errors import UserError


def user(text: str, **extra) -> dict:
    return {"role": "user", "content": text, **extra}


def assistant(text, **extra) -> dict:
    return {"role": "assistant", "content": text, **extra}


SYSTEM = {"role": "system", "content": "Be brief."}


def read(row: dict):
    """(prompt as role and content, better response, worse one), or why the row is no pair."""
    pair = parse_row(row, {}, "f, line 1")
    if isinstance(pair, str):
        return pair
    both = [pair.response_a, pair.response_b]
    better, worse = both if pair.label == 1 else both[::-1]
    return [(turn["role"], turn["content"]) for turn in pair.prompt], better, worse


TEA = [("user", "Tea?")], "Yes.", "No."
SYSTEM_TEA = [("system", "Be brief."), ("user", "Tea?")], "Yes.", "No."
LONG = [("user", "Hi"), ("assistant", "Hello"), ("user", "Tea?")], "Yes.", "No."
HELLO = [user("Hi"), assistant("Hello"), user("Tea?")]
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tea?\n\nAssistant:"

ROWS = {
    "a prompt of several turns before turns of several": (
        {"prompt": HELLO[:1], "chosen": [*HELLO[1:], assistant("Yes.")], "rejected": [*HELLO[1:], assistant("No.")]},
        LONG,
    ),
    "a system turn before the user's": (
        {"prompt": [SYSTEM], "chosen": [user("Tea?"), assistant("Yes.")], "rejected": [user("Tea?"), assistant("No.")]},
        SYSTEM_TEA,
    ),
    "the end of the prompt again": (
        {
            "prompt": [SYSTEM, user("Tea?")],
            "chosen": [user("Tea?"), assistant("Yes.")],
            "rejected": [user("Tea? "), assistant("No.")],
        },
        SYSTEM_TEA,
    ),
    "the whole prompt again, and a system turn before it": (
        {
            "prompt": "Tea?",
            "chosen": [SYSTEM, user("Tea?"), assistant("Yes.")],
            "rejected": [SYSTEM, user("Tea?"), assistant("No.")],
        },
        SYSTEM_TEA,
    ),
    "turns as JSON text": (
        {
            "prompt": json.dumps([SYSTEM, user("Tea?")]),
            "chosen": json.dumps([assistant("Yes.")]),
            "rejected": json.dumps([assistant("No.")]),
        },
        SYSTEM_TEA,
    ),
    "turns as Python text": (
        {"prompt": str([user("Tea?")]), "chosen": str([assistant("Yes.")]), "rejected": str([assistant("No.")])},
        TEA,
    ),
    "keys that hold nothing": (
        {
            "prompt": [user("Tea?", tool_calls=None, name="")],
            "chosen": [assistant("Yes.", tool_calls=[])],
            "rejected": [assistant("No.", reasoning_content=None)],
        },
        TEA,
    ),
    "whole transcripts beside their prompt": (
        {"prompt": "Tea?", "chosen": "\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": "Human: Tea?\n\nAssistant: No."},
        TEA,
    ),
    "whole transcripts beside a prompt of several turns": (
        {"prompt": TRANSCRIPT, "chosen": f"{TRANSCRIPT} Yes.", "rejected": f"{TRANSCRIPT} No."},
        LONG,
    ),
    "the speaker's name before each response": (
        {"prompt": "Human: Tea?", "chosen": "Assistant: Yes.", "rejected": "\n\nAssistant: No."},
        TEA,
    ),
    "a preamble": (
        {"prompt": "Be brief.\n\nHuman: Tea?\n\nAssistant:", "chosen": "Yes.", "rejected": "No."},
        SYSTEM_TEA,
    ),
    "a preamble of whole transcripts": (
        {
            "chosen": "Be brief.\n\nHuman: Tea?\n\nAssistant: Yes.",
            "rejected": "Be brief.\n\nHuman: Tea?\n\nAssistant: No.",
        },
        SYSTEM_TEA,
    ),
    "Windows line ends": (
        {
            "chosen": f"{TRANSCRIPT} Yes.".replace("\n", "\r\n"),
            "rejected": f"{TRANSCRIPT} No.".replace("\n", "\r\n"),
        },
        LONG,
    ),
    "Windows line ends in the prompt": (
        {"prompt": TRANSCRIPT.replace("\n", "\r\n"), "chosen": "Yes.", "rejected": "No."},
        LONG,
    ),
    "a transcript that is the text of one turn": (
        {
            "prompt": "Human: Tea?\n\nAssistant: No.\n\nIs that polite?",
            "chosen": [user("Human: Tea?\n\nAssistant: No.\n\nIs that polite?"), assistant("Yes.")],
            "rejected": [user("Human: Tea?\n\nAssistant: No.\n\nIs that polite?"), assistant("No.")],
        },
        ([("user", "Human: Tea?\n\nAssistant: No.\n\nIs that polite?")], "Yes.", "No."),
    ),
    "an open transcript that is the end of one turn": (
        {
            "prompt": "Go on.\n\nHuman: Tea?\n\nAssistant:",
            "chosen": [SYSTEM, user("Go on.\n\nHuman: Tea?\n\nAssistant:"), assistant("Yes.")],
            "rejected": [SYSTEM, user("Go on.\n\nHuman: Tea?\n\nAssistant:"), assistant("No.")],
        },
        ([("system", "Be brief."), ("user", "Go on.\n\nHuman: Tea?\n\nAssistant:")], "Yes.", "No."),
    ),
    "one turn written as a table": (
        {
            "prompt": '{"role": "user", "content": "Tea?"}',
            "chosen": '{"role": "assistant", "content": "Yes."}',
            "rejected": "{'role': 'assistant', 'content': 'No.'}",
        },
        TEA,
    ),
    "responses that are JSON": (
        {"prompt": "Tea?", "chosen": '{"from": "me", "to": "you", "value": 3}', "rejected": '{"role": "admin"}'},
        ([("user", "Tea?")], '{"from": "me", "to": "you", "value": 3}', '{"role": "admin"}'),
    ),
    "responses that are code": (
        {"prompt": "Tea?", "chosen": '{ say({"role": "user"}) }', "rejected": '[{"name": "x", "role": "y"}] is it.'},
        ([("user", "Tea?")], '{ say({"role": "user"}) }', '[{"name": "x", "role": "y"}] is it.'),
    ),
    "a prompt that begins with JSON": (
        {"prompt": '{"content": "x"}: what is that?', "chosen": '{"role": 1, "role": 2}', "rejected": "No."},
        ([("user", '{"content": "x"}: what is that?')], '{"role": 1, "role": 2}', "No."),
    ),
    "one line end between speakers": (
        {"prompt": "Human: Hi\nAssistant: Hello\nHuman: Tea?\nAssistant:", "chosen": "Yes.", "rejected": "No."},
        LONG,
    ),
    "an empty prompt column beside transcripts": (
        {"prompt": "", "chosen": f"{TRANSCRIPT} Yes.", "rejected": f"{TRANSCRIPT} No."},
        LONG,
    ),
    "a response that begins with Human:": (
        {"prompt": TRANSCRIPT, "chosen": "Human: Yes.", "rejected": "Human: No."},
        (LONG[0], "Human: Yes.", "Human: No."),
    ),
    "a response that quotes JSON": (
        {"prompt": "Tea?", "chosen": '[{"tea": 1}]', "rejected": "[]"},
        (TEA[0], '[{"tea": 1}]', "[]"),
    ),
    "a label that agrees": ({"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "label": 1}, TEA),
    "an empty CSV cell": (
        {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "response_a": "", "response_b": " ", "label": ""},
        TEA,
    ),
    "the user's last turn": (
        {
            "chosen": [user("Tea?"), assistant("Yes."), user("Thanks")],
            "rejected": [user("Tea?"), assistant("No."), user("Oh")],
        },
        "no_response",
    ),
    "a transcript's last turn of the human": (
        {"chosen": f"{TRANSCRIPT} Yes.\n\nHuman: Thanks", "rejected": f"{TRANSCRIPT} No.\n\nHuman: Oh"},
        "no_response",
    ),
    "the human's turn after a response": (
        {"prompt": TRANSCRIPT, "chosen": "Yes.\n\nHuman: Thanks", "rejected": "No."},
        "no_response",
    ),
    "a prompt that is answered": (
        {"prompt": [user("Tea?"), assistant("Yes.")], "chosen": "4", "rejected": "5"},
        "answered",
    ),
    "an empty last turn of a transcript": ({"chosen": TRANSCRIPT, "rejected": f"{TRANSCRIPT} No."}, "empty"),
}


@pytest.mark.parametrize(("row", "expected"), ROWS.values(), ids=ROWS)
def test_conversations(row, expected):
    assert read(row) == expected


BOTH = {"chosen": [user("Tea?"), assistant("Yes.")], "rejected": [user("Tea?"), assistant("No.")]}
REFUSED = [
    (
        {"chosen": [user("Tea?"), assistant("Yes.", tool_calls=[{"function": {}}])]},
        "got tool_calls in turn 2 of chosen",
    ),
    (
        {"rejected": [user("Tea?"), assistant("No.", reasoning_content="Hm")]},
        "got reasoning_content in turn 2 of rejected",
    ),
    (
        {"prompt": [user("Tea?", name="Ann")]},
        "got name in turn 1 of prompt, which nothing reads; write it into the content",
    ),
    (
        {"chosen": [{"from": "human", "value": "Tea?"}]},
        "got from, value in turn 1 of chosen.*call them role and content",
    ),
    ({"chosen": '[{"from": "human", "value": "Tea?"}]'}, "got from, value in turn 1 of chosen"),
    ({"chosen": [{"role": "gpt", "content": "Yes."}]}, "got the role 'gpt' in turn 1 of chosen; use system"),
    ({"chosen": [{"role": None, "content": "Yes."}]}, "got the role a NoneType"),
    ({"chosen": [{"role": "assistant"}]}, "got no content in turn 1 of chosen"),
    ({"chosen": [user(["Tea?"])]}, "got a list in turn 1 of chosen; use text"),
    ({"chosen": [assistant("Yes."), "x"]}, "got a str as turn 2 of chosen"),
    (
        {"chosen": str([assistant("a"), user("b")]).replace("}, {", "}\n {")},
        "got turns as text in chosen that",
    ),
    ({"chosen": "[{'from': 'human', 'value': 'a'}\n {'from': 'gpt'}]"}, "got turns as text in chosen that"),
    ({"chosen": '[{"role": "assistant", content}]'}, "got turns as text in chosen that are neither JSON nor Python"),
    ({"prompt": "Coffee?"}, "got a chosen that begins with another turn of the user than prompt has"),
    (
        {"prompt": [SYSTEM], "chosen": [{**SYSTEM, "content": "Be long."}, *BOTH["chosen"]]},
        "got a chosen that begins with another turn of the system",
    ),
    ({"label": 0}, "got label 0 beside chosen and rejected, which say that the first is better"),
    ({"label": "b"}, "got label 'b' beside chosen and rejected"),
    ({"label": "tie"}, "got label 'tie' beside chosen and rejected"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_nothing_reads_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=f"f, line 1: {message}") as caught:
        read({**BOTH, **change})
    assert len(caught.value.problems) == 1


def test_a_prompt_that_is_answered_is_none_to_answer():
    with pytest.raises(UserError, match="got prompt with a last turn of the assistant"):
        parse_prompt({"prompt": [user("Tea?"), assistant("Yes.")]}, {}, "f, line 1")


def test_candidates_are_read_as_responses_are():
    row = {
        "prompt": "Tea?",
        "chosen": ["Human: Tea?\n\nAssistant: Yes."],
        "rejected": ["No.", str([assistant("Nay.")])],
    }
    assert parse_candidates(row, {}, "here")[1:] == (["Yes."], ["No.", "Nay."])
    with pytest.raises(UserError, match="got a conversation in chosen that is not one response"):
        parse_candidates({**row, "chosen": "Human: Tea?\n\nAssistant: Yes.\n\nHuman: Thanks"}, {}, "here")


LABELS = {"model_a": "a", "model_b": "b", "tie": "tie", "skip": None}


@pytest.mark.parametrize(
    ("winner", "expected"),
    [("model_a", "one"), ("MODEL_B", "two"), ("tie", 0.5), ("skip", None), (None, None), ("", None)],
)
def test_labels_are_read_by_their_map(winner, expected):
    row = {"prompt": "Tea?", "response_a": "one", "response_b": "two", "winner": winner}
    pair = parse_row(row, {"label": "winner"}, "here", LABELS)
    if expected in (0.5, None):
        assert pair.label == expected and not pair.is_decided
    else:
        assert (pair.response_a if pair.label else pair.response_b) == expected


@pytest.mark.parametrize(("value", "expected"), [(1, "one"), (2, "two"), ("1", "one"), (2.0, "two"), ("2.0", "two")])
def test_a_map_replaces_what_labels_mean(value, expected):
    row = {"prompt": "Tea?", "response_a": "one", "response_b": "two", "label": value}
    pair = parse_row(row, {}, "here", {"1": "a", "2": "b"})
    assert (pair.response_a if pair.label else pair.response_b) == expected
    with pytest.raises(UserError, match="here: got the label 0, which labels has not; it has 1, 2"):
        parse_row({**row, "label": 0}, {}, "here", {"1": "a", "2": "b"})
    pair = parse_row(row, {}, "here", {"1.0": "a", 2.0: "b"})  # as YAML and a program that writes floats have it
    assert (pair.response_a if pair.label else pair.response_b) == expected


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_key_that_a_written_turn_has_twice_is_named(quote):
    text = "[{'role': 'user', 'content': 'a', 'content': 'b'}]".replace("'", quote)
    with pytest.raises(UserError, match="row 1: got the key 'content' twice in a turn of chosen"):
        written_turns(text, "row 1", "chosen")
