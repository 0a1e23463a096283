import math
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from peft import AutoPeftModelForSequenceClassification
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.export.reward import _encoder_problems, _form_problems, export
from ser_lightning.models.backbone import Backbone
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.records import Padded
from ser_lightning.runs.files import delivered_round
from ser_lightning.runs.weights import write_weights
from ser_lightning.training.scoring import evaluating
from tests.helpers import problems_of, read_csv

TURNS = [
    [{"role": "user", "content": "What is 2 plus 2?"}, {"role": "assistant", "content": answer}]
    for answer in ("It is 4.", "It is 5, I think.", "No.")
]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_plain_transformers_gives_the_delivered_models_scores(tiny_fit, tiny_model_dir, train):
    tiny_fit(f"--model.backbone.train={train}")
    result = export(Path("run"), Path("out"))
    model = AutoModelForSequenceClassification.from_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    ids = [tokenizer.apply_chat_template(t, tokenize=True, return_dict=False) for t in TURNS]
    with torch.no_grad():
        exported = torch.cat([model.eval()(torch.tensor([row])).logits[0] for row in ids])
    saved = torch.load(f"run/rounds/{delivered_round(Path('run'))}/model.pt", weights_only=True)
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), train=train))
    reward_model.load_trainable_state(saved["weights"])
    with evaluating(reward_model):
        trained = torch.cat([reward_model(Padded(torch.tensor([row]), torch.ones(1, len(row)).long())) for row in ids])
    assert torch.allclose(exported, trained, atol=1e-4) and result.is_exact and result.largest < 1e-3
    assert exported.unique().numel() == 3
    assert model.config.reward_temperature == pytest.approx(saved["temperature"])
    assert model.config.reward_zero == pytest.approx(saved["zero"])
    assert model.config.num_labels == 1 and tokenizer.model_max_length == 64
    assert not any("lora" in name for name in model.state_dict())


def test_the_command_writes_into_the_run_and_never_twice(tiny_fit, capsys):
    tiny_fit()
    main(["export", "run"])
    assert "Exported to run/export" in capsys.readouterr().out
    assert Path("run/export/model.safetensors").is_file()
    with pytest.raises(UserError, match="exists already"):
        export(Path("run"), Path("run/export"))


def test_a_wrong_command_line_is_one_line(capsys):
    assert main(["export"]) == 2
    assert main(["export", "run", "--t", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_nothing_to_export_is_one_line():
    with pytest.raises(UserError, match="has no config.yaml"):
        export(Path("nowhere"), Path("out"))
    Path("empty").mkdir()
    with pytest.raises(UserError, match="has no rounds.csv"):
        delivered_round(Path("empty"))


def test_what_to_export_is_named_once(capsys):
    assert main(["export"]) == main(["export", "run", "--ckpt_path=x"]) == main(["export", "run", "--private"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "got nothing to export" in lines[0] and "got RUN and --ckpt_path" in lines[1]
    assert "--private: got it without --push" in lines[2]


def score_plainly(model, tokenizer):
    ids = [tokenizer.apply_chat_template(t, tokenize=True, return_dict=False) for t in TURNS]
    with torch.no_grad():
        return torch.cat([model.eval()(torch.tensor([row])).logits[0].float() for row in ids])


def test_an_adapter_goes_on_its_base_in_plain_peft(tiny_fit, tiny_model_dir):
    tiny_fit("--model.backbone.train=lora")
    export(Path("run"), Path("merged"))
    result = export(Path("run"), Path("adapter"), "adapter")
    assert result.largest < 1e-3 and result.num_reordered == 0
    tokenizer = AutoTokenizer.from_pretrained("adapter")
    adapter = AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=1)
    merged = AutoModelForSequenceClassification.from_pretrained("merged")
    assert torch.allclose(score_plainly(adapter, tokenizer), score_plainly(merged, tokenizer), atol=1e-4)
    assert not list(Path("adapter").glob("model*")) and Path("adapter/adapter_model.safetensors").is_file()
    card = Path("adapter/README.md").read_text()
    assert "from peft import AutoPeftModelForSequenceClassification" in card


def test_an_adapter_is_asked_of_a_run_that_has_one(tiny_fit, capsys):
    tiny_fit()
    assert main(["export", "run", "--form=adapter"]) == 2
    assert (
        "--form: got adapter for a run with backbone.train full, which has trained all weights"
        in capsys.readouterr().err
    )
    assert not Path("run/export").exists()


def test_an_adapter_that_peft_could_not_load_is_refused():
    gguf = SimpleNamespace(backbone=Backbone("x", train="lora", gguf_file="x.gguf"))
    assert _form_problems(gguf, "adapter") == [
        "--form: got adapter for a GGUF base, which cannot be named as one; use merged"
    ]
    frozen, encoder = SimpleNamespace(backbone=Backbone("x", train="head")), SimpleNamespace(is_decoder=False)
    assert _encoder_problems(frozen, encoder, "adapter") == [
        "--form: got adapter for a frozen encoder, whose head has several layers; use merged"
    ]
    assert _form_problems(gguf, "merged") == _encoder_problems(frozen, encoder, "merged") == []


def test_a_round_whose_rewards_are_beyond_all_numbers_is_not_exported(tiny_fit):
    tiny_fit()
    file = Path(f"run/rounds/{delivered_round(Path('run'))}/model.pt")
    saved = torch.load(file, weights_only=True)
    for name in ("model.score.weight", "model.model.norm.weight"):
        saved["weights"][name].mul_(1e38)
    torch.save(saved, file)
    (file.parent / "checksums.json").unlink()  # what is changed here is no damage
    with pytest.raises(
        UserError, match="^export: the run gives rewards that are not finite; take a round that did not"
    ):
        export(Path("run"), Path("out"))
    assert not Path("out").exists()


def test_a_run_on_the_first_layers_is_exported_whole(tiny_fit):
    tiny_fit("--model.backbone.train=lora", "--model.reading=[last@1]")
    assert export(Path("run"), Path("out")).is_exact
    assert AutoModelForSequenceClassification.from_pretrained("out").config.num_hidden_layers == 1


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_fewer_bits_are_merged_in_16_and_their_drift_is_reported(tiny_fit, quantize, capsys):
    tiny_fit("--model.backbone.train=lora", f"--model.backbone.quantize={quantize}")
    capsys.readouterr()
    assert main(["export", "run", "--dtype=bfloat16", "--to=out"]) == 0
    assert "(fewer bits than float32; " in capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained("out")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not hasattr(model.config, "quantization_config")


def test_a_body_that_was_trained_on_in_4_bits_is_exported_as_what_these_stand_for(tiny_fit, monkeypatch):
    """Merged into the weights before they were rounded, it would be another model."""
    tiny_fit("--model.backbone.train=lora", "--model.backbone.quantize=nf4")
    merged = export(Path("run"), Path("merged"))
    adapter = export(Path("run"), Path("adapter"), "adapter")
    monkeypatch.setattr("ser_lightning.export.reward.copy_rounded_weights", lambda source, target: None)
    with pytest.raises(UserError, match="the folder's rewards differ by up to") as caught:
        export(Path("run"), Path("unrounded"))
    unrounded = float(re.search(r"up to (\S+) from", str(caught.value))[1])
    assert max(merged.largest, adapter.largest) < unrounded / 10 < 1e-3
    assert "BitsAndBytesConfig" in Path("adapter/README.md").read_text()
    assert not hasattr(AutoModelForSequenceClassification.from_pretrained("merged").config, "quantization_config")


def test_any_checkpoint_of_the_run_can_be_exported(tiny_fit):
    tiny_fit()
    other = next(n for n in (0, 1) if n != delivered_round(Path("run")))
    assert main(["export", f"--ckpt_path=run/rounds/{other}/model.pt", "--to=round"]) == 0
    assert main(["export", "--ckpt_path=run/checkpoints/last.ckpt", "--to=last"]) == 0
    assert main(["export", "run", "--to=delivered"]) == 0
    folders = ("round", "last", "delivered")
    models = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders]
    heads = [model.score.weight for model in models]
    assert torch.equal(heads[1], heads[2]) and not torch.equal(heads[0], heads[2])


def test_a_checkpoint_without_a_run_is_one_line(tmp_path, capsys):
    torch.save({}, tmp_path / "x.ckpt")
    assert main(["export", f"--ckpt_path={tmp_path / 'x.ckpt'}"]) == main(["export", "--ckpt_path=none.ckpt"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "lies in no run folder" in lines[0] and "does not exist" in lines[1]


def test_a_checkpoint_of_something_else_is_one_line(tiny_fit, capsys):
    run = tiny_fit("--evolution.max_rounds=0")
    torch.save({"state_dict": {}, "reward_scale": {"zero": 0.0}}, run / "checkpoints/other.ckpt")
    file = run / "checkpoints/other.ckpt"
    [line] = problems_of(capsys, "export", f"--ckpt_path={file}", "--to=out")
    assert line == f"--ckpt_path: got {file}, which holds no temperature; give a checkpoint of a reward model"
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_length: 64", "max_length: null"))
    [line] = problems_of(capsys, "export", str(run), "--to=out")
    assert line == f"run: {config} has the max_length None; give the folder of a reward model's fit"


def test_the_card_says_what_the_run_says(tiny_fit, tiny_model_dir):
    tiny_fit()
    export(Path("run"), Path("out"))
    card = ModelCard.load("out/README.md")
    assert card.data.pipeline_tag == "text-classification" and "reward-model" in card.data.tags
    assert card.data.base_model is None  # a folder of this machine is no name on the Hub
    assert all(f"{float(row['test_accuracy']):.4g}" in card.text for row in read_csv("run/rounds.csv"))
    assert "random seeds: 0 (training), 0 (splits)" in card.text and "## Limits" in card.text
    assert "32 of 32 pairs keep their order" in card.text
    assert "{{" not in card.text and "None" not in card.text


def test_the_cards_code_runs_and_gives_the_models_reward(tiny_fit):
    tiny_fit()
    export(Path("run"), Path("out"))
    code = re.search(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(code.replace("FOLDER", "out"), names)
    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    ids = names["tokenizer"].apply_chat_template(names["messages"], return_dict=False, return_tensors="pt")
    assert names["reward"] == pytest.approx(model(ids).logits.item(), abs=1e-5)


BENT = {
    "scaled": lambda model: model.score.weight.mul_(1.5),
    "turned": lambda model: model.score.weight.neg_(),
    "another head": lambda model: model.score.weight.copy_(model.score.weight.flip(1)),
    "another layer": lambda model: model.model.layers[1].mlp.down_proj.weight.normal_(),
    "not finite": lambda model: model.score.weight.fill_(torch.nan),
}
OFTEN = {*((name, "float32") for name in BENT), ("scaled", "bfloat16")}


@pytest.mark.parametrize(
    ("bend", "dtype"),
    [
        pytest.param(bend, dtype, id=f"{name}-{dtype}", marks=() if (name, dtype) in OFTEN else pytest.mark.slow)
        for name, bend in BENT.items()
        for dtype in ("float32", "bfloat16", "float16")
    ],
)
def test_an_export_that_scores_otherwise_never_appears(tiny_fit, monkeypatch, bend, dtype):
    tiny_fit()
    save = LlamaForSequenceClassification.save_pretrained

    def bent(self, *args, **kwargs):
        with torch.no_grad():
            bend(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForSequenceClassification, "save_pretrained", bent)
    with pytest.raises(UserError, match=r"the folder's rewards differ by up to \S+ from|the rewards are not finite"):
        export(Path("run"), Path("out"), dtype=dtype)
    assert not list(Path().glob("*out*"))


@pytest.mark.parametrize(
    ("train", "dtype"),
    [
        *(("full", "bfloat16"), ("lora", "float16")),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("full", "float16"), ("lora", "bfloat16"))),
    ],
)
def test_a_right_folder_in_16_bits_passes(tiny_fit, train, dtype):
    tiny_fit(f"--model.backbone.train={train}")
    result = export(Path("run"), Path("out"), dtype=dtype)
    assert not result.is_exact and result.num_reordered <= 2
    assert AutoModelForSequenceClassification.from_pretrained("out").dtype == getattr(torch, dtype)


class Hub:
    """Stands in for the Hub's API; a refusing one raises what the real one does."""

    calls: list = []
    refuses = False

    def create_repo(self, name, **settings):
        if self.refuses:
            raise LocalTokenNotFoundError("no token")
        self.calls.append((name, settings))
        return f"https://hub/{name}"

    def upload_folder(self, folder_path, repo_id, **settings):
        self.calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_push_uploads_the_folder_and_says_where(tiny_fit, monkeypatch, capsys):
    tiny_fit()
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert main(["export", "run", "--push=me/model", "--private"]) == 0
    assert Hub.calls[0] == ("me/model", {"private": True, "exist_ok": True})
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(Hub.calls[1][1])
    assert "Uploaded to https://hub/me/model" in capsys.readouterr().out


def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(tiny_fit, monkeypatch, capsys):
    tiny_fit()
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "refuses", True)
    assert main(["export", "run", "--push=me/model"]) == 2
    assert "error: --push: me/model was not written (no token)" in capsys.readouterr().err
    assert Path("run/export/model.safetensors").is_file()


def test_trl_trains_a_policy_against_the_folder(tiny_fit, tiny_model_dir):
    import trl  # seconds that no other test needs

    tiny_fit()
    export(Path("run"), Path("out"))
    prompts = datasets.Dataset.from_list([{"prompt": TURNS[0][:1]}] * 4)
    settings = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4, "max_steps": 1}
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    arguments = trl.GRPOConfig(output_dir="trl", bf16=False, **settings, **quiet)
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs="out",
        args=arguments,
        train_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    trainer.train()
    [logged] = [row for row in trainer.state.log_history if "reward" in row]
    reward_model = trainer.reward_funcs[0]
    assert reward_model.config.num_labels == 1
    assert logged["rewards/out/mean"] == pytest.approx(logged["reward"]) and math.isfinite(logged["reward"])
    plain = AutoModelForSequenceClassification.from_pretrained("out").eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained("out").apply_chat_template(TURNS[0], return_dict=False)])
    assert torch.allclose(reward_model(ids).logits.float(), plain(ids).logits, atol=0.05)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_that_are_not_finite_are_not_exported(tiny_run, capsys, dtype):
    main(["fit", *tiny_run, "--run_dir=run", "--evolution.max_rounds=0"])
    saved = torch.load("run/rounds/0/model.pt", weights_only=True)
    next(iter(saved["weights"].values())).fill_(torch.nan)
    write_weights(Path("run/rounds/0/model.pt"), saved)
    assert main(["export", "run", "--to=out", *([f"--dtype={dtype}"] if dtype else [])]) == 2
    assert "has NaN or infinity in it" in capsys.readouterr().err and not Path("out").exists()
