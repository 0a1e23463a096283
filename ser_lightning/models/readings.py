"""Where a reward model reads: the states of a decoder that its head gets, each a kind of place and a layer.

A standard reward model reads `last`, the last token after the last layer. The middle of a language model orders
responses better than its end, which is about the next token: `mean` is the mean over the response's tokens, and `judge`
the state after a question about the response, where the model is about to answer it (docs/method.md, "Reading").
Shapes: R sequences, L tokens of a row, H the size of a state, K readings.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ser_lightning.data.encode import encode_conversations, response_header
from ser_lightning.data.templates import PROBES, TemplateRefused
from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.loading import unwrapped
from ser_lightning.models.masks import last_hidden
from ser_lightning.records import Inputs, Turn

Kind = Literal["last", "mean", "judge"]

QUESTION = "Was that a helpful, correct and well-written response? Answer with Yes or No."
"""What `judge` asks about a response."""
_DEPTHS: dict[Kind, float] = {"last": 1, "mean": 1 / 2, "judge": 2 / 3}
"""Share of the layers below a reading that names none: where each kind was best on real pairs (docs/results.md)."""
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True)
class Reading:
    """One place where the head reads.

    Attributes:
        kind: `last`, `mean` or `judge`.
        layer: how many layers the state has gone through, from 1; the body's last norm follows.
    """

    kind: Kind
    layer: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.layer}"


def standard_reading(num_layers: int) -> Reading:
    """What a standard reward model reads: the last token after the last layer."""
    return Reading("last", num_layers)


def parse_readings(texts: Iterable[str], num_layers: int, where: str = "model.reading") -> list[Reading]:
    """Readings as YAML has them: `mean@12`, or `mean` alone for the depth that is usual for it.

    Args:
        texts: K of them.
        num_layers: of the body.
        where: how errors call the setting.

    Raises:
        UserError: a line for each that names no kind or no layer of the body, or comes twice.

    Example:
        >>> [str(reading) for reading in parse_readings(["mean", "judge@8"], num_layers=12)]
        ['mean@6', 'judge@8']
    """
    found: list[Reading] = []
    problems = []
    for text in texts:
        kind, _, layer = str(text).partition("@")
        is_layer = not layer or (layer.isdecimal() and 1 <= int(layer) <= num_layers)
        if kind not in get_args(Kind) or not is_layer or str(text).endswith("@"):
            kinds = ", ".join(get_args(Kind))
            problems.append(
                f"{where}: got {text}; use {kinds}, each alone or with a layer of 1 to {num_layers}: mean@6"
            )
            continue
        kind = cast(Kind, kind)
        reading = Reading(kind, int(layer) if layer else max(1, round(num_layers * _DEPTHS[kind])))
        if reading in found:
            problems.append(f"{where}: got {reading} twice; leave one out")
        found.append(reading)
    if not found and not problems:
        problems.append(f"{where}: got no reading; use auto or a list such as [mean, judge]")
    raise_problems(problems)
    return found


@dataclass(frozen=True)
class TurnTokens:
    """What a chat template puts around a response.

    Attributes:
        header: ids that the template writes between the user's turn and a response.
        question: ids of a user turn that asks about the response, up to where the answer begins; may be empty.
    """

    header: tuple[int, ...] = ()
    question: tuple[int, ...] = ()


def turn_tokens(
    tokenizer: PreTrainedTokenizerBase, readings: Collection[Reading], question: str = QUESTION
) -> TurnTokens:
    """What the readings need of a template: nothing for `last`, the header for `mean`, both for `judge`.

    Args:
        tokenizer: has a `chat_template`.
        readings: K of them.
        question: what `judge` asks.

    Raises:
        UserError: if a template writes no fixed header, refuses the question, or changes what comes before it.
    """
    kinds = {reading.kind for reading in readings}
    if kinds <= {"last"}:
        return TurnTokens()
    header = _header(tokenizer)
    return TurnTokens(header, _question(tokenizer, question) if "judge" in kinds else ())


READING_ENTRIES = ("reward_readings", "reward_header", "reward_question")


def reading_entries(readings: Iterable[Reading], tokens: TurnTokens) -> dict[str, list[str] | list[int]]:
    """What a `config.json` says of a head that no plain classifier has; see `noted_readings`."""
    values = [str(reading) for reading in readings], list(tokens.header), list(tokens.question)
    return dict(zip(READING_ENTRIES, values, strict=True))


def forget_readings(config: PretrainedConfig) -> None:
    """Take out what an exported model that was trained on said of its own head."""
    for name in READING_ENTRIES:
        if hasattr(config, name):
            delattr(config, name)


def noted_readings(config: PretrainedConfig, file: str = "config.json") -> tuple[list[Reading], TurnTokens] | None:
    """Where a `config.json` says that the head reads; None where it says nothing, as that of a plain classifier.

    Args:
        file: that has the entries, as errors call it.

    Raises:
        UserError: if an entry is damaged.
    """
    texts, header, question = (cast(Any, getattr(config, name, None)) for name in READING_ENTRIES)
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(_are_ids(ids) for ids in (header, question)):
        raise UserError(f"{file}: got damaged entries {', '.join(READING_ENTRIES)}; take them from the original folder")
    readings = parse_readings(texts, config.get_text_config().num_hidden_layers, f"{file}: reward_readings")
    kinds = {reading.kind for reading in readings}
    needed = {"reward_header": bool(kinds - {"last"}), "reward_question": "judge" in kinds}
    raise_problems(
        f"{file}: got no {name} for {', '.join(texts)}; take it from the original folder"
        for name, is_needed in needed.items()
        if is_needed and not getattr(config, name)
    )
    return readings, TurnTokens(tuple(header), tuple(question))


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)


def _conversation(response: str) -> list[Turn]:
    return [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": response}]


def _header(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that stand between the user's turn and any response."""
    header = response_header(tokenizer)
    if header is None:
        raise UserError(
            "model.reading: got mean or judge with a chat template that writes nothing fixed before a response; use "
            "[last], or another template"
        )
    return header.ids


def _question(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[int, ...]:
    """Ids of the question after a response, the same after every one."""
    found = set()
    for probe in PROBES:
        conversation = _conversation(probe)
        asked = [*conversation, Turn(role="user", content=question)]
        try:
            [before] = encode_conversations(tokenizer, [conversation])
            [row] = encode_conversations(tokenizer, [asked], add_generation_prompt=True)
        except TemplateRefused as error:
            raise UserError(
                f"model.question: the chat template refuses a question after the response ({error.reason}); take judge "
                "out of model.reading"
            ) from error
        if row[: len(before)] != before:
            raise UserError(
                "model.question: the chat template changes a response that a question follows; take judge out of "
                "model.reading, or another template"
            )
        found.add(tuple(row[len(before) :]))
    if len(found) > 1 or not found.copy().pop():
        raise UserError(
            "model.question: the chat template writes the question differently after each response; take judge out "
            "of model.reading"
        )
    return found.pop()


def read_states(body: nn.Module, inputs: Inputs, readings: Sequence[Reading]) -> Tensor:
    """(R, K, H) states of a decoder at its readings, in its number format (a `mean` is taken in float32).

    Args:
        body: as peft may wrap it.
        inputs: R sequences; with `response` and the question's tokens where the readings need them.
        readings: K of them.
    """
    hidden = hidden_states(body, inputs, {reading.layer for reading in readings})
    return torch.stack([_read(hidden[reading.layer], inputs, reading.kind) for reading in readings], dim=1)


def hidden_states(body: nn.Module, inputs: Inputs, layers: Collection[int]) -> dict[int, Tensor]:
    """States after some layers and the body's last norm, (R, T, H) or (N, L, H) in the layout of the inputs.

    So a state is the last one of a body that ends after that layer, which plain transformers computes as well.
    """
    num_layers = _config(body).num_hidden_layers
    inner = sorted({layer for layer in layers if layer < num_layers})
    if not inner:
        return {num_layers: last_hidden(body, inputs)}
    with _kept_states(body, inner) as found:
        last = last_hidden(body, inputs)
    return {**found, num_layers: last}


@contextmanager
def _kept_states(body: nn.Module, inner: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """After a pass of the body: the states after some of its layers and its last norm."""
    stack, norm = layers_and_norm(body)
    outputs: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    # Not in the layers' own hooks: a checkpointed layer is recomputed in the backward pass, when the hooks are gone.
    # Not after the pass: the norm's weights are sharded again then.
    def norm_all(module: nn.Module, _args: Any, _output: Any) -> None:
        found.update({layer: module.forward(output) for layer, output in outputs.items()})

    with ExitStack() as hooks:
        for layer in inner:
            hooks.callback(stack[layer - 1].register_forward_hook(partial(keep, layer)).remove)
        hooks.callback(norm.register_forward_hook(norm_all).remove)
        yield found


def layers_and_norm(body: nn.Module) -> tuple[nn.ModuleList, nn.Module]:
    """The layers of a decoder, and the norm after the last one.

    Raises:
        UserError: of a model in which they are not known.
    """
    plain: Any = unwrapped(body)
    count = _config(body).num_hidden_layers
    stacks = [m for m in plain.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    norm = next((getattr(plain, name) for name in _FINAL_NORMS if hasattr(plain, name)), None)
    if not stacks or norm is None:
        raise UserError(
            f"model.reading: the layers of a {plain.config.model_type} are not known, so only its last one can be "
            "read; use [last]"
        )
    return stacks[0], norm


@contextmanager
def only_layers(body: nn.Module, num_layers: int) -> Iterator[None]:
    """A body without the layers above the first `num_layers`, for a while: one that others need whole."""
    config = _config(body)
    if num_layers >= config.num_hidden_layers:
        yield
        return
    stack, _ = layers_and_norm(body)
    above = list(stack[num_layers:])
    before = {name: getattr(config, name, None) for name in ("num_hidden_layers", "layer_types")}
    drop_layers(body, num_layers)
    try:
        yield
    finally:
        stack.extend(above)
        for name, value in before.items():
            if value is not None:
                setattr(config, name, value)


def drop_layers(body: nn.Module, num_layers: int) -> None:
    """Take the layers off a body that lie above the first `num_layers`; no reading needs them."""
    stack, _ = layers_and_norm(body)
    del stack[num_layers:]
    shorten(_config(body), num_layers)


def shorten(config: PretrainedConfig, num_layers: int) -> None:
    """Let a config have the first `num_layers` layers alone."""
    text: Any = config.get_text_config()
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]


def _config(body: nn.Module) -> Any:
    plain: Any = unwrapped(body)
    return plain.config.get_text_config()


def _read(hidden: Tensor, inputs: Inputs, kind: Kind) -> Tensor:
    """(R, H) states of one reading."""
    states = hidden.flatten(0, 1)
    if kind == "judge":
        return states[inputs.last_places]
    if inputs.response is None:
        assert kind == "last", "mean needs to know where responses begin: lay out with a header"
        return states[inputs.last_places]
    is_real = inputs.response >= 0
    if kind == "last":
        return states[inputs.response.gather(1, is_real.sum(1, keepdim=True) - 1).squeeze(1)]
    total = (states[inputs.response.clamp_min(0)].float() * is_real[:, :, None]).sum(1)
    return (total / is_real.sum(1, keepdim=True)).to(states.dtype)
