"""Which readings a head gets, chosen out of fold on the seed alone.

With few labels, a choice among many candidates is unreliable: so there are few, the first is the default, and another
is taken only where it is clearly better (docs/results.md compares this with taking the lowest loss of all).
Shapes: n seed pairs, C candidate readings, H the size of a state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ser_lightning.errors import UserError, raise_problems
from ser_lightning.models.loading import unwrapped
from ser_lightning.models.probe import errors, length_finding, num_positions
from ser_lightning.models.readings import (
    Reading,
    TurnTokens,
    layers_and_norm,
    parse_readings,
    standard_reading,
    turn_tokens,
)
from ser_lightning.models.reward_model import RewardModel
from ser_lightning.records import Features, PairBatch
from ser_lightning.training.features import States, seed_states
from ser_lightning.training.linear_head import accuracy_of, choose_penalty, difference_scale
from ser_lightning.training.scoring import evaluating, with_bar
from ser_lightning.training.strategies import ShardStrategy
from ser_lightning.utils.collectives import gather_over_ranks

MIN_STANDARD_ERRORS = 3.0
"""By how many standard errors of its paired log loss another set has to be better than the first."""


def candidate_sets(num_layers: int, can_ask: bool = True) -> list[list[Reading]]:
    """The sets of readings that `auto` chooses from, the usual one first, the standard one last.

    Args:
        num_layers: of the body.
        can_ask: whether the chat template takes a question after a response, which `judge` needs.
    """
    usual = [["mean", "judge"], ["mean"], ["judge"]] if can_ask else [["mean"]]
    sets = [parse_readings(texts, num_layers) for texts in usual]
    inner = Reading("last", parse_readings(["judge"], num_layers)[0].layer)
    return [*sets, *([[inner]] if inner.layer < num_layers else []), [standard_reading(num_layers)]]


@dataclass(frozen=True)
class SetEvidence:
    """How one set of readings did out of fold on the seed."""

    readings: list[Reading]
    penalty: float
    accuracy: float
    """Share of seed pairs that are right, a tie counts half."""
    log_loss: float
    advantage: float
    """Mean log loss of the first set minus this one's, on the same pairs."""
    standard_error: float
    """Of the advantage."""

    @property
    def name(self) -> str:
        """As written in YAML."""
        return ", ".join(map(str, self.readings))


@dataclass(frozen=True)
class ReadingChoice:
    """The chosen set of readings, and the evidence for every set."""

    chosen: SetEvidence
    table: list[SetEvidence]
    is_measured: bool = True
    """Whether there were pairs to leave out; a seed of one dialogue cannot tell sets apart."""
    answer_accuracy: float | None = None
    """Share of seed pairs that the language model's own answer orders right, which no label has trained."""

    def measured_as(self, found: SetEvidence) -> "ReadingChoice":
        """The same choice, with the figures that its set has on the scale of all pairs.

        The table stays on the scale of the seed, where its sets can be compared.
        """
        chosen = replace(self.chosen, penalty=found.penalty, accuracy=found.accuracy, log_loss=found.log_loss)
        return replace(self, chosen=chosen)

    def evidence(self) -> list[dict[str, Any]]:
        """A row for each set, as plain values."""
        return [
            {**vars(one), "readings": one.name, "is_chosen": one.readings == self.chosen.readings} for one in self.table
        ]

    def sentence(self) -> str:
        """One line for the log and the report."""
        first, chosen = self.table[0], self.chosen
        if not self.is_measured:
            return f"reads {chosen.name}, the usual choice: the seed is one dialogue, too small to choose from"
        what = f"reads {chosen.name}, penalty {chosen.penalty:.3g}, {chosen.accuracy:.3f} out of fold on the seed"
        if len(self.table) == 1:
            return what
        if chosen.readings != first.readings:
            gap = f"{chosen.advantage:.3f} ± {chosen.standard_error:.3f}"
            return f"{what}; its log loss is lower than that of {first.name} by {gap}"
        return f"{what}; no other set is better by {MIN_STANDARD_ERRORS:g} standard errors"


def choose_readings(
    differences: Tensor,
    candidates: Sequence[Reading],
    sets: Sequence[Sequence[Reading]],
    target: Tensor,
    group: Sequence[int],
    scale: Tensor | None = None,
) -> ReadingChoice:
    """Fit a head for each set out of fold, and take the first unless another is clearly better.

    Args:
        differences: (n, C, H) states of response a minus those of b.
        candidates: C readings.
        sets: of candidates.
        target: (n,) labels.
        group: (n,) equal for pairs of one dialogue.
        scale: (C, H) of the differences of all pairs, None = of these.
    """
    if scale is None:
        scale = difference_scale([differences.flatten(1)], len(candidates)).view(differences.shape[1:])
    table: list[SetEvidence] = []
    first_loss = torch.empty(0)
    for readings in sets:
        columns = [candidates.index(reading) for reading in readings]
        found = choose_penalty((differences[:, columns].float() / scale[columns]).flatten(1), target, group)
        first_loss = found.loss if not table else first_loss
        gain = first_loss - found.loss
        error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
        figures = accuracy_of(found.margin, target), float(found.loss.mean()), float(gain.mean()), error
        table.append(SetEvidence(list(readings), found.penalty, *figures))
    better = [one for one in table[1:] if one.advantage > MIN_STANDARD_ERRORS * one.standard_error]
    return ReadingChoice(max(better, key=lambda one: one.advantage, default=table[0]), table, len(set(group)) > 1)


@dataclass(frozen=True)
class ReadingPlan:
    """The readings that a reward model may use, before the choice on the seed.

    Attributes:
        sets: of readings to choose from, the usual one first.
        candidates: C readings, all that are in a set.
        tokens: what they need of the chat template.
    """

    sets: list[list[Reading]]
    candidates: list[Reading]
    tokens: TurnTokens

    @property
    def usual(self) -> list[Reading]:
        """The default set."""
        return self.sets[0]

    @property
    def seed_readings(self) -> list[Reading]:
        """All that the pass over the seed reads: the candidates, and where the template can ask `answer_reading`."""
        asked = [self.answer_reading] if self.tokens.question else []
        return list(dict.fromkeys([*self.candidates, *asked]))

    @property
    def answer_reading(self) -> Reading:
        """The state that the language model would answer from: after the question and the last layer."""
        return Reading("judge", max(one.layer for one in self.candidates))

    @property
    def is_open(self) -> bool:
        """Whether there is something to choose."""
        return len(self.sets) > 1

    def can_choose(self, trainer: Trainer) -> bool:
        """Whether there is something to choose and a seed to choose on; says why where there is none.

        Args:
            trainer: at the start of a fit.
        """
        if not self.is_open:
            return False
        reason = None
        if not hasattr(getattr(trainer, "datamodule", None), "seed_labels"):
            reason = "there is no PreferenceDataModule, whose seed would tell"
        elif isinstance(trainer.strategy, ShardStrategy):
            reason = "a body that is going to be sharded is not read whole before"
        if reason is not None:
            rank_zero_info(f"Reading: auto takes {', '.join(map(str, self.usual))}, the usual choice: {reason}.")
        return reason is None

    def choose(
        self, trainer: Trainer, reward_model: RewardModel, answer: Tensor | None = None
    ) -> tuple[ReadingChoice, States]:
        """Choose on the labels of the seed, once, before anything is trained; the same choice on every rank.

        Args:
            trainer: with a `PreferenceDataModule`, none of whose other pairs is read.
            reward_model: its body has its pretrained weights and all of its layers.
            answer: (H,) as `answer_direction` gives it, to be measured in the same pass.

        Returns:
            The choice, and the states of the seed at what was chosen.
        """
        data = seed_data(trainer)
        reward_model.lay_out_with(self.tokens)
        readings = self.seed_readings
        pair_id, states = seed_states(trainer, reward_model, data, readings)
        differences = states[:, 0].float() - states[:, 1].float()
        target, group = data.seed_labels(pair_id), data.dialogues(pair_id).tolist()
        choice = choose_readings(differences, readings, self.sets, target, group)
        if answer is not None:
            margin = differences[:, readings.index(self.answer_reading)] @ answer
            choice = replace(choice, answer_accuracy=accuracy_of(margin, target))
        choice = trainer.strategy.broadcast(choice)
        columns = [readings.index(reading) for reading in choice.chosen.readings]
        return choice, (pair_id, states[:, :, columns])


def measure_readings(trainer: Trainer, reward_model: RewardModel) -> ReadingChoice:
    """The penalty of the head at the model's readings, and how it does out of fold; the same on every rank.

    Unlike a choice of readings this knows the states of the pool, whose differences the penalty is measured in.

    Args:
        trainer: with a `PreferenceDataModule`.
        reward_model: its readings are read.
    """
    data = seed_data(trainer)
    pair_id, differences, scale = seed_differences(trainer, reward_model)
    readings, shape = reward_model.readings, (len(reward_model.readings), -1)
    target, group = data.seed_labels(pair_id), data.dialogues(pair_id).tolist()
    found = choose_readings(differences.unflatten(1, shape), readings, [readings], target, group, scale.view(shape))
    return trainer.strategy.broadcast(found)


def seed_data(trainer: Trainer) -> Any:
    """The trainer's `PreferenceDataModule`; `UserError` where it has another or none."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "seed_labels"):
        raise UserError(
            "data: got no PreferenceDataModule, whose seed chooses the penalty and the reading; use one, or "
            "backbone.train lora with a reading such as [mean]"
        )
    return data


def seed_differences(trainer: Trainer, reward_model: RewardModel) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of the seed pairs (n,), differences of their states (n, D) and the scale of these (D,), on every rank.

    Args:
        trainer: with a `PreferenceDataModule`.
        reward_model: its readings are read.
    """
    batches = with_bar(trainer, seed_data(trainer).scoring_dataloader("seed"), "Reading the seed")
    with evaluating(reward_model), trainer.precision_plugin.predict_step_context():
        own = own_differences(reward_model, map(trainer.strategy.batch_to_device, batches))
    pair_id, differences, _, scale = joined_differences(gather_over_ranks(own), len(reward_model.readings))
    return pair_id, differences, scale


def plan_readings(
    reward_model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    wanted: str | Sequence[str],
    question: str,
    max_length: int | None = None,
) -> ReadingPlan:
    """What the setting `model.reading` means for a model and its template.

    Args:
        reward_model: with its whole body.
        tokenizer: with a chat template.
        wanted: `auto`, one reading or several.
        question: what `judge` asks.
        max_length: most tokens in a conversation, None = not known.

    Raises:
        UserError: if the model or its template cannot be read so; `auto` leaves out what they cannot do.
    """
    texts = [wanted] if isinstance(wanted, str) else list(wanted)
    if not reward_model.is_decoder:
        if texts not in (["auto"], ["last"]):
            raise UserError(f"model.reading: got {', '.join(texts)} for an encoder, which pools by itself; use last")
        return ReadingPlan([[]], [], TurnTokens())
    num_layers = reward_model.num_layers
    if texts != ["auto"]:
        readings = parse_readings(texts, num_layers)
        if any(reading.layer < num_layers for reading in readings):
            layers_and_norm(reward_model.body)
        return ReadingPlan([readings], readings, turn_tokens(tokenizer, readings, question))
    positions = num_positions(reward_model.model.config, unwrapped(reward_model.body))
    for can_ask in (True, False):
        sets = candidate_sets(num_layers, can_ask)
        candidates = list(dict.fromkeys(reading for readings in sets for reading in readings))
        try:
            layers_and_norm(reward_model.body)
            tokens = turn_tokens(tokenizer, candidates, question)
            if max_length is not None:
                found = length_finding(max_length, positions, len(tokens.question))
                raise_problems(errors([found]))
            return ReadingPlan(sets, candidates, tokens)
        except UserError as error:
            rank_zero_info(f"Reading: auto tries fewer places, as {error.problems[0]}.")
    standard = [standard_reading(num_layers)]
    return ReadingPlan([standard], standard, TurnTokens())


def question_length(tokenizer: PreTrainedTokenizerBase, wanted: str | Sequence[str], question: str) -> int:
    """How many tokens the setting `model.reading` may append to each conversation.

    Raises:
        UserError: the template cannot ask; `auto` does not ask then.
    """
    kinds = {str(text).partition("@")[0] for text in ([wanted] if isinstance(wanted, str) else wanted)}
    if not kinds & {"judge", "auto"}:
        return 0
    try:
        return len(turn_tokens(tokenizer, [Reading("judge", 1)], question).question)
    except UserError:
        if "judge" in kinds:
            raise
        return 0


Differences = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""(n,) pair ids, (n, D) float32 differences of states, (n,) targets, and what differences are divided by, if known."""


def own_differences(reward_model: RewardModel, batches: Iterable[PairBatch]) -> Differences:
    """This rank's part of some batches of pairs, on the CPU; rows that only fill up a rank are left out."""
    parts, scale = [], None
    for batch in batches:
        inputs = batch.inputs
        if isinstance(inputs, Features):
            hidden, scale = inputs.hidden, inputs.scale
        else:
            hidden = reward_model.states(inputs)
        first, second = hidden.flatten(1).float().cpu().split(batch.num_pairs)
        real = (batch.weight > 0).cpu()
        parts.append((batch.pair_id.cpu()[real], (first - second)[real], batch.target.cpu()[real]))
    size = len(reward_model.readings) * reward_model.hidden_size
    nothing = torch.empty(0, dtype=torch.int64), torch.empty(0, size), torch.empty(0)
    pair_id, differences, target = map(torch.cat, zip(*(parts or [nothing]), strict=True))
    return pair_id, differences, target, None if scale is None else scale.cpu()


def joined_differences(parts: Sequence[Differences], num_readings: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of all ranks in the order of their ids, so that neither ranks nor batches change a sum, and their scale."""
    pair_id, differences, target = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
    order = pair_id.argsort(stable=True)
    scale = next((part[3] for part in parts if part[3] is not None), None)
    if scale is None:
        scale = difference_scale([differences], num_readings)
    return pair_id[order], differences[order], target[order], scale
