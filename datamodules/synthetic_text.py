"""The synthetic world's language: who and what there is to ask about, and how it is said.

Everything here is invented. A *kind* (animal, town, ...) has subjects and attributes; an attribute has values. Most
values are facts of the world, the same in every text and never in the prompt; a note's values are given in the prompt;
a count's value is a sum. The language is closed, so a text can be read back exactly: `read_prompt`, `read_statement`.
"""

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

NUMBERS = "zero one two three four five six seven eight".split()
PEOPLE = "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karla Leo".split()


@dataclass(frozen=True)
class Attribute:
    """One thing that can be asked of a subject.

    Args:
        values: The words that can stand for `{v}`.
        ask: Wordings of the request; `{s}` is the subject, `{v}` a given value, `{x}` and `{y}` numbers to add.
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
        tuple("otter fox badger heron mole hare goose lynx newt crane stoat ram".split()),
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
            "hour": _attribute(
                "dawn dusk midnight noon sunrise sunset breakfast lunch",
                "when the {s} wakes up | at what time the {s} gets up",
                "The {s} wakes up at {v}. | By {v} the {s} is awake. | At {v} the {s} gets up.",
            ),
            "fear": _attribute(
                "bells cats dogs drums fire horns rain smoke",
                "what the {s} is afraid of | what scares the {s}",
                "The {s} is afraid of {v}. | What scares the {s} is {v}. | The {s} runs away from {v}.",
            ),
        },
    ),
    "town": Kind(
        tuple("Arlen Borka Celm Dorn Elmet Farnow Gorse Hilm Istra Jolin Kelt Lorne".split()),
        {
            "trade": _attribute(
                "boats bricks candles carpets cheese clocks glass hats",
                "what {s} is known for | what people make in {s}",
                "{s} is known for its {v}. | People in {s} make {v}. | Many a shop in {s} sells {v}.",
            ),
            "landmark": _attribute(
                "bridge castle fountain gate lighthouse market mill museum",
                "what to see in {s} | which sight to visit in {s}",
                "In {s} you should see the {v}. | The {v} is the pride of {s}. | Do visit the {v} of {s}.",
            ),
            "link": _attribute(
                "raft bus cart coach ferry horse sledge train",
                "how to get to {s} | how one travels to {s}",
                "You get to {s} by {v}. | People travel to {s} by {v}. | A {v} takes you to {s}.",
            ),
            "month": _attribute(
                "January February March April May June July August",
                "when the fair of {s} is | in which month {s} has its fair",
                "The fair of {s} is in {v}. | In {v} there is a fair in {s}. | {s} has its fair in {v}.",
            ),
        },
    ),
    "worker": Kind(
        tuple("baker barber cook cooper diver farmer guard mason nurse painter potter sailor".split()),
        {
            "tool": _attribute(
                "saw broom brush hammer knife ladder needle rope",
                "which tool the {s} needs | what the {s} works with",
                "The {s} works with the {v}. | The {s} needs a good {v}. | A {v} is the tool of the {s}.",
            ),
            "wage": _attribute(
                "three four five six seven eight nine ten",
                "how many coins the {s} earns | what the {s} is paid",
                "The {s} earns {v} coins a day. | One pays the {s} {v} coins. | The wage of the {s} is {v} coins.",
            ),
            "colour": _attribute(
                "black blue brown green grey orange purple red",
                "which colour the {s} wears | what colour the coat of the {s} is",
                "The {s} wears {v}. | The coat of the {s} is {v}. | You know the {s} by the {v} coat.",
            ),
            "drink": _attribute(
                "beer cider cocoa coffee juice lemonade milk tea",
                "what the {s} drinks | what to offer the {s} to drink",
                "The {s} drinks {v}. | Offer the {s} some {v}. | A cup of {v} pleases the {s}.",
            ),
        },
    ),
    "dish": Kind(
        tuple("broth cake curry dumpling flan gruel hotpot jelly loaf mash omelette pasty".split()),
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
            "minutes": _attribute(
                "fifteen twenty thirty forty fifty sixty seventy eighty",
                "how many minutes the {s} takes | how long to cook the {s}",
                "The {s} takes {v} minutes. | Give the {s} {v} minutes. | After {v} minutes the {s} is done.",
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
            "guest": _attribute(
                "aunt brother cousin daughter father mother nephew sister",
                "that the {v} of {s} comes too | about {s} and the {v}",
                "The {v} of {s} comes too. | {s} comes with the {v}. | With {s} comes the {v}.",
            ),
        },
    ),
    "count": Kind(
        tuple(PEOPLE),
        {
            noun: _attribute(
                " ".join(NUMBERS[2:]),
                f"how many {noun} {{s}} has with {{x}} and {{y}} | the {noun} of {{s}} who had {{x}} and got {{y}}",
                f"{{s}} has {{v}} {noun}. | That makes {{v}} {noun} for {{s}}. | {{s}} owns {{v}} {noun} now.",
            )
            for noun in ("pears", "eggs", "stamps", "marbles")
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
    "began long ago. | My cough is getting better. | There are many things in the world. | I like the sound of trumpets. "
    "| Whatever happens will happen. | Letters used to be longer. | The old days were different. | Where was I. | "
    "One could go on about this. | My shoes are wet again."
).split(" | ")
LINKS = ("", "", "Also, ", "By the way, ", "Besides, ", "In fact, ")
PROMPT_FORMS = (
    "Tell me {q}.",
    "Please write {q}.",
    "Say {q}.",
    "Explain {q}.",
    "Can you say {q}?",
)


@lru_cache(maxsize=1)
def world_facts() -> dict[tuple[str, str, str], str]:
    """The invented facts: (kind, subject, attribute) to value, each value about equally often."""
    rng = random.Random("facts of the synthetic world")
    facts = {}
    for kind_name in ("animal", "town", "worker", "dish"):
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


_NAMES = frozenset(PEOPLE) | frozenset(KINDS["town"].subjects) | {"January", "February", "March", "April"}


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
        given = match.groupdict()
        if kind_name == "count":
            if given["x"] not in NUMBERS or given["y"] not in NUMBERS:
                continue
            total = NUMBERS.index(given["x"]) + NUMBERS.index(given["y"])
            value = NUMBERS[total] if total < len(NUMBERS) else ""
        else:
            value = given.get("v") or world_facts()[kind_name, match["s"], name]
        asked.append(Fact(kind_name, match["s"], name, value))
    return tuple(asked)
