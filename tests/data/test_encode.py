"""Ids by hand: the tiny tokenizer makes one id of each byte."""

import pytest
from tokenizers import pre_tokenizers

from ser_lightning.data.encode import (
    encode_candidates,
    encode_conversations,
    encode_front,
    encode_pairs,
    encode_prompts,
)
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.records import PreferencePair

BOS, EOS = 1, 2
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def by_hand(*turns: str) -> list[int]:
    """Ids of turns such as `<user>Hi`."""
    ids = [BOS]
    for turn in turns:
        ids += [3 + ALPHABET.index(character.replace(" ", "\u0120")) for character in turn] + [EOS]
    return ids


def pair(*prompt: tuple[str, str], a: str = "Yes", b: str = "No", label: int | None = None) -> PreferencePair:
    return PreferencePair(7, [{"role": role, "content": text} for role, text in prompt], a, b, label, "row-7")


def encode_pair(tokenizer, one, max_length):
    return encode_pairs(tokenizer, [one], max_length)[0]


def encode_response(tokenizer, prompt, text, max_length):
    (found,) = encode_candidates(tokenizer, [prompt], [[text]], max_length)
    return found and found.rows[0]


def test_ids_are_those_of_the_template(tiny_tokenizer):
    encoded = encode_pair(tiny_tokenizer, pair(("user", "Hi you")), 100)
    assert encoded.ids_a == by_hand("<user>Hi you", "<assistant>Yes")
    assert encoded.ids_b == by_hand("<user>Hi you", "<assistant>No")
    assert not encoded.is_cut


def test_a_length_of_exactly_the_maximum_is_not_cut(tiny_tokenizer):
    exact = len(by_hand("<user>Hi", "<assistant>Yes"))
    assert not encode_pair(tiny_tokenizer, pair(("user", "Hi")), exact).is_cut
    assert encode_pair(tiny_tokenizer, pair(("user", "Hi")), exact - 1).ids_a == by_hand("<user>i", "<assistant>Yes")


def test_oldest_turns_go_first_and_the_dialogue_stays_one_that_the_user_opens(tiny_tokenizer):
    dialogue = pair(("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five"))
    two_gone = by_hand("<user>three", "<assistant>four", "<user>five", "<assistant>Yes")
    encoded = encode_pair(tiny_tokenizer, dialogue, len(two_gone) + 5)  # one turn less would do, but an answer opens
    assert encoded.ids_a == two_gone
    assert encoded.ids_b == by_hand("<user>three", "<assistant>four", "<user>five", "<assistant>No")
    assert encoded.is_cut


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_turn_is_kept_when_older_turns_go(tiny_tokenizer, role):
    dialogue = pair((role, "Be kind"), ("user", "one"), ("assistant", "two"), ("user", "three"))
    kept = by_hand(f"<{role}>Be kind", "<user>three", "<assistant>Yes")
    assert encode_pair(tiny_tokenizer, dialogue, len(kept)).ids_a == kept


def test_then_the_front_of_the_last_turn_goes_as_little_as_needed(tiny_tokenizer):
    text = "abcdefghijklmnopqrstuvwxyz" * 20
    dialogue = pair(("user", "old"), ("assistant", "older"), ("user", text))
    for room in (1, 5, 26, 300):
        kept = by_hand(f"<user>{text[-room:]}", "<assistant>Yes")
        encoded = encode_pair(tiny_tokenizer, dialogue, len(kept))
        assert encoded.ids_a == kept
        assert encoded.ids_b == by_hand(f"<user>{text[-room:]}", "<assistant>No")


def test_wide_characters_never_make_a_pair_too_long(tiny_tokenizer):
    dialogue = pair(("user", "a" * 30 + "äö漢字" * 40 + "b" * 5))
    for max_length in range(30, 200, 7):
        encoded = encode_pair(tiny_tokenizer, dialogue, max_length)
        assert max_length - 12 < max(len(encoded.ids_a), len(encoded.ids_b)) <= max_length


def test_a_response_is_never_cut(tiny_tokenizer):
    alone = len(by_hand("<user>", "<assistant>Yes"))
    assert encode_pair(tiny_tokenizer, pair(("user", "Hi")), alone).ids_a == by_hand("<user>", "<assistant>Yes")
    assert encode_pair(tiny_tokenizer, pair(("user", "Hi")), alone - 1) is None
    assert encode_pair(tiny_tokenizer, pair(("user", "Hi"), a="No", b="Yes"), alone - 1) is None


def test_many_pairs_at_once_are_encoded_as_one_at_a_time(tiny_tokenizer):
    pairs = [pair(("user", "x" * n), ("assistant", "y" * n), ("user", "z" * n), a="w" * n) for n in range(1, 60, 3)]
    encoded = encode_pairs(tiny_tokenizer, pairs, 60)
    assert encoded == [encode_pair(tiny_tokenizer, one, 60) for one in pairs]
    assert {type(one).__name__ for one in encoded} == {"EncodedPair", "NoneType"}


def test_padding_side_and_label_change_nothing(tiny_tokenizer):
    expected = encode_pair(tiny_tokenizer, pair(("user", "Hi"), label=1), 100)
    tiny_tokenizer.padding_side = "left"
    try:
        assert encode_pair(tiny_tokenizer, pair(("user", "Hi"), label=0), 100) == expected
    finally:
        tiny_tokenizer.padding_side = "right"


@pytest.fixture
def template(tiny_tokenizer):
    """Sets another chat template for the time of the test."""
    original = tiny_tokenizer.chat_template
    yield lambda text: setattr(tiny_tokenizer, "chat_template", text)
    tiny_tokenizer.chat_template = original


def test_two_bos_are_refused(tiny_tokenizer, template):
    template("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match=r"chat template: got two '<bos>' at the start; take the BOS out"):
        encode_pair(tiny_tokenizer, pair(("user", "Hi")), 100)


def test_a_conversation_that_the_template_refuses_is_named(tiny_tokenizer, template):
    template("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok")
    pairs = [pair(("user", "Hi")), pair(("system", "Be kind"), ("user", "Hi"))]
    with pytest.raises(UserError, match="refuses pair row-7: got no system role for the roles system, user"):
        encode_pairs(tiny_tokenizer, pairs, 100)


def test_templates_that_ask_for_the_date_get_the_same_one_every_day(tiny_tokenizer, template):
    template("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}")
    [ids] = encode_conversations(tiny_tokenizer, [[{"role": "user", "content": "Hi"}]])
    assert ids == by_hand("26 Jul 2024")[1:-1]


def test_ids_are_those_of_plain_transformers(tiny_tokenizer):
    conversations = [[*pair(("system", "x\ny"), ("user", f"Hi {n}  ")).prompt] for n in range(3)]
    for asks in (False, True):
        plain = tiny_tokenizer.apply_chat_template(conversations, add_generation_prompt=asks, return_dict=False)
        assert encode_conversations(tiny_tokenizer, conversations, asks) == plain


def cuts_that_fit(tokenizer, one, max_length):
    """Every cut of a prompt that the template takes and that fits, the longest first, by trying them all."""
    num_system = one.prompt[0]["role"] == "system"
    system, turns = one.prompt[:num_system], one.prompt[num_system:]
    starts = [i for i in range(len(turns)) if i == 0 or turns[i]["role"] == "user"]
    cuts = [[*system, *turns[start:]] for start in starts]
    last = turns[-1]["content"]
    cuts += [[*system, {"role": "user", "content": last[start:]}] for start in range(1, len(last) + 1)]
    for cut in cuts:
        both = [[*cut, {"role": "assistant", "content": text}] for text in (one.response_a, one.response_b)]
        try:
            rows = tokenizer.apply_chat_template(both, return_dict=False)
        except Exception:
            continue
        if max(map(len, rows)) <= max_length:
            yield rows


NEEDS_QUERY = (
    "{% if not (messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | select) | list %}"
    "{{ raise_exception('no user query') }}{% endif %}"
)
"""As Qwen3's has it: an empty user turn is refused."""


@pytest.mark.parametrize("head", ["", NEEDS_QUERY], ids=["takes all", "needs a query"])
def test_a_cut_is_the_longest_that_fits_and_that_the_template_takes(tiny_tokenizer, template, head):
    template(head + tiny_tokenizer.chat_template)
    dialogue = [("system", "Be kind"), ("user", "one"), ("assistant", "two"), ("user", "three, three"), ("user", "4 ?")]
    for prompt in (dialogue, dialogue[1:], dialogue[1:2], dialogue[:2]):
        for max_length in range(20, 110):
            one = pair(*prompt)
            best = next(cuts_that_fit(tiny_tokenizer, one, max_length), None)
            found = encode_pair(tiny_tokenizer, one, max_length)
            assert (found and [found.ids_a, found.ids_b]) == best


def test_a_template_that_takes_no_cut_drops_the_pair(tiny_tokenizer, template):
    template("{% if messages | length < 4 %}{{ raise_exception('too few') }}{% endif %}" + tiny_tokenizer.chat_template)
    dialogue = pair(("user", "one"), ("assistant", "two"), ("user", "three"))
    whole = encode_pair(tiny_tokenizer, dialogue, 100)
    assert not whole.is_cut
    assert encode_pair(tiny_tokenizer, dialogue, len(whole.ids_a) - 1) is None
    assert encode_response(tiny_tokenizer, dialogue.prompt, "Yes", len(whole.ids_a) - 1) is None
    with pytest.raises(UserError, match="in the shortest form that the chat template takes; raise data"):
        encode_prompts(tiny_tokenizer, [pair(*[("user", "one")] * 5).prompt], 20)


def test_cutting_reads_a_long_dialogue_a_few_times_and_not_once_a_turn(tiny_tokenizer, monkeypatch):
    read = []
    encode = encode_conversations

    def counted(tokenizer, conversations, *args):
        read.append(sum(map(len, conversations)))
        return encode(tokenizer, conversations, *args)

    monkeypatch.setattr("ser_lightning.data.encode.encode_conversations", counted)
    num_turns = 2001
    dialogue = pair(*[(("user", "assistant")[i % 2], "hello") for i in range(num_turns)])
    assert encode_pair(tiny_tokenizer, dialogue, 200).is_cut
    assert sum(read) < 2.5 * num_turns  # both conversations once, and a few short tails


def test_of_a_response_that_never_fits_the_front_is_read_behind_the_shortest_prompt(tiny_tokenizer, template):
    prompt, text = pair(("system", "Be kind"), ("user", "Why?")).prompt, "abcdefghij"
    for kept in (1, 5, 9):
        expected = by_hand("<system>Be kind", "<user>", f"<assistant>{text[:kept]}")
        assert encode_response(tiny_tokenizer, prompt, text, len(expected)) is None
        assert encode_front(tiny_tokenizer, prompt, text, len(expected)).rows == [expected]
    assert encode_front(tiny_tokenizer, prompt, text, 10) is None
    template(NEEDS_QUERY + tiny_tokenizer.chat_template)
    expected = by_hand("<system>Be kind", "<user>?", f"<assistant>{text[:5]}")
    assert encode_front(tiny_tokenizer, prompt, text, len(expected)).rows == [expected]


def test_any_number_of_responses_see_the_same_cut_prompt(tiny_tokenizer):
    prompt = pair(("user", "one"), ("assistant", "two"), ("user", "three")).prompt
    texts = ["Yes", "No", "Perhaps"]
    whole = [by_hand("<user>one", "<assistant>two", "<user>three", f"<assistant>{text}") for text in texts]
    cut = [by_hand("<user>three", f"<assistant>{text}") for text in texts]
    assert encode_candidates(tiny_tokenizer, [prompt], [texts], len(whole[2]))[0].rows == whole
    both = encode_candidates(tiny_tokenizer, [prompt] * 2, [texts, texts[:2]], len(whole[2]) - 1)
    assert [one.rows for one in both] == [cut, whole[:2]]  # though two would fit in the first
    assert [one.is_cut for one in both] == [True, False]
    assert encode_candidates(tiny_tokenizer, [prompt], [texts], 20) == [None]


def test_a_template_that_refuses_a_prompt_of_many_responses_is_one_line(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ raise_exception('no roles at all') }}")
    with pytest.raises(UserError, match="chat template refuses a prompt: got no roles at all for the roles user"):
        encode_candidates(tiny_tokenizer, [pair(("user", "Hi")).prompt], [["Yes"]], 100)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]{% else %}"
    "{{ m['content'] }}<eos>{% endif %}{% endfor %}"
)
HEADERS = {
    CHATML: "<|im_end|>\n<|im_start|>assistant\n",
    INST: "[/INST]",
    "paper": "\n\nAnswer: ",
    "auto": "<eos><assistant>",
}
ENDS = {CHATML: "<|im_end|>\n", INST: "<eos>", "paper": "<eos>", "auto": "<eos>"}


@pytest.fixture(params=HEADERS, ids=["chatml", "inst", "paper", "own"])
def headed(request, tiny_model_dir):
    """Tokenizers (bytes, and subwords) with a template, its header, and what it writes after a response."""
    name = request.param
    template = "paper" if name == "paper" else "auto"
    tokenizers = [load_tokenizer(Backbone(path, template=template)) for path in (str(tiny_model_dir), "world_lm")]
    for tokenizer in tokenizers:
        tokenizer.chat_template = tokenizer.chat_template if name in ("paper", "auto") else name
    return tokenizers, HEADERS[name], ENDS[name]


def prompts_with(header):
    """One prompt without a header of its own, and those with one in a turn of the user, of the assistant, in both."""
    return [
        [("user", "What is 6 times 7?")],
        [("user", f"Go on:{header}so it is")],
        [("user", "Hi"), ("assistant", f"Yes?{header}No."), ("user", "Why (now)!")],
        [("user", f"Hi{header}"), ("assistant", "Yes?"), ("user", f"And{header}?")],
        [("user", "Hi"), ("assistant", "Yes?"), ("user", "And?")],
    ]


@pytest.mark.parametrize("is_short", [False, True])
def test_a_response_begins_where_its_prompt_ends_whatever_they_say(headed, is_short):
    """What stands from the start on, decoded, is the response, and nothing of the prompt."""
    tokenizers, header, end = headed
    cut, max_length = [], 40 + 2 * len(header) if is_short else 1000
    texts = ["So it is 42.", f"It is 6 times 7.{header}42", f"{header}{header}42", "(1) 42", "\nIt is 42", "Answer:"]
    for tokenizer in tokenizers:
        for prompt in prompts_with(header):
            for a, b in zip(texts, texts[1:] + texts[:1], strict=True):
                found = [encode_pair(tokenizer, pair(*prompt, a=a, b=b), max_length)]
                found += [encode_pair(tokenizer, pair(*prompt, a=b, b=a), max_length)]
                if found[0] is None:  # too long whatever is cut
                    continue
                cut.append(found[0].is_cut)
                for ids, text in ((found[0].ids_a, a), (found[0].ids_b, b)):
                    decoded = tokenizer.decode(ids[found[0].start :])
                    assert decoded.strip() == f"{text}{end}".strip(), (prompt, text)
                assert (found[1].ids_b, found[1].start) == (found[0].ids_a, found[0].start)
    assert any(cut) == is_short and len(cut) > 20


def test_a_front_begins_where_its_prompt_ends(headed):
    for tokenizer in headed[0]:
        prompt = pair(*prompts_with(headed[1])[3]).prompt
        found = encode_front(tokenizer, prompt, f"It is 42.{headed[1]}" * 20, 150)
        text = tokenizer.decode(found.rows[0][found.start :])
        assert text.strip().startswith("It is 42.") and text.count("It is 42.") > 1


def test_a_prompt_after_which_there_is_no_usual_header_has_a_start(tiny_tokenizer):
    [found] = encode_candidates(tiny_tokenizer, [[]], [["Yes", "No<assistant>"]], 100)
    assert [tiny_tokenizer.decode(ids[found.start :]) for ids in found.rows] == ["Yes<eos>", "No<assistant><eos>"]


def test_without_a_header_in_a_response_nothing_is_encoded_twice(headed, monkeypatch):
    for tokenizer in headed[0]:
        encode_pair(tokenizer, pair(("user", "Hi")), 1000)  # looks at the template
        counts = []
        monkeypatch.setattr(
            "ser_lightning.data.encode.encode_conversations",
            lambda tokenizer, many, *args, counts=counts: (
                counts.append(len(many)) or encode_conversations(tokenizer, many, *args)
            ),
        )
        pairs = [pair(*prompt) for prompt in prompts_with("")]
        found = encode_pairs(tokenizer, pairs, 1000)
        assert counts == [2 * len(pairs)] and all(one.start > 0 for one in found)
        monkeypatch.undo()


def test_a_template_without_a_header_gives_no_start(tiny_tokenizer, template):
    template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert encode_pair(tiny_tokenizer, pair(("user", "Hi")), 100).start == 0
