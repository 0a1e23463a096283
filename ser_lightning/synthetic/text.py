"""The synthetic world's language: who and what there is to ask about, and how it is said.

Everything here is invented. A *kind* (animal, event, ...) has subjects and attributes, an attribute has values. Values
of animals and dishes are facts of the world, the same in every text and never in the prompt; those of events, orders
and notes are given in the prompt. The language is closed, so `read_prompt` and `read_statement` read it back exactly.
"""

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

PEOPLE = "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas".split()


@dataclass(frozen=True)
class Attribute:
    """One thing that can be asked of a subject.

    Args:
        values: The words that can stand for `{v}`.
        ask: Wordings of the request; `{s}` is the subject, `{v}` a given value.
        tell: Wordings of the answer, each with `{s}` and `{v}`.
    """

    values: tuple[str, ...]
    ask: tuple[str, ...]
    tell: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A family of prompts: the subjects that are asked about, and what is asked of them."""

    subjects: tuple[str, ...]
    attributes: dict[str, Attribute]


@dataclass(frozen=True)
class Fact:
    """That `subject`'s `attribute` is `value`; `kind` is the family that the subject belongs to."""

    kind: str
    subject: str
    attribute: str
    value: str


def _attribute(values: str, ask: str, tell: str) -> Attribute:
    return Attribute(tuple(values.split()), tuple(ask.split(" | ")), tuple(tell.split(" | ")))


KINDS = {
    "animal": Kind(
        tuple("otter fox badger heron mole hare goose lynx".split()),
        {
            "food": _attribute(
                "berries fish roots seeds snails grass nuts beetles",
                "what the {s} eats | which food the {s} likes",
                "The {s} eats {v}. | The {s} feeds on {v} all year. | You can feed the {s} with {v}.",
            ),
            "home": _attribute(
                "barn cave forest garden harbour meadow pond river",
                "where the {s} lives | where to find the {s}",
                "The {s} lives in the {v}. | You find the {s} in the {v}. | The {v} is home to the {s}.",
            ),
            "fear": _attribute(
                "bells cats dogs drums fire horns rain smoke",
                "what the {s} is afraid of | what scares the {s}",
                "The {s} is afraid of {v}. | What scares the {s} is {v}. | The {s} runs away from {v}.",
            ),
        },
    ),
    "dish": Kind(
        tuple("broth cake curry dumpling flan gruel hotpot jelly".split()),
        {
            "base": _attribute(
                "apples barley beans carrots flour lentils oats onions",
                "what goes into the {s} | what the {s} is made of",
                "The {s} is made of {v}. | Into the {s} go {v}. | Take fresh {v} for the {s}.",
            ),
            "spice": _attribute(
                "cinnamon dill garlic ginger mint mustard parsley pepper",
                "which spice the {s} needs | how to season the {s}",
                "Season the {s} with {v}. | The {s} needs some {v}. | A little {v} is right for the {s}.",
            ),
            "vessel": _attribute(
                "basket bowl bucket crock jar kettle pan pot",
                "what to cook the {s} in | which vessel the {s} needs",
                "Cook the {s} in a {v}. | The {s} comes in a {v}. | Use a {v} for the {s}.",
            ),
        },
    ),
    "event": Kind(
        tuple("auction concert dance fair feast match parade party race show".split()),
        {
            "start": _attribute(
                "dawn dusk midnight noon sunrise sunset breakfast lunch",
                "that the {s} starts at {v} | about {v} as the start of the {s}",
                "The {s} starts at {v}. | The start of the {s} is at {v}. | At {v} the {s} begins.",
            ),
            "fee": _attribute(
                "two three four five six seven eight nine",
                "that the {s} costs {v} coins | about {v} coins for the {s}",
                "The {s} costs {v} coins. | You pay {v} coins for the {s}. | With {v} coins you get into the {s}.",
            ),
            "sight": _attribute(
                "clowns dancers drummers jugglers kites lanterns masks singers",
                "that the {s} has {v} | about the {v} of the {s}",
                "The {s} has {v}. | You see {v} at the {s}. | There are {v} at the {s}.",
            ),
        },
    ),
    "order": Kind(
        tuple("baker barber cook farmer guard nurse painter sailor smith tailor".split()),
        {
            "tool": _attribute(
                "broom brush hammer knife ladder needle rope saw",
                "that the {s} needs a {v} | about the {v} for the {s}",
                "The {s} needs a {v}. | A {v} is for the {s}. | Send the {s} a {v}.",
            ),
            "colour": _attribute(
                "black blue brown green grey red white yellow",
                "that the {s} wants it {v} | about {v} as the colour for the {s}",
                "The {s} wants it {v}. | It is {v} for the {s}. | The colour for the {s} is {v}.",
            ),
            "drink": _attribute(
                "beer cider cocoa coffee juice milk tea wine",
                "that the {s} drinks {v} | about some {v} for the {s}",
                "The {s} drinks {v}. | Offer the {s} some {v}. | A cup of {v} is for the {s}.",
            ),
        },
    ),
    "note": Kind(
        tuple(PEOPLE),
        {
            "day": _attribute(
                "Monday Tuesday Wednesday Thursday Friday Saturday Sunday today",
                "that {s} arrives {v} | about {s} coming {v}",
                "{s} will come {v}. | Expect {s} {v}. | {s} arrives {v}.",
            ),
            "bed": _attribute(
                "attic cabin cottage hall hostel hut inn loft",
                "that {s} sleeps in the {v} | about the {v} for {s}",
                "{s} will sleep in the {v}. | The bed of {s} is in the {v}. | Get the {v} ready for {s}.",
            ),
            "gift": _attribute(
                "bag book drum flute kite lamp puppet ring",
                "that {s} brings a {v} | about the {v} from {s}",
                "{s} will bring a {v}. | You get a {v} from {s}. | {s} has a {v} for you.",
            ),
        },
    ),
}

OPENERS = (
    "Gladly. | Good question. | Of course. | Happy to help. | Here you are. | Hello. | Let me see. | Sure. | "
    "Thank you for asking. | With pleasure."
).split(" | ")
CLOSERS = (
    "I hope this helps. | Have a nice day. | All the best. | Feel free to ask more. | Good luck. | Let me know. | "
    "That is all. | Take care. | Enjoy. | Yours truly."
).split(" | ")
RUDE = (
    "What a silly question. | Look it up yourself. | I am not your servant. | Even a child knows that. | Stop "
    "bothering me. | You never listen. | How can one be so slow. | Are you really this lazy. | Leave me alone. | "
    "I have no time for fools. | Everybody laughs about you. | Do your own work. | You would not get it anyway. | "
    "This is beneath me. | Get lost. | Nobody cares. | Ask somebody else. | Shame on you."
).split(" | ")
FILLER = (
    "Last week I lost my keys. | My neighbour paints fences. | Time flies. | The moon was big that evening. | I once "
    "dreamt of stairs. | Life is a long road. | Some say one thing and some another. | Chairs have four legs. | It all "
    "began long ago. | My cough is getting better. | There are many things in the world. | I like trumpets. | "
    "Whatever happens will happen. | Letters used to be longer. | The old days were different. | Where was I. | "
    "One could go on about this. | My shoes are wet again."
).split(" | ")
LINKS = ("", "", "Also, ", "By the way, ", "Besides, ", "In fact, ")
PROMPT_FORMS = ("Tell me {q}.", "Please write {q}.", "Say {q}.", "Explain {q}.", "Can you say {q}?")


@lru_cache(maxsize=1)
def _suited_kinds() -> dict[str, frozenset[str]]:
    """Each opener suits two kinds and each closer three, no two the same ones: no courtesy is good in itself."""
    return {
        phrase: frozenset(kinds)
        for phrases, num_kinds in ((OPENERS, 2), (CLOSERS, 3))
        for phrase, kinds in zip(phrases, combinations(KINDS, num_kinds), strict=True)
    }


def suits(courtesy: str, kind: str) -> bool:
    """Whether an opener or a closer suits this kind of prompt."""
    return kind in _suited_kinds()[courtesy]


@lru_cache(maxsize=1)
def world_facts() -> dict[tuple[str, str, str], str]:
    """The invented facts: (kind, subject, attribute) to value, each value about equally often."""
    rng = random.Random("facts of the synthetic world")
    facts: dict[tuple[str, str, str], str] = {}
    for kind_name in ("animal", "dish"):
        kind = KINDS[kind_name]
        for name, attribute in kind.attributes.items():
            deck = list(attribute.values) * (len(kind.subjects) // len(attribute.values) + 1)
            rng.shuffle(deck)
            facts |= {(kind_name, subject, name): value for subject, value in zip(kind.subjects, deck, strict=False)}
    return facts


def sentence(text: str) -> str:
    """Capitalise the first letter, as every sentence of the world begins."""
    return text[:1].upper() + text[1:]


def add_link(link: str, text: str) -> str:
    """Put a linking phrase before a sentence: `("Also, ", "The fox ...")` gives `"Also, the fox ..."`."""
    keeps_capital = text.split(" ")[0] in _NAMES
    return sentence(link + (text if keeps_capital or not link else text[:1].lower() + text[1:]))


_NAMES = frozenset(PEOPLE)


@lru_cache(maxsize=1)
def _statements() -> dict[str, Fact]:
    """Every sentence of the world that states a fact, true or false (lower case), and the fact it states."""
    return {
        tell.format(s=subject, v=value).lower(): Fact(kind_name, subject, name, value)
        for kind_name, kind in KINDS.items()
        for name, attribute in kind.attributes.items()
        for tell, subject, value in product(attribute.tell, kind.subjects, attribute.values)
    }


def read_statement(text: str) -> Fact | None:
    """The fact that a sentence states (with its full stop, with or without a linking phrase), or None."""
    text = text.lower()
    for link in LINKS:
        if link and text.startswith(link.lower()):
            text = text.removeprefix(link.lower())
            break
    return _statements().get(text)


@lru_cache(maxsize=1)
def _questions() -> list[tuple[re.Pattern[str], str, str]]:
    """A pattern for each wording of each question, with its kind and attribute."""
    return [
        (re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\w+)", re.escape(ask))), kind_name, name)
        for kind_name, kind in KINDS.items()
        for name, attribute in kind.attributes.items()
        for ask in attribute.ask
    ]


def read_prompt(prompt: str) -> tuple[Fact, ...]:
    """The facts that a prompt asks for, each with its right value; empty if it asks for none of this world."""
    asked = []
    for pattern, kind_name, name in _questions():
        match = pattern.search(prompt)
        if match is None or match["s"] not in KINDS[kind_name].subjects:
            continue
        value = match.groupdict().get("v") or world_facts()[kind_name, match["s"], name]
        asked.append(Fact(kind_name, match["s"], name, value))
    return tuple(asked)
