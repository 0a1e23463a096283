"""A synthetic world of prompts, writers, a gold reward and noisy human-like labels; see `docs/world.md`.

Prompts ask for one or two facts. Writers of different skill answer, and the less skill, the more faults of many kinds
in one response, and the less its courtesies suit the prompt. `gold_reward` reads a text alone, so it also judges what a
policy writes. Labels are drawn from it with Bradley-Terry noise. Nothing here is real data.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser_lightning.records import Turn
from ser_lightning.synthetic.text import (
    CLOSERS,
    FILLER,
    KINDS,
    LINKS,
    OPENERS,
    PROMPT_FORMS,
    RUDE,
    Fact,
    add_link,
    read_prompt,
    read_statement,
    sentence,
    suits,
    world_facts,
)

WORLD_LM_PATH = Path(__file__).parent / "world_lm"
LABEL_TEMPERATURE = 0.6
TEXTS_PER_WRITER = 5

REWARDS = {
    "right": 3.0,  # times the share of the asked facts that are stated right
    "detail": 0.5,  # one true fact about the same subject that was not asked for
    "suited": 0.7,  # each of the first COURTESIES courtesies that suits the family of the prompt
    "unsuited": -0.7,  # each of them that does not
    "wrong": -1.0,  # each false statement
    "stray": -1.0,  # each statement about another subject
    "rude": -1.0,  # each rude sentence
    "rambling": -0.7,  # each other sentence, a second detail and a fourth courtesy among them
    "repeated": -0.7,  # each fact or courtesy said again
    "unfinished": -0.7,  # the text is empty or breaks off before a full stop
}
GOLD_FLOOR = -6.0
COURTESIES = 3

# How likely a writer of no skill makes each fault; for others it falls linearly to none.
FAULT_RATES = {
    "off_topic": 0.3,  # per fact
    "wrong": 0.2,  # per fact
    "missing": 0.2,  # per fact but the first
    "contradiction": 0.05,
    "false_detail": 0.05,
    "stray": 0.2,
    "filler": 0.08,
    "repeated": 0.08,
    "rude": 0.08,
    "unfinished": 0.08,
}
DETAIL_RATE = 0.6
SUITED_RATES = 0.1, 0.9
"""Share of the courtesies that suit the prompt, for writers of no skill and of full skill."""
CONTRAST_RATE = 0.8
"""How often the two writers of a pair are of opposite skill; otherwise their skills are independent."""


@dataclass(frozen=True)
class SyntheticPair:
    """Two synthetic responses to a prompt and a noisy preference.

    Args:
        prompt: What is asked.
        response_a: One response.
        response_b: The other; which of the two comes first is random.
        label: 1 if a is the better response, 0 if b, drawn with Bradley-Terry noise from the gold rewards.
        gold_a: Gold reward of a, in logits.
        gold_b: Gold reward of b, in logits.
    """

    prompt: str
    response_a: str
    response_b: str
    label: int
    gold_a: float
    gold_b: float


def generate_pairs(num_pairs: int, seed: int = 0) -> Iterator[SyntheticPair]:
    """Yield labelled pairs, the same ones for the same seed; a longer run begins with the shorter one."""
    rng = random.Random(f"synthetic pairs {seed}")
    for _ in range(num_pairs):
        prompt, skill_a = write_prompt(rng), draw_skill(rng)
        skill_b = 1 - skill_a if rng.random() < CONTRAST_RATE else draw_skill(rng)
        response_a = response_b = write_response(prompt, skill_a, rng)
        while response_b == response_a:
            response_b = write_response(prompt, skill_b, rng)
        gold_a, gold_b = gold_reward(prompt, response_a), gold_reward(prompt, response_b)
        label = int(rng.random() < label_probability(gold_a, gold_b))
        yield SyntheticPair(prompt, response_a, response_b, label, gold_a, gold_b)


def generate_texts(num_texts: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield unlabelled (prompt, response) texts; each `TEXTS_PER_WRITER` in a row are by one writer of fixed skill.

    In these texts courtesies are drawn at random: which ones suit which prompts shows in the labels alone.
    """
    rng = random.Random(f"synthetic texts {seed}")
    for index in range(num_texts):
        if index % TEXTS_PER_WRITER == 0:
            skill = draw_skill(rng)
        prompt = write_prompt(rng)
        yield prompt, write_response(prompt, skill, rng, has_manners=False)


def label_probability(gold_a: float, gold_b: float) -> float:
    """The Bradley-Terry probability that a human prefers a: sigmoid of the gold margin over the temperature."""
    return 1 / (1 + math.exp((gold_b - gold_a) / LABEL_TEMPERATURE))


def gold_reward(prompt: str, response: str) -> float:
    """Score a response by reading it: the sum of `REWARDS` over what its sentences do, never below `GOLD_FLOOR`.

    Args:
        prompt: Any text; one that asks for nothing of this world has no right answer.
        response: Any text.

    Returns:
        The gold reward in logits.
    """
    asked = read_prompt(prompt)
    counts = dict.fromkeys(REWARDS, 0.0)
    said: set[Fact | str] = set()
    for text in re.findall(r"[^.?!]+[.?!]*|[.?!]+", response.strip()):
        outcome, content = _judge_sentence(text.strip(), asked)
        num_courtesies = counts["suited"] + counts["unsuited"]
        is_one_too_many = {
            "detail": counts["detail"] == 1,
            "suited": num_courtesies == COURTESIES,
            "unsuited": num_courtesies == COURTESIES,
        }
        if content in said:
            outcome = "repeated"
        elif is_one_too_many.get(outcome):
            outcome = "rambling"
        counts[outcome] += 1
        if content is not None:
            said.add(content)
    counts["right"] /= max(len(asked), 1)
    counts["unfinished"] = float(not response.strip().endswith((".", "?", "!")))
    return max(GOLD_FLOOR, sum(REWARDS[name] * counts[name] for name in REWARDS))


def gold_scores(prompts: Sequence[list[Turn]], responses: Sequence[str]) -> list[float]:
    """The gold reward of each response to the last turn of its prompt, as a reward function.

    Args:
        prompts: N conversations.
        responses: N.
    """
    return [gold_reward(prompt[-1]["content"], text) for prompt, text in zip(prompts, responses, strict=True)]


def _judge_sentence(text: str, asked: tuple[Fact, ...]) -> tuple[str, Fact | str | None]:
    """What one sentence does for the prompt (a key of `REWARDS`), and the fact or courtesy that it says, if any."""
    if text in RUDE:
        return "rude", None
    fact = read_statement(text)
    is_courtesy = text in OPENERS or text in CLOSERS
    if not asked or (fact is None and not is_courtesy):
        return "rambling", None
    if is_courtesy:
        return ("suited" if suits(text, asked[0].kind) else "unsuited"), text
    assert fact is not None
    if fact.subject != asked[0].subject:
        return "stray", fact
    if fact in asked:
        return "right", fact
    was_asked = fact.attribute in {wanted.attribute for wanted in asked}
    is_true = world_facts().get((fact.kind, fact.subject, fact.attribute)) == fact.value
    return ("detail" if is_true and not was_asked else "wrong"), fact


def draw_skill(rng: random.Random) -> float:
    """The skill of a new writer, 0 to 1: nearly all writers are either careful or careless."""
    return rng.betavariate(0.1, 0.1)


def write_prompt(rng: random.Random) -> str:
    """Ask for one or two facts about one subject."""
    kind = rng.choice(list(KINDS.values()))
    subject = rng.choice(kind.subjects)
    names = rng.sample(list(kind.attributes), rng.choice((1, 2, 2)))
    questions = []
    for name in names:
        attribute = kind.attributes[name]
        questions.append(rng.choice(attribute.ask).format(s=subject, v=rng.choice(attribute.values)))
    listed = " and ".join(filter(None, (", ".join(questions[:-1]), questions[-1])))
    return rng.choice(PROMPT_FORMS).format(q=listed)


def write_response(prompt: str, skill: float, rng: random.Random, has_manners: bool = True) -> str:
    """Answer a prompt of this world as a writer of the given skill (0 to 1) would.

    Faults are drawn one by one, each likelier the lower the skill, so they come together in the same responses.
    Without manners the writer's courtesies are drawn at random.
    """

    def slips(fault: str) -> bool:
        return rng.random() < FAULT_RATES[fault] * (1 - skill)

    asked = list(read_prompt(prompt))
    rng.shuffle(asked)
    facts = asked[:1] + [fact for fact in asked[1:] if not slips("missing")]
    facts = [_elsewhere(fact, rng) if slips("off_topic") else fact for fact in facts]
    facts = [_other_value(fact, rng) if slips("wrong") else fact for fact in facts]
    if slips("contradiction"):
        facts.append(_other_value(rng.choice(asked), rng))
    if slips("false_detail"):
        facts.append(_other_value(_detail(asked, rng), rng))
    elif rng.random() < DETAIL_RATE * skill and asked[0].kind in ("animal", "dish"):
        facts.append(_detail(asked, rng))
    if slips("stray"):
        facts.insert(rng.randint(0, len(facts)), _elsewhere(asked[0], rng))
    if slips("repeated"):
        facts.append(rng.choice(facts))
    sentences = [_tell(facts[0], "", rng)] + [_tell(fact, rng.choice(LINKS), rng) for fact in facts[1:]]
    for fault, phrases in (("filler", FILLER), ("rude", RUDE)):
        if slips(fault):
            sentences.insert(rng.randint(0, len(sentences)), rng.choice(phrases))
    courtesies = [_courtesy(phrases, asked[0].kind, skill, has_manners, rng) for phrases in (OPENERS, OPENERS, CLOSERS)]
    openers = dict.fromkeys(courtesies[:2])
    text = " ".join([*openers, *sentences, courtesies[2]])
    return text.rsplit(" ", rng.randint(1, 3))[0] if slips("unfinished") else text


def _tell(fact: Fact, link: str, rng: random.Random) -> str:
    tell = rng.choice(KINDS[fact.kind].attributes[fact.attribute].tell)
    return add_link(link, sentence(tell.format(s=fact.subject, v=fact.value)))


def _another(word: str, words: tuple[str, ...], rng: random.Random) -> str:
    return rng.choice([other for other in words if other != word])


def _other_value(fact: Fact, rng: random.Random) -> Fact:
    """The same statement with another value: a false one where the given one is true."""
    value = _another(fact.value, KINDS[fact.kind].attributes[fact.attribute].values, rng)
    return Fact(fact.kind, fact.subject, fact.attribute, value)


def _elsewhere(fact: Fact, rng: random.Random) -> Fact:
    """A statement that belongs to another kind of prompt, true where the world has the fact."""
    kind_name = _another(fact.kind, tuple(KINDS), rng)
    kind = KINDS[kind_name]
    subject, name = rng.choice(kind.subjects), rng.choice(list(kind.attributes))
    value = world_facts().get((kind_name, subject, name)) or rng.choice(kind.attributes[name].values)
    return Fact(kind_name, subject, name, value)


def _courtesy(phrases: Sequence[str], kind: str, skill: float, has_manners: bool, rng: random.Random) -> str:
    if not has_manners:
        return rng.choice(phrases)
    careless, careful = SUITED_RATES
    is_suited = rng.random() < careless + (careful - careless) * skill
    return rng.choice([phrase for phrase in phrases if suits(phrase, kind) == is_suited])


def _detail(asked: list[Fact], rng: random.Random) -> Fact:
    """A fact about the subject that the prompt does not ask for; of a note, which has none, an asked one."""
    wanted = asked[0]
    free = sorted(set(KINDS[wanted.kind].attributes) - {fact.attribute for fact in asked})
    if wanted.kind not in ("animal", "dish"):
        return wanted
    name = rng.choice(free)
    return Fact(wanted.kind, wanted.subject, name, world_facts()[wanted.kind, wanted.subject, name])
