import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.export.model_card import model_card
from ser_lightning.export.policy import _check_that_it_ends, export_policy
from tests.policy_runs import loaded, own_logits, plain_logits, sft, sft_flags

CONVERSATION = [{"role": "user", "content": "What is 2 plus 2?"}, {"role": "assistant", "content": "It is 4."}]


@pytest.fixture(params=["full", "lora"])
def run(request, tiny_model_dir, pairs_file):
    """How a run trained, in the folder `run`."""
    assert main(["fit", *sft_flags(tiny_model_dir, pairs_file, request.param), "--run_dir=run"]) == 0
    return request.param


def test_plain_transformers_gives_the_trained_logits(run, tiny_model_dir):
    largest = export_policy(Path("run"), Path("out"))
    ids = AutoTokenizer.from_pretrained("out").apply_chat_template(CONVERSATION, return_dict=False, return_tensors="pt")
    assert ids.tolist() == [
        AutoTokenizer.from_pretrained(tiny_model_dir).apply_chat_template(CONVERSATION, return_dict=False)
    ]
    trained = loaded(sft(tiny_model_dir, run))
    trained.load_state_dict(torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"])
    exported = plain_logits("out", ids)
    assert torch.allclose(exported, own_logits(trained, ids), atol=1e-4) and largest < 1e-3
    assert not torch.allclose(exported, plain_logits(tiny_model_dir, ids), atol=1e-2)
    assert not list(Path("out").glob("adapter*"))


def test_an_export_can_be_trained_in_another_way_than_the_run(run, tiny_model_dir, pairs_file, capsys):
    assert main(["export", "run"]) == 0
    assert "Exported to run/export; its logits differ from the trained model's by at most" in capsys.readouterr().out
    ids = torch.tensor([[5, 9, 17, 33, 8, 44]])
    other = loaded(sft("run/export", "lora" if run == "full" else "full"))
    assert torch.allclose(own_logits(other, ids), plain_logits("run/export", ids), atol=1e-6)


def test_a_run_that_started_from_a_run_exports_what_both_have_learnt(run, pairs_file):
    assert main(["fit", *sft_flags("run", pairs_file, run), "--run_dir=two"]) == 0
    for name in ("run", "two"):
        export_policy(Path(name), Path(f"{name}-out"))
    ids = torch.tensor([[5, 9, 17, 33, 8, 44]])
    two = plain_logits("two-out", ids)
    cards = [Path(name, "README.md").read_text() for name in ("run-out", "two-out")]
    assert all("- base model: `tiny_model" in card and "It imitates the responses" in card for card in cards)
    assert not any("please a reward model" in card or "test pairs" in card for card in cards)
    assert torch.allclose(two, own_logits(loaded(sft("two", run)), ids), atol=1e-4)
    assert not torch.allclose(two, plain_logits("run-out", ids), atol=1e-3)


def test_the_card_of_the_rl_stage_says_what_it_was_measured_on(tmp_path):
    """The test pairs may have ended it (`on_overoptimised: stop`), so nothing is said of what they chose."""
    init_args = {"backbone": {"path": "runs/sft", "train": "lora"}}
    model = {"class_path": "ser_lightning.PPOModule", "init_args": init_args}
    config = {"model": model, "data": {"init_args": {"path": "pairs.jsonl"}}, "seed_everything": 0}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    Path("steps.csv").write_text("step,reward,kl\n0,0.5,0\n1,0.6,\n2,0.75,1.25\n")
    model_card(tmp_path, tmp_path, "policy", "the last step", "Fine.", base="owner/name")
    card = ModelCard.load("README.md")
    assert card.data.base_model == "owner/name" and "- base model: `owner/name`, trained with `lora`" in card.text
    assert "| 1 | 0.6 |  |\n| 2 | 0.75 | 1.25 |\n\nOn held-out prompts, those of the test pairs;" in card.text
    assert "chose nothing" not in card.text and "It was trained to please a reward model" in card.text


def test_a_base_that_names_a_temperature_and_does_not_say_that_it_samples(tiny_model_dir, pairs_file):
    """transformers loads such settings, which many models have, and refuses to save them."""
    shutil.copytree(tiny_model_dir, "base")
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6, "top_p": 0.9}
    Path("base/generation_config.json").write_text(json.dumps(settings))
    assert main(["fit", *sft_flags("base", pairs_file, "lora"), "--run_dir=run"]) == 0
    export_policy(Path("run"), Path("out"))
    found = GenerationConfig.from_pretrained("out")
    assert (found.do_sample, found.temperature, found.top_p, found.eos_token_id) == (True, 0.6, 0.9, [2])


def test_a_folder_writes_the_date_of_training_on_any_day(tiny_model_dir, pairs_file):
    shutil.copytree(tiny_model_dir, "base")
    tokenizer = AutoTokenizer.from_pretrained("base")
    tokenizer.chat_template = "{{ strftime_now('%Y') }}\n" + tokenizer.chat_template
    tokenizer.save_pretrained("base")
    assert main(["fit", *sft_flags("base", pairs_file), "--run_dir=run"]) == 0
    export_policy(Path("run"), Path("out"))
    written = AutoTokenizer.from_pretrained("out").apply_chat_template(CONVERSATION, tokenize=False)
    assert written.startswith("26 Jul 2024\n") and "2 plus 2?" in written


def test_it_writes_over_nothing_and_needs_a_checkpoint(tiny_model_dir, pairs_file, capsys):
    assert main(["fit", *sft_flags(tiny_model_dir, pairs_file), "--run_dir=run"]) == 0
    Path("out").mkdir()
    with pytest.raises(UserError, match="^--to: out exists already; name another folder or remove it$"):
        export_policy(Path("run"), Path("out"))
    assert not list(Path("out").iterdir())
    Path("run/checkpoints/last.ckpt").unlink()
    assert main(["export", "run"]) == 2
    assert "error: backbone.path: got run, which has no checkpoints/last.ckpt" in capsys.readouterr().err
    assert not Path("run/export").exists()


def test_an_export_that_computes_something_else_is_refused(run, monkeypatch):
    """Weights that are bent on their way to the disk."""
    save = LlamaForCausalLM.save_pretrained

    def bend(self, *args, **kwargs):
        with torch.no_grad():
            self.get_output_embeddings().weight.mul_(1.5)
        save(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", bend)
    with pytest.raises(UserError, match=r"^export: the folder's logits differ by up to \S+ from the trained model's"):
        export_policy(Path("run"), Path("out"))


def test_a_policy_that_is_not_finite_is_not_exported(tiny_model_dir, pairs_file, capsys):
    assert main(["fit", *sft_flags(tiny_model_dir, pairs_file), "--run_dir=sft"]) == 0
    saved = torch.load("sft/checkpoints/last.ckpt", weights_only=True)
    next(value for name, value in saved["state_dict"].items() if name.endswith("q_proj.weight")).fill_(torch.nan)
    torch.save(saved, "sft/checkpoints/last.ckpt")
    assert main(["export", "sft", "--to=out"]) == 2
    assert "has NaN or infinity in it" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("end", [None, 9])
def test_a_folder_whose_responses_go_on_is_refused(tiny_model_dir, tiny_tokenizer, end):
    lm = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    lm.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
    _check_that_it_ends(lm, tiny_tokenizer)
    lm.generation_config.eos_token_id = end
    with pytest.raises(UserError, match="^export: responses of the folder go on after '<eos>', with which they should"):
        _check_that_it_ends(lm, tiny_tokenizer)
