"""Texts that transformers writes with templates of several families come back as the turns that they are made of."""

import random

import pytest
from transformers import AutoTokenizer

from ser_lightning.errors import UserError
from ser_lightning.export.reading_folder import asking_template
from ser_lightning.serving.rendered import TemplateReader, _common_ends

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}" + CHATML
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ (system if loop.first else '') + "
    "m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    **{"chatml": CHATML, "default system": DEFAULT_SYSTEM, "llama 2": LLAMA_2, "llama 3": LLAMA_3, "gemma": GEMMA},
    **{"thinking": THINKING, "asks": asking_template(CHATML, "Is it good? A yes or no.")},
}


def turns(*texts, system=None):
    roles = ("user", "assistant")
    found = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *found] if system else found


CONVERSATIONS = [
    turns("Hi there", "Hello."),
    turns("Hi\n\nthere", "Yes?", "What is 2 < 3?", "True.\n\nNext line"),
    turns("Hi there", "Hello.", system="You are terse."),
]


@pytest.fixture
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["one", "two", "system"])
def test_what_a_template_writes_is_read_as_what_it_was_given(tokenizer, template, conversation):
    if template == GEMMA and conversation[0]["role"] == "system":
        return  # which it refuses to write
    tokenizer.chat_template = template
    reader = TemplateReader(tokenizer)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    expected = conversation[:-1], conversation[-1]["content"]
    assert reader.read(text, "here") == expected
    assert reader.read(text.removeprefix("<bos>"), "here") == expected
    assert reader.read(text.rstrip() + "<pad><pad>", "here") == expected


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("end", ["<eos>", "", "<eos><pad>"])
def test_a_response_behind_a_generation_prompt_is_what_the_policy_wrote(tokenizer, template, end):
    tokenizer.chat_template = template
    reader = TemplateReader(tokenizer)
    asked = turns("Hi", "Yes?", "Why?")
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    query = prompt + "Because.\nI say so"
    assert reader.split(query + end, prompt, "here") == (asked, "Because.\nI say so")
    assert reader.split(query[9:] + end, prompt, "here") == (asked, "Because.\nI say so")  # cut at its left


@pytest.mark.parametrize("name", ["chatml", "llama 3", "gemma", "thinking"])
def test_of_a_query_without_its_front_the_response_is_what_its_prompt_does_not_end_with(tokenizer, name):
    tokenizer.chat_template = TEMPLATES[name]
    reader = TemplateReader(tokenizer)
    asked = turns("Hi", "Yes?", "Why?")
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    header = reader._header
    starts = [*range(1, len(prompt) - len(header), 7), prompt.rindex(header)]
    for text in (f"Bad.{header}Good.", f"{header}Good.", f"hy?{header}Good."):
        for query in [prompt[start:] + text for start in starts] + [f"\ufffd{prompt[9:]}{text}"]:
            assert reader.split(query, prompt, "here") == (asked, text)


def test_how_much_two_texts_end_alike_is_what_slices_say():
    draw = random.Random(0)
    for _ in range(300):
        one, other = ("".join(draw.choices("ab", k=draw.randint(least, 9))) for least in (1, 0))
        alike = [
            [one[-n:] == other[:end][-n:] for n in range(1, min(len(one), end) + 1)] for end in range(len(other) + 1)
        ]
        assert list(_common_ends(one, other)) == [[*found, False].index(False) for found in alike[1:]]


def test_thousands_of_equal_turns_and_of_pads_are_taken_apart(tokenizer):
    tokenizer.chat_template = CHATML
    asked = turns(*["Hi again"] * 2001)
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    reader = TemplateReader(tokenizer)
    query = prompt[9:] + "Yes. <eos>\n" + "<pad>" * 20_000
    assert reader.split(query, prompt, "here") == (asked, "Yes. ")
    assert reader.read(prompt + query[len(prompt) - 9 :], "here") == (asked, "Yes. ")


def test_the_end_of_a_turn_that_is_not_eos_is_no_part_of_the_response(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = asking_template(CHATML, "Is it good?")
    prompt = tokenizer.apply_chat_template(turns("Hi"), tokenize=False, add_generation_prompt=True)
    assert TemplateReader(tokenizer).split(prompt + "Yes.<|im_end|>", prompt, "here") == (turns("Hi"), "Yes.")


def test_an_answer_that_goes_on_with_a_turn_of_the_user_is_judged_with_it(tokenizer):
    tokenizer.chat_template = CHATML
    prompt = tokenizer.apply_chat_template(turns("Hi"), tokenize=False, add_generation_prompt=True)
    made_up = "Yes.<|im_end|>\n<|im_start|>user\nMore"
    assert TemplateReader(tokenizer).split(prompt + made_up, prompt, "here") == (turns("Hi"), made_up)


def test_todays_date_is_not_the_one_of_the_probe(tokenizer):
    tokenizer.chat_template = LLAMA_3
    text = tokenizer.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    assert "26 Jul 2024" not in text
    assert TemplateReader(tokenizer).read(text, "here") == (CONVERSATIONS[0][:1], "Hello.")


def test_plain_prompts_are_read_as_those_of_a_file_are(tokenizer):
    reader = TemplateReader(tokenizer)
    transcript = "Human: Hi\n\nAssistant:"
    assert reader.split("Why?Because.<eos>", "Why?", "here") == (turns("Why?"), "Because.")
    assert reader.split(transcript + " Yes.", transcript, "here") == (turns("Hi"), " Yes.")


def test_what_cannot_be_told_apart_is_an_error(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(UserError, match="writes nothing fixed between turns.* send prompts and responses to /score"):
        TemplateReader(tokenizer)
    tokenizer.chat_template = CHATML
    reader = TemplateReader(tokenizer)
    tool = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\na<eos>b<|im_end|>\n<|im_start|>user\nc"
    with pytest.raises(UserError, match="^here: got <eos> inside of a turn"):
        reader.read(tool + "<|im_end|>\n<|im_start|>assistant\nd", "here")
    with pytest.raises(UserError, match="^here: got a prompt that ends with a user's turn; add the generation prompt$"):
        reader.split("<|im_start|>user\nHi<|im_end|>\nYes.", "<|im_start|>user\nHi<|im_end|>\n", "here")
    for prompt in ("[INST] Hi [/INST]", "<start_of_turn>user\nHi", "<|start_header_id|>user"):
        with pytest.raises(UserError, match="which another chat template wrote; start the server with --policy"):
            reader.split(prompt + "Yes.", prompt, "here")
