"""The data module of reinforcement learning: prompts to train on, without end, and prompts that are held out."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from ser_lightning.data.encode import encode_prompts
from ser_lightning.data.formats import earlier_prompts, parse_prompt, prompt_hash
from ser_lightning.data.sources import Source, open_sources
from ser_lightning.datamodules.base import PairFiles, Paths
from ser_lightning.datamodules.batches import Phase, epoch_order, make_loader
from ser_lightning.datamodules.label_firewall import SplitName
from ser_lightning.errors import Causes, UserError, problems_of, raise_problems
from ser_lightning.planning.budgets import rl_budgets
from ser_lightning.planning.memory import device_bytes
from ser_lightning.records import Prompt, PromptBatch, Turn

_CHUNK = 1024
"""Prompts that are read or encoded at once."""

PromptSplit = Literal["train", "val"]
"""What `predict` can answer."""


@dataclass(eq=False)
class PromptSteps(Dataset[PromptBatch]):
    """The steps of one epoch, consecutive pieces of an endless row of permutations of all prompts.

    Args:
        prompts: N prompts; a step may take some of them twice where there are few.
        prompts_per_step: prompts in a step, over all ranks.
    """

    prompts: Sequence[Prompt]
    epoch: int
    steps_per_epoch: int
    prompts_per_step: int
    seed: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __getitem__(self, index: int) -> PromptBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        step = self.epoch * self.steps_per_epoch + index
        first = step * self.prompts_per_step
        passes = range(first // len(self.prompts), (first + self.prompts_per_step - 1) // len(self.prompts) + 1)
        order = np.concatenate([epoch_order(len(self.prompts), self.seed, Phase(), number) for number in passes])
        start = first - passes[0] * len(self.prompts)
        positions = list(range(self.rank, self.prompts_per_step, self.world_size))
        mine = [self.prompts[order[start + position]] for position in positions]
        return PromptBatch(mine, positions, self.prompts_per_step, step)


class PromptBatches(Dataset[PromptBatch]):
    """Every prompt once; ranks get equally many batches, the last of some empty.

    Args:
        prompts_per_batch: most prompts in a batch of one rank.
    """

    def __init__(self, prompts: Sequence[Prompt], prompts_per_batch: int, rank: int, world_size: int) -> None:
        self.prompts, self.prompts_per_batch, self.rank, self.world_size = prompts, prompts_per_batch, rank, world_size

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.prompts) / self.world_size) / self.prompts_per_batch)

    def __getitem__(self, index: int) -> PromptBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        mine = range(self.rank, len(self.prompts), self.world_size)
        positions = list(mine[index * self.prompts_per_batch : (index + 1) * self.prompts_per_batch])
        return PromptBatch([self.prompts[i] for i in positions], positions, len(self.prompts), 0)


class PromptDataModule(PairFiles):
    """Prompts of pairs, whatever their labels, and of other files; splits as `PreferenceDataModule` makes them.

    Args:
        prompt_path: files of which only the column `prompt` is read: more prompts to train on.
        max_prompt_length: most tokens in a prompt; longer ones lose their oldest turns.
        prompts_per_step: prompts in a step, over all devices.
        steps_per_epoch: steps in an epoch; the next one goes on where it ends.
        num_val_prompts: most prompts of the test split to validate on.
        val_prompts_per_batch: prompts that a device answers at once to validate or predict.
        predict_split: prompts that `predict` answers, `train` or `val` (those that are held out).

    Attributes:
        train_prompts: distinct prompts to train on, in the order of their id, once `setup` has run.
        val_prompts: distinct prompts of the test split, the first ones in the order of their id.
    """

    def __init__(
        self,
        *args: Any,
        prompt_path: Paths | None = None,
        max_prompt_length: int = 256,
        prompts_per_step: int = 16,
        steps_per_epoch: int = 5,
        num_val_prompts: int = 128,
        val_prompts_per_batch: int = 64,
        predict_split: PromptSplit = "train",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prompt_path = prompt_path or []
        self.is_mapped_elsewhere = bool(prompt_path)
        self.max_prompt_length = max_prompt_length
        self.prompts_per_step, self.steps_per_epoch = prompts_per_step, steps_per_epoch
        self.num_val_prompts, self.val_prompts_per_batch = num_val_prompts, val_prompts_per_batch
        self.predict_split = predict_split
        self.train_prompts: list[Prompt] = []
        self.val_prompts: list[Prompt] = []
        counts = ("prompts_per_step", "steps_per_epoch", "num_val_prompts", "val_prompts_per_batch")
        raise_problems(self._problems("max_prompt_length", *counts))

    def start_problems(self, module: Any) -> list[str]:
        """Those of the files of prompts as well."""
        return problems_of(lambda: self._prompt_sources) + super().start_problems(module)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache, split, and encode the prompts; done once, whatever the stages."""
        if stage == "fit":
            self.check_reload()
        super().setup(stage)
        if self.val_prompts:
            return
        test = distinct_prompts(self._pair_prompts("test"))
        others = (prompt for split in ("seed", "pool") for prompt in self._pair_prompts(split))
        candidates = distinct_prompts(chain(others, self._file_prompts()))
        held_out = {*test, *(earlier for prompt in test.values() for earlier in earlier_prompts(prompt))}
        train = {
            prompt_id: prompt
            for prompt_id, prompt in candidates.items()
            # A longer prompt of a dialogue holds an answer to the shorter one.
            if prompt_id not in held_out and not any(earlier in test for earlier in earlier_prompts(prompt))
        }
        problems = [] if test else ["test: got no prompts to hold out; set data.test_path or data.test_fraction"]
        if not train:
            problems.append(
                "prompts: got none to train on outside the test set; give data.prompt_path, or more pairs in data.path"
            )
        raise_problems(problems)
        val = dict(list(test.items())[: self.num_val_prompts])
        self.train_prompts, num_train_cut = self._encoded(train)
        self.val_prompts, num_val_cut = self._encoded(val)
        cut = f"; {num_cut:,} cut" if (num_cut := num_train_cut + num_val_cut) else ""
        rank_zero_info(f"Prompts: {len(train):,} to train on, {len(val):,} held out{cut}")

    @cached_property
    def _prompt_sources(self) -> list[Source]:
        return open_sources(self.prompt_path, self.synthetic_pairs, self.policy.split_seed)

    def _pair_prompts(self, split: SplitName) -> Iterator[list[Turn]]:
        rows = self.data.rows(split)
        for start in range(0, len(rows), _CHUNK):
            yield from (pair.prompt for pair in self.data.store.read_texts(rows[start : start + _CHUNK]))

    def _file_prompts(self) -> Iterator[list[Turn]]:
        """The prompts of `prompt_path`; problems of several rows come as one error."""
        causes = Causes()
        for where, row in (found for source in self._prompt_sources for found in source.rows()):
            try:
                prompt = parse_prompt(row, self.columns, where)
            except UserError as error:
                causes.add(error.problems)
                if causes.is_full:
                    break
                continue
            if prompt is not None:
                yield prompt
        raise_problems(causes.lines())

    def _encoded(self, prompts: dict[int, list[Turn]]) -> tuple[list[Prompt], int]:
        """The prompts with their ids, and how many of them had to be cut."""
        tokenizer, items = self.tokenizer, list(prompts.items())
        encoded: list[Prompt] = []
        num_cut = 0
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            rows = encode_prompts(tokenizer, [turns for _, turns in chunk], sys.maxsize)
            for (prompt_id, turns), ids in zip(chunk, rows, strict=True):
                if len(ids) > self.max_prompt_length:
                    num_cut += 1
                    [ids] = encode_prompts(tokenizer, [turns], self.max_prompt_length)
                encoded.append(Prompt(prompt_id, turns, ids))
        return encoded, num_cut

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        """Items: this rank's prompts of one step."""
        rank, world_size = self._rank()
        if self.prompts_per_step < world_size:
            raise UserError(
                f"prompts_per_step: got {self.prompts_per_step} for {world_size} devices; use at least as many"
            )
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        self._check(self.train_prompts)
        sizes = (epoch, self.steps_per_epoch, self.prompts_per_step)
        steps = PromptSteps(self.train_prompts, *sizes, self.policy.split_seed, rank, world_size)
        return make_loader(steps, self.num_workers)

    def val_dataloader(self) -> DataLoader[PromptBatch]:
        """The held-out prompts, this rank's share of them."""
        return self._every_prompt(self.val_prompts)

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """The prompts of `predict_split`, this rank's share of them."""
        return self._every_prompt(self.train_prompts if self.predict_split == "train" else self.val_prompts)

    def _check(self, prompts: list[Prompt]) -> None:
        """Ask the module whether its policy has room for a response after each of them, and tell it what `auto` is."""
        if check := getattr(self.consumer, "check_prompts", None):
            check(prompts)
        if getattr(self.consumer, "wants_budgets", False):
            self._set_budgets(self.consumer)

    def _set_budgets(self, module: Any) -> None:
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        precision, is_trained = "32-true", False
        if self.trainer is not None:
            precision, is_trained = str(self.trainer.precision), self.trainer.state.fn == "fit"
        place = module.policy, module.start.backbone, precision, device, device_bytes(device)[1]
        module.auto_tokens = rl_budgets(*place, module.sampling.max_new_tokens, is_trained, module.models_beside)
        chosen = zip(module.token_settings, module.auto_tokens, ("training", "sampling"), strict=True)
        said = (f"{tokens:,} tokens in {use}" for given, tokens, use in chosen if given == "auto")
        rank_zero_info(f"Batches: auto is {' and '.join(said)}.")

    def _every_prompt(self, prompts: list[Prompt]) -> DataLoader[PromptBatch]:
        self._check(prompts)
        return make_loader(PromptBatches(prompts, self.val_prompts_per_batch, *self._rank()), self.num_workers)


def distinct_prompts(prompts: Iterable[list[Turn]]) -> dict[int, list[Turn]]:
    """Prompts by their id, ascending; of those that differ in case or white space alone, always the same one."""
    found: dict[int, list[Turn]] = {}
    for prompt in prompts:
        prompt_id = prompt_hash(prompt)
        if prompt_id not in found or json.dumps(prompt) < json.dumps(found[prompt_id]):
            found[prompt_id] = prompt
    return dict(sorted(found.items()))
