"""Helpers of the data tests: files of pairs, and data modules over them with any trainer."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.records import Selection

WORDS = "red green blue one two three four five sun moon rain snow tree leaf root seed".split()


def _sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(3, 12)))


@pytest.fixture
def make_rows() -> Callable[..., list[dict]]:
    """`make_rows(n, seed=0)`: n labelled rows, about three pairs a prompt."""

    def make(num_rows: int, seed: int = 0) -> list[dict]:
        generator = random.Random(seed)
        prompts = [f"{_sentence(generator)} {seed} {i}" for i in range(-(-num_rows // 3))]
        return [
            {
                "prompt": generator.choice(prompts),
                "response_a": f"{_sentence(generator)} {i}",
                "response_b": f"{_sentence(generator)} -{i}",
                "label": generator.randint(0, 1),
            }
            for i in range(num_rows)
        ]

    return make


@pytest.fixture
def write_jsonl(tmp_path) -> Callable[[str, list], str]:
    def write(name: str, rows: list) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def load(tiny_tokenizer, tmp_path) -> Callable[..., Any]:
    """`load(path, rank=0, world_size=1, epoch=0, **arguments)`: a data module, set up, below a pretended trainer.

    `kind` is its class, `PreferenceDataModule` unless it is given.
    """

    def make(path, rank=0, world_size=1, epoch=0, stage=None, tokenizer=None, kind=PreferenceDataModule, **arguments):
        datamodule = kind(path, **{"cache_dir": str(tmp_path / "cache"), **arguments})
        datamodule.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world_size,
            current_epoch=epoch,
            lightning_module=SimpleNamespace(tokenizer=tokenizer or tiny_tokenizer),
            state=SimpleNamespace(fn="fit"),
        )
        datamodule.prepare_data()
        datamodule.setup(stage)
        return datamodule

    return make


def _as_dict(batch) -> dict:
    """Pair id -> everything that is said of the pair, without the padding."""
    lengths = batch.inputs.num_tokens.tolist()
    ids = [tuple(row[:length]) for row, length in zip(batch.inputs.input_ids.tolist(), lengths, strict=True)]
    n = batch.num_pairs
    rows = zip(ids[:n], ids[n:], batch.target.tolist(), batch.weight.tolist(), strict=True)
    return dict(zip(batch.pair_id.tolist(), rows, strict=True))


@pytest.fixture
def step_contents() -> Callable[..., list[dict]]:
    """`step_contents(dm0, dm1, ...)`: for each step the pairs of all ranks: id -> (ids_a, ids_b, target, weight)."""

    def contents(*datamodules: PreferenceDataModule) -> list[dict]:
        loaders = [list(datamodule.train_dataloader()) for datamodule in datamodules]
        steps: list[dict] = []
        for ranks in zip(*loaders, strict=True):
            steps.append({})
            for batch in (batch for rank in ranks for batch in rank):
                for pair_id, content in _as_dict(batch).items():
                    if content[-1] > 0:
                        assert pair_id not in steps[-1]
                        steps[-1][pair_id] = content
            assert {batch.num_step_pairs for rank in ranks for batch in rank} == {len(steps[-1])}
        return steps

    return contents


@pytest.fixture
def by_id() -> Callable[..., dict]:
    """`by_id(loader, ...)`: pair id -> (ids_a, ids_b, target, weight) of scoring loaders, fillers left out."""

    def contents(*loaders) -> dict:
        found: dict = {}
        for batch in (batch for loader in loaders for batch in loader):
            for pair_id, content in _as_dict(batch).items():
                if content[-1] > 0:
                    assert pair_id not in found
                    found[pair_id] = content
        return found

    return contents


@pytest.fixture
def folder_bytes() -> Callable[[Path], dict[str, bytes]]:
    return lambda folder: {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def select() -> Callable[..., Selection]:
    """`select(ids, labels=all 1, round=0)`: a selection of pool pairs."""

    def make(ids, labels=None, round=0) -> Selection:
        ids = torch.as_tensor(ids)
        labels = torch.ones(len(ids)) if labels is None else torch.as_tensor(labels)
        return Selection(ids, labels.to(torch.int8), torch.full((len(ids),), 0.9), 1, round)

    return make


@pytest.fixture
def path(write_jsonl, make_rows) -> str:
    """120 labelled rows."""
    return write_jsonl("pairs.jsonl", make_rows(120))


@pytest.fixture
def datamodule(load, path, select) -> PreferenceDataModule:
    """Seed of about 48 pairs, pool of 48, test of 24; 20 of the pool accepted, a third of them with label 1."""
    datamodule = load(path, seed_fraction=0.5, pairs_per_step=16)
    datamodule.accept(select(datamodule.pair_ids("pool")[:20], [int(i % 3 == 0) for i in range(20)]))
    return datamodule
