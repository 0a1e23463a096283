"""The states that the study's heads read: computed once for a data set and a body, and kept in a folder.

Shapes: n pairs, C readings, H the size of a state.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ser_lightning.data.encode import EncodedPair, encode_pairs
from ser_lightning.data.formats import parse_row
from ser_lightning.data.packing import num_shared_tokens
from ser_lightning.evolution.comparison_states import comparison_states
from ser_lightning.evolution.pairwise_judge import PairwiseJudge
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.readings import Kind, Reading, turn_tokens
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.records import PreferencePair

KINDS: tuple[Kind, ...] = ("last", "mean", "judge")
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)
MAX_LENGTH, TOKENS_PER_BATCH, CHUNK = 512, 4096, 256
NUM_FIFTHS = 5


@dataclass(frozen=True)
class StudyPairs:
    """Labelled pairs of a data set and their states under one body."""

    states: Tensor
    """(n, 2, C, H) bfloat16."""
    readings: list[str]
    """C, as YAML has them."""
    label: Tensor
    """(n,) 1 where a is the better response."""
    prompt: list[str]
    """n hashes: the first 12 hexadecimal digits of the SHA-256 of the prompt's turns."""
    num_tokens: Tensor
    """(n, 2) tokens of both conversations."""
    pair_id: list[int]
    """n."""

    @property
    def fifth(self) -> np.ndarray:
        """(n,) which fifth of the prompts a pair belongs to."""
        return np.array([int(int(prompt, 16) / 16**12 * NUM_FIFTHS) for prompt in self.prompt])

    @property
    def group(self) -> np.ndarray:
        """(n,) a number for each prompt."""
        return np.array([int(prompt, 16) for prompt in self.prompt])

    @property
    def num_layers(self) -> int:
        """Of the body: the deepest reading is after its last one."""
        return max(int(reading.rpartition("@")[2]) for reading in self.readings)

    def at(self, readings: Sequence[Reading]) -> Tensor:
        """(n, 2, K, H) float32 states at K of the readings."""
        return self.states[:, :, [self.readings.index(str(reading)) for reading in readings]].float()

    def save(self, file: Path) -> None:
        """Write it to a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(asdict(self), file)

    @classmethod
    def load(cls, file: Path) -> "StudyPairs":
        """What `save` wrote."""
        return cls(**torch.load(file, weights_only=True))


def prompt_hash(pair: PreferencePair) -> str:
    """See `StudyPairs.prompt`."""
    return hashlib.sha256(json.dumps(pair.prompt).encode()).hexdigest()[:12]


def candidates(num_layers: int) -> list[Reading]:
    """Every kind at every depth."""
    return [Reading(kind, round(num_layers * depth)) for kind in KINDS for depth in DEPTHS]


def compute_states(files: Sequence[Path], model: Path, first: int | None, partial: Path) -> StudyPairs:
    """One pass of a body over all labelled pairs of some files, each pair once.

    Args:
        files: of preference pairs.
        model: folder of a language model.
        first: how many pairs of the files, None = all.
        partial: folder that takes the states batch by batch. A pass that was killed goes on there.
    """
    backbone = Backbone(str(model), train="head", dtype="bfloat16")
    tokenizer, reward_model = load_tokenizer(backbone), load_reward_model(backbone).eval()
    readings = candidates(reward_model.num_layers)
    reward_model.read_at(readings, turn_tokens(tokenizer, readings))
    pairs = list({pair.pair_id: pair for pair in _labelled(files)}.values())[:first]
    both = [
        (pair, ids)
        for start in range(0, len(pairs), CHUNK)
        for pair, ids in zip(
            pairs[start : start + CHUNK], encode_pairs(tokenizer, pairs[start : start + CHUNK], MAX_LENGTH), strict=True
        )
        if ids is not None and ids.ids_a != ids.ids_b
    ]
    pairs, encoded = [pair for pair, _ in both], [ids for _, ids in both]
    return StudyPairs(
        states=_states(reward_model, encoded, int(tokenizer.pad_token_id), partial),
        readings=[str(reading) for reading in readings],
        label=torch.tensor([pair.label for pair in pairs]),
        prompt=[prompt_hash(pair) for pair in pairs],
        num_tokens=torch.tensor([[len(ids.ids_a), len(ids.ids_b)] for ids in encoded]),
        pair_id=[pair.pair_id for pair in pairs],
    )


def compute_comparisons(files: Sequence[Path], model: Path, pairs: StudyPairs) -> PairwiseJudge:
    """What a pairwise judge reads of the pairs of some files, in one pass of a body.

    Args:
        files: of preference pairs.
        model: folder of a language model.
        pairs: which of them.
    """
    backbone = Backbone(str(model), train="head", dtype="bfloat16")
    tokenizer, reward_model = load_tokenizer(backbone), load_reward_model(backbone).eval()
    found = {pair.pair_id: pair for pair in _labelled(files)}
    ids = sorted(pairs.pair_id)
    lengths = dict(zip(pairs.pair_id, pairs.num_tokens.sum(1).tolist(), strict=True))
    longest_first = sorted(ids, key=lambda i: -lengths[i])
    states = {}
    for start in tqdm(range(0, len(ids), CHUNK), desc="comparisons"):
        chunk = longest_first[start : start + CHUNK]
        with torch.inference_mode():
            compared = comparison_states(
                reward_model, tokenizer, [found[i] for i in chunk], (2 * MAX_LENGTH, TOKENS_PER_BATCH)
            )
        states |= dict(zip(chunk, compared, strict=True))
    return PairwiseJudge(torch.tensor(ids), torch.stack([states[i] for i in ids]))


def _labelled(files: Sequence[Path]) -> Iterator[PreferencePair]:
    for file in files:
        for i, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
            pair = parse_row(json.loads(line), {}, f"{file}:{i + 1}")
            if isinstance(pair, PreferencePair) and pair.label is not None:
                yield pair


@torch.inference_mode()
def _states(reward_model: RewardModel, encoded: Sequence[EncodedPair], pad: int, partial: Path) -> Tensor:
    """(n, 2, C, H) bfloat16, in a file of `partial`; beside it the number of batches that are done."""
    lengths = np.array([[len(ids.ids_a), len(ids.ids_b)] for ids in encoded])
    shared = np.array([num_shared_tokens([np.asarray(ids.ids_a), np.asarray(ids.ids_b)]) for ids in encoded])
    shape = torch.Size((len(encoded), 2, len(reward_model.readings), reward_model.hidden_size))
    partial.mkdir(parents=True, exist_ok=True)
    counter = partial / "batches.txt"
    num_done = int(counter.read_text()) if counter.is_file() else 0
    found = torch.from_file(str(partial / "states"), shared=True, size=shape.numel(), dtype=torch.bfloat16).view(shape)
    batches = reward_model.layout.cut_pairs(lengths, shared, TOKENS_PER_BATCH)
    for number, batch in enumerate(tqdm(batches[num_done:], desc="states", initial=num_done, total=len(batches))):
        rows = [encoded[i].ids_a for i in batch] + [encoded[i].ids_b for i in batch]
        starts = [encoded[i].start for i in batch] * 2
        inputs = reward_model.layout.lay_out(rows, [*batch, *batch], pad, starts)
        first, second = reward_model.states(inputs).to(torch.bfloat16).split(len(batch))
        found[batch] = torch.stack([first, second], dim=1)
        counter.write_text(str(num_done + number + 1))
    return found
