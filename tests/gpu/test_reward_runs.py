"""Reward models on either device: 4 bits from training to export, a run that was killed, features of a frozen body."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from transformers import LlamaConfig, LlamaForCausalLM

from ser_lightning import Scorer
from ser_lightning.__main__ import main
from ser_lightning.runs.reward_run import read_reward_run
from tests.helpers import data, equal, evolution, module, plain_reward, trainer, weights


@pytest.fixture(scope="module")
def small_model(tiny_tokenizer, tmp_path_factory):
    """Wide enough for 4-bit blocks, and for the attention kernels of a GPU."""
    folder = tmp_path_factory.mktemp("small_model")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes, pad_token_id=0)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def texts(pairs_file):
    rows = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()[:12]]
    return [row["prompt"] for row in rows], [row["chosen"] for row in rows]


@pytest.mark.slow
def test_four_bits_train_and_export_what_they_score(
    tiny_run, small_model, pairs_file, device, accelerator, record_property
):
    precision = "bf16-mixed" if device == "cuda" else "32-true"
    flags = [f"--model.backbone.path={small_model}", "--model.backbone.train=lora", "--model.backbone.quantize=nf4"]
    flags += ["--model.backbone.dtype=bfloat16", "--model.optimizer.lr=0.003", f"--trainer.precision={precision}"]
    assert main(["fit", *tiny_run, *flags, f"--trainer.accelerator={accelerator}", "--run_dir=run"]) == 0
    trained = read_reward_run(Path("run")).weights
    assert any(float(p.abs().max()) > 0 for name, p in trained.items() if "lora_B" in name)  # 0 until it is trained
    assert main(["export", "run", "--dtype=float32"]) == 0
    prompts, responses = texts(pairs_file)
    both = zip(prompts, responses, strict=True)
    exported = torch.tensor([plain_reward(Path("run/export"), p, r)[0] for p, r in both])
    own = Scorer.load("run", device=device).score(prompts, responses)
    difference = float((own - exported).square().mean().sqrt() / exported.std())
    record_property("rms_difference_over_spread", difference)
    assert difference < 0.1, difference  # the run's products are in bfloat16


class Killed(Callback):
    """Ends a run in the middle of an epoch, as far as its files can tell."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_run_goes_on(small_model, pairs_file, device, accelerator, record_property):
    settings = {"max_rounds": 1, "epochs_per_round": 2, "restart": "nothing"}

    def start(run, *extra, ckpt_path=None):
        seed_everything(0, verbose=False)
        model, callback = module(small_model, train="lora"), evolution(**settings)
        trainer(run, callback, *extra, accelerator=accelerator).fit(model, data(pairs_file), ckpt_path=ckpt_path)
        return weights(model)

    unbroken = start("unbroken")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        start("broken", Killed())
    resumed = start("broken", ckpt_path="broken/checkpoints/last.ckpt")
    again = start("again")
    differences = {
        name: max(float((one[k] - unbroken[k]).abs().max()) for k in unbroken)
        for name, one in {"resumed": resumed, "run again": again}.items()
    }
    record_property("largest_differences_of_weights", differences)
    record_property("is_the_same_to_the_bit", equal(unbroken, resumed))
    if device == "cpu":
        assert equal(unbroken, resumed)
    # Atomic sums on a GPU come in any order: a resumed run is as near as the same run is to itself.
    assert differences["resumed"] <= max(1e-6, 3 * differences["run again"])


def test_features_of_a_frozen_body_are_those_of_a_cpu(small_model, pairs_file, device, accelerator, record_property):
    found = {}
    for name, kind in (("expected", "cpu"), ("own", accelerator)):
        seed_everything(0, verbose=False)
        model = module(small_model, train="head", lr=0.05)
        batches = data(pairs_file, cache_dir=f"cache-{name}")
        trainer(f"run-{name}", evolution(max_rounds=0), accelerator=kind).fit(model, batches)
        [file] = Path(f"cache-{name}").glob("*/features-*.bin")
        found[name] = np.fromfile(file, dtype=np.float32)
    assert len(found["own"]) == len(found["expected"]) > 0
    difference = float(np.abs(found["own"] - found["expected"]).max() / found["expected"].std())
    record_property("largest_difference_over_spread", difference)
    assert difference < 1e-4
