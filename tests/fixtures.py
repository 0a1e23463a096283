"""Everything tests share: offline, seeded, in a folder of their own, with models of a few thousand weights."""

import contextlib
import functools
import gc
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch  # noqa: F401  its log handler keeps the stderr that it finds, which must outlive a test
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.shared import tiny_model
from ser_lightning.__main__ import main
from ser_lightning.report import figures, policy

DRAW = figures.draw


def pytest_collection_finish():
    """What was imported stays: the garbage collector, which took a fifth of the time, no longer goes through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """A folder, a cache and an environment that are gone after the test, and the same random numbers before it."""
    environment = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    cache = tmp_path.with_name(f"{tmp_path.name}-cache")  # `mktemp` would look through the folders of all tests
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    _seed()
    yield
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session", autouse=True)
def _empty_pictures():
    """To draw the report of a tiny run takes longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (figures, policy):
            patch.setattr(module, "draw", lambda *_, **__: "<svg/>")
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Thousands of small files: that each is on the disk before the next one is of no use to a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: None)
        yield


@pytest.fixture
def real_pictures(monkeypatch):
    """For a test that looks at pictures of a report, or at what they may stumble over: they are drawn."""
    for module in (figures, policy):
        monkeypatch.setattr(module, "draw", DRAW)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with BOS, EOS, padding and a chat template."""
    return tiny_model.byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A two-layer Llama of width 16 with that tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tiny_model.write_model(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """80 pairs in which the answer that holds the right sum was chosen, as JSON lines."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    tiny_model.write_pairs(path, 80)
    return path


@pytest.fixture(scope="session")
def _tiny_flags(tiny_model_dir, pairs_file) -> tuple[str, ...]:
    return (
        *("--config", "rm.yaml"),
        f"--model.backbone.path={tiny_model_dir}",
        *("--model.backbone.train=full", "--model.reading=last", f"--data.path={pairs_file}"),
        *("--data.max_length=64", "--data.pairs_per_step=8", "--data.seed_fraction=0.3"),
        *("--evolution.max_rounds=1", "--evolution.seed_epochs=1"),
        *("--evolution.epochs_per_round=1", "--evolution.folds=2"),
        *("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
    )


@pytest.fixture
def tiny_run(_tiny_flags) -> list[str]:
    """`--config rm.yaml` and the flags that make it a run of a second: tiny model, few pairs, one round."""
    return list(_tiny_flags)


@pytest.fixture(scope="session")
def _run_of(_tiny_flags, tmp_path_factory) -> Callable[..., Path]:
    """From flags to the folder of a run, which nobody may change; the same flags are fitted once."""
    cache = tmp_path_factory.mktemp("cache")

    @functools.cache
    def fit(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("fitted")
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(cache))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert main(["fit", *_tiny_flags, *flags, "--run_dir=run"]) == 0
        return folder / "run"

    return fit


@pytest.fixture
def tiny_fit(_run_of) -> Callable[..., Path]:
    """`tiny_fit(*flags, name="run")` leaves what `fit` with `tiny_run` and the flags leaves, in the folder `name`."""

    def copied(*flags: str, name: str = "run") -> Path:
        run = _run_of(*flags)
        _seed()  # whether it was fitted now or for an earlier test
        return Path(shutil.copytree(run, name))

    return copied
