"""From files to splits: what every data module over pairs shares, so that the same arguments give the same splits."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.columns import check_mapping, unread_columns
from ser_lightning.data.labels import check_labels
from ser_lightning.data.layouts import PADDED
from ser_lightning.data.reader import PairStore
from ser_lightning.data.sources import Source, open_sources
from ser_lightning.data.store import ROLES, build_store, default_cache, is_complete, store_key
from ser_lightning.datamodules.batches import Shard
from ser_lightning.datamodules.label_firewall import SplitPairs
from ser_lightning.datamodules.splitting import DataReport, SplitPolicy
from ser_lightning.errors import UserError, problems_of, raise_problems
from ser_lightning.models.probe import Finding, errors
from ser_lightning.models.tokens import MAX_TEXTS, warn_of_unknown
from ser_lightning.training.features import FeatureTable
from ser_lightning.training.strategies import strategy_kind

Paths = str | list[str]


def model_problems(module: Any, max_length: int | None) -> list[str]:
    """The errors among a module's `start_findings`; its notes are logged.

    Args:
        module: a LightningModule, or None.
        max_length: most tokens in a conversation, None if that is not known.
    """
    findings: list[Finding] = []
    if (ask := getattr(module, "start_findings", None)) is None:
        return []
    problems = problems_of(lambda: findings.extend(ask(max_length)))
    for finding in findings:
        if finding.says == "note":
            rank_zero_warn(finding.text)
    return problems + errors(findings)


class PairFiles(pl.LightningDataModule):
    """Files of pairs, encoded into the cache and split.

    Args:
        path: files (.jsonl, .json, .csv, .parquet), patterns such as data/*.jsonl, Hub names (owner/name:config@split)
            or `synthetic`. Rows without a label go to the pool.
        pool_path: more pairs for the pool.
        test_path: labelled pairs for the final test, instead of a share of `path`.
        new_data_path: files that arrived later, in the order of their arrival; labelled pairs join the seed, the others
            the pool, and what was split before stays where it is.
        columns: how the files call prompt, chosen, rejected, response_a, response_b, label, id, system, score_a,
            score_b or annotator, such as {prompt: question, chosen: response_j}; info.post is post inside info. A list
            of responses is read as all its pairs: {responses: completions.*.response, scores: completions.*.score}, or
            ranks, of which 1 is best.
        labels: what the labels of the files mean, such as {model_a: a, model_b: b, tie: tie}; null is no label.
            Without it 1, a and true say that response_a is better, 0, b and false that response_b is, 0.5 and tie that
            neither is.
        seed_fraction: share of the labelled pairs outside the test set that keep their label, if no pair comes
            unlabelled.
        test_fraction: share of the labelled pairs for the test set, if there is no `test_path`.
        val_fraction: share of the seed for validation; training never sees it.
        max_length: most tokens in a conversation; longer prompts lose their oldest turns, and a pair with a longer
            response is dropped.
        num_workers: processes that load batches, 0 = the main one.
        split_seed: chooses the splits, the order of the batches and the synthetic pairs.
        cache_dir: folder for encoded pairs, default ser-lightning in the user's cache folder.
        synthetic_pairs: pairs that `path: synthetic` makes.

    Attributes:
        tokenizer: the module's, unless one is set by hand.

    A data module asks the module that it feeds for what batches depend on, through `consumer`: `tokenizer` in
    `prepare_data`, and once the model is loaded `layout`, `reward_model` and the like. A module asks back
    once, for the seed that its readings are chosen on (docs/design.md).
    """

    def __init__(
        self,
        path: Paths = "synthetic",
        pool_path: Paths | None = None,
        test_path: Paths | None = None,
        new_data_path: Paths | None = None,
        columns: dict[str, str] | None = None,
        labels: dict[str, str | None] | None = None,
        seed_fraction: float = 0.15,
        test_fraction: float = 0.2,
        val_fraction: float = 0.0,
        max_length: int = 512,
        num_workers: int = 0,
        split_seed: int = 0,
        cache_dir: str | None = None,
        synthetic_pairs: int = 2000,
    ) -> None:
        super().__init__()
        self.paths = dict(zip(ROLES, (path, pool_path or [], test_path or []), strict=True))
        self.more_paths = [new_data_path] if isinstance(new_data_path, str) else new_data_path or []
        self.columns = columns or {}
        self.labels = labels and {str(key): meaning for key, meaning in labels.items()}  # YAML makes numbers
        self.policy = SplitPolicy(seed_fraction, test_fraction, val_fraction, split_seed)
        self.max_length = max_length
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache()
        self.synthetic_pairs = synthetic_pairs
        self.is_mapped_elsewhere = False
        """Whether files that hold no pairs may have the mapped columns."""
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._data: SplitPairs | None = None
        self._sources: list[dict[str, list[Source]]] | None = None
        self._was_checked = False

    def _problems(self, *counts: str) -> list[str]:
        """What is wrong with the arguments, a line each; `counts` names further ones that must be at least 1."""
        found = check_mapping(self.columns) + check_labels(self.labels or {}) + self.policy.problems()
        if "synthetic" in self.more_paths:
            found.append("new_data_path: got synthetic, which would make the same pairs again; give files")
        for name in ("max_length", "synthetic_pairs", *counts):
            if (value := getattr(self, name)) != "auto" and value < 1:
                found.append(f"{name}: got {value}; use at least 1")
        if self.num_workers < 0:
            found.append(f"num_workers: got {self.num_workers}; use 0 or more")
        return found

    def start_problems(self, module: Any) -> list[str]:
        """What is wrong with the files and with the module's model, before anything is encoded; notes are logged.

        Args:
            module: the one that the batches are for; one without `start_findings` is not asked.
        """
        self._was_checked = True
        return problems_of(self._open_sources) + model_problems(module, self.max_length)

    def prepare_data(self) -> None:
        """Encode the pairs into the cache, unless they are there."""
        if not self._was_checked:
            raise_problems(self.start_problems(self.consumer))
        for folder, sources in zip(self._folders(), self._open_sources(), strict=True):
            if is_complete(folder):
                rank_zero_info(f"Encoded pairs: found in the cache, {folder}")
                continue
            # An arrival may have the project's own names.
            is_mapped = sources is self._open_sources()[0] and not self.is_mapped_elsewhere
            build_store(folder, sources, self.columns, self.tokenizer, self.max_length, self.labels, is_mapped)
            rank_zero_info(f"Encoded pairs: written to {folder}")

    @property
    def is_encoded(self) -> bool:
        """Whether the cache holds all pairs, so that `prepare_data` would encode none; reads them all."""
        return all(is_complete(folder) for folder in self._folders())

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and split; done once, whatever the stages."""
        if self._data is None:  # Lightning calls this once for every stage
            self._data = SplitPairs(PairStore(*self._folders()), self.policy)
            rank_zero_info(self.report.table())
            for line in self.report.few_prompts():
                rank_zero_warn(line)
            pairs = self._data.store.read_texts(range(min(MAX_TEXTS, len(self._data.store))))
            texts = [text for pair in pairs for text in (*(t["content"] for t in pair.prompt[-1:]), pair.response_a)]
            warn_of_unknown(self.tokenizer, texts, "data")

    @property
    def data(self) -> SplitPairs:
        """The split pairs, once `setup` has run."""
        if self._data is None:
            raise RuntimeError(f"{type(self).__name__} is not set up: call prepare_data and setup first")
        return self._data

    @property
    def report(self) -> DataReport:
        """What was read, dropped, and kept where."""
        return self.data.report

    def _open_sources(self) -> list[dict[str, list[Source]]]:
        """The sources of each store: what was there at first, and every arrival by itself."""
        if self._sources is None:
            open_all = partial(open_sources, num_synthetic=self.synthetic_pairs, seed=self.policy.split_seed)
            first = {role: open_all(paths) for role, paths in self.paths.items()}
            arrivals = ({**dict.fromkeys(ROLES, []), "path": open_all(path)} for path in self.more_paths)
            self._sources = [first, *arrivals]
        return self._sources

    @property
    def consumer(self) -> Any:
        """The LightningModule that the batches are for; None without a trainer."""
        return None if self.trainer is None else self.trainer.lightning_module

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """With a pad token and a chat template."""
        if self._tokenizer is None:
            if self.consumer is None:
                raise RuntimeError(f"{type(self).__name__} has no tokenizer: attach a Trainer or set `.tokenizer`")
            self._tokenizer = self.consumer.tokenizer
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def _folders(self) -> list[Path]:
        settings = (self.columns, self.tokenizer, self.max_length, self.labels)
        return [self.cache_dir / store_key(sources, *settings) for sources in self._open_sources()]

    def _no_label_hint(self) -> str:
        """What to add to a message about missing labels: the columns of the first row that nothing reads."""
        source = next((source for sources in self._open_sources() for source in sources["path"]), None)
        row = next(iter(source.rows()), ("", {}))[1] if source else {}
        return unread_columns(row, self.columns)

    def check_reload(self) -> None:
        """`UserError` where Lightning would go through the first epoch's order again and again."""
        every = getattr(self.trainer, "reload_dataloaders_every_n_epochs", 1)
        if every != 1:
            raise UserError(
                f"trainer.reload_dataloaders_every_n_epochs: got {every}; need 1: every epoch has its own order"
            )

    def _rank(self) -> tuple[int, int]:
        """This process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _shard(self, tokens_per_batch: int, features: FeatureTable | None = None) -> Shard:
        pad_token_id = int(self.tokenizer.pad_token_id)
        # A rank that is done with its batches would keep the others waiting for its part of a body in shards.
        is_sharded = strategy_kind(getattr(self.trainer, "strategy", "auto")) == "fsdp"
        rank, world_size = self._rank()
        return Shard(
            rank,
            world_size,
            tokens_per_batch,
            pad_token_id,
            getattr(self.consumer, "layout", PADDED),  # padded rows are what every model reads
            features,
            needs_equal_counts=is_sharded,
        )

    def feature_files(self, key: str) -> list[Path]:
        """Where the features of each part of the store belong, under the key of a body."""
        return [folder / f"features-{key}.bin" for folder in self.data.store.folders]

    def part_ids(self, part: int) -> Tensor:
        """(N,) int64 pair ids of the rows of one part of the store."""
        first, end = self.data.store.parts[part : part + 2]
        return torch.from_numpy(self.data.store.pair_id[first:end])
