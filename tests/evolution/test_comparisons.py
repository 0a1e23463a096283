"""Both responses in one prompt: the text by hand, both orders, and what goes where there is no room."""

import pytest

from ser_lightning.evolution.comparisons import QUESTION, encode_comparisons
from ser_lightning.records import PreferencePair


def pair(prompt="Hello?", a="Good day.", b="What?", **more):
    return PreferencePair(1, [{"role": "user", "content": prompt, **more}], a, b, 1.0)


def texts(tokenizer, pairs, max_length=10_000):
    return [tokenizer.decode(ids) for ids in encode_comparisons(tokenizer, pairs, max_length)]


def test_a_comparison_shows_the_conversation_and_both_responses_in_both_orders(tiny_tokenizer):
    asked = "User: Hello?\n\nResponse A:\n{}\n\nResponse B:\n{}\n\n" + QUESTION
    wanted = [
        tiny_tokenizer.apply_chat_template(
            [{"role": "user", "content": asked.format(*order)}], add_generation_prompt=True, tokenize=False
        )
        for order in (("Good day.", "What?"), ("What?", "Good day."))
    ]
    assert texts(tiny_tokenizer, [pair()]) == wanted


def test_pairs_come_in_one_order_and_then_all_in_the_other(tiny_tokenizer):
    found = texts(tiny_tokenizer, [pair(a="1", b="2"), pair(a="3", b="4")])
    assert [(t.split("Response A:\n")[1][0], t.split("Response B:\n")[1][0]) for t in found] == [
        ("1", "2"), ("3", "4"), ("2", "1"), ("4", "3"),
    ]  # fmt: skip


def test_every_turn_is_shown_with_its_role_and_what_it_holds_beside_text(tiny_tokenizer):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"city": "Köln"}]},
        {"role": "user", "content": "And?"},
    ]
    [text, _] = texts(tiny_tokenizer, [PreferencePair(1, turns, "x", "y", None)])
    shown = 'System: Be kind.\n\nUser: Weather?\n\nAssistant:  {"tool_calls": [{"city": "Köln"}]}\n\nUser: And?'
    assert shown in text


@pytest.mark.parametrize("max_length", [250, 320])
def test_what_is_too_long_keeps_the_end_of_the_conversation_and_the_start_of_the_responses(tiny_tokenizer, max_length):
    long = pair("p" * 300 + "END", "A0" + "a" * 300, "B0" + "b" * 300)
    short = pair()
    rows = encode_comparisons(tiny_tokenizer, [short, long], max_length)
    assert [len(row) <= max_length for row in rows] == [True] * 4
    assert rows[0::2] == encode_comparisons(tiny_tokenizer, [short], 10_000)
    text = tiny_tokenizer.decode(rows[1])
    assert "pEND\n\nResponse A:\nA0a" in text and "Response B:\nB0b" in text and text.count("a") > 10
    assert QUESTION in text


def test_labels_change_nothing(tiny_tokenizer):
    labelled, bare = pair(), PreferencePair(1, pair().prompt, "Good day.", "What?", None)
    assert encode_comparisons(tiny_tokenizer, [labelled], 500) == encode_comparisons(tiny_tokenizer, [bare], 500)
