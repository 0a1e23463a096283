"""Everything tests share: offline, seeded, in a folder of their own, with models of a few thousand weights."""

import contextlib
import functools
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # two workers share two cores, and the models are tiny
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["WANDB_MODE"] = "offline"

import lightning.pytorch  # noqa: F401  its log handler keeps the stderr that it finds, which must outlive a test
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ser_lightning.__main__ import main

pytest_plugins = ["tests.data_fixtures", "tests.ranks"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def _isolated(tmp_path, tmp_path_factory, monkeypatch):
    """A folder, a cache and an environment that are gone after the test, and the same random numbers before it."""
    environment = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    _seed()
    yield
    os.environ.clear()
    os.environ.update(environment)


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with BOS, EOS, padding and a chat template."""
    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_tokenizer, tmp_path_factory) -> Path:
    """A two-layer Llama of width 16 with that tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny_model")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """80 pairs in which the answer that holds the right sum was chosen, as JSON lines."""
    generator = random.Random(0)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(80):
            right, wrong = f"It is {2 * number}.", f"It is {2 * number + generator.randint(1, 9)}, I think."
            row = {"prompt": f"What is {number} plus {number}?", "chosen": right, "rejected": wrong}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def _tiny_flags(tiny_model_dir, pairs_file) -> tuple[str, ...]:
    return (
        *("--config", "rm.yaml"),
        f"--model.backbone.path={tiny_model_dir}",
        *("--model.backbone.train=full", f"--data.path={pairs_file}"),
        *("--data.max_length=64", "--data.pairs_per_step=8", "--data.seed_fraction=0.3"),
        *("--evolution.max_rounds=1", "--evolution.seed_epochs=1"),
        *("--evolution.epochs_per_round=1", "--evolution.folds=2", "--evolution.min_steps=0"),
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
