import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.fingerprint import (
    Identity,
    base_fingerprint,
    check_identity,
    check_trained,
    identity_of,
    matrix_projections,
    other_matrix,
)
from ser_lightning.models.reward_model import load_reward_model
from tests.helpers import fit


def tiny(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_attention_heads=2, num_labels=1))
    model.model.requires_grad_(False)
    return model.to(dtype)


def test_a_base_has_one_fingerprint_with_adapters_in_16_bits_and_in_4(tiny_model_dir):
    plain = tiny()
    usual = base_fingerprint(plain)
    plain.model = get_peft_model(plain.model, LoraConfig(r=2, target_modules="all-linear"))
    assert base_fingerprint(plain) == usual == base_fingerprint(tiny(dtype=torch.bfloat16))
    settings = [Backbone(str(tiny_model_dir), train=t, quantize=q) for t, q in (("head", "none"), ("lora", "nf4"))]
    one, other = (base_fingerprint(load_reward_model(s).model) for s in settings)
    assert one == other != usual


def test_another_base_or_another_size_has_another_one_and_what_is_trained_has_none():
    assert base_fingerprint(tiny(0)) != base_fingerprint(tiny(1))
    full = tiny()
    full.requires_grad_(True)
    assert base_fingerprint(full) == ""


def test_the_message_says_which_of_the_two_is_another():
    own = {"base": "b", "template": "t"}
    check_identity("x", {"base": "b", "template": "t"}, own)
    check_identity("x", {"base": "", "template": "t"}, own)
    check_identity("x", None, own)
    with pytest.raises(UserError) as error:
        check_identity("x", {"base": "c", "template": "u"}, own)
    assert ["another base model" in p for p in error.value.problems] == [True, False]
    assert ["another chat template" in p for p in error.value.problems] == [False, True]


def test_adapters_that_are_all_zero_are_refused_and_one_trained_one_is_enough():
    weights = {"m.lora_A.default.weight": torch.ones(2), "m.lora_B.default.weight": torch.zeros(2)}
    with pytest.raises(UserError, match="all of its 1 adapters are zero"):
        check_trained("x", weights)
    check_trained("x", {**weights, "n.lora_B.default.weight": torch.ones(2)})
    check_trained("x", {"score.weight": torch.zeros(2)})


def test_a_checkpoint_of_another_base_or_template_is_refused(tiny_run, tiny_fit, tiny_model_dir, tmp_path, capsys):
    lora = "--model.backbone.train=lora"
    tiny_fit(lora)
    other = tmp_path / "other"
    torch.manual_seed(1)
    tokenizer_files = [f for f in Path(tiny_model_dir).iterdir() if "token" in f.name or "template" in f.name]
    LlamaForSequenceClassification(LlamaConfig.from_pretrained(tiny_model_dir)).save_pretrained(other)
    for file in tokenizer_files:
        (other / file.name).write_bytes(file.read_bytes())
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}</s>")
    test = ["test", *tiny_run, lora, "--ckpt_path=run/checkpoints/last.ckpt", "--run_dir=elsewhere"]
    capsys.readouterr()
    flags = [f"--model.backbone.path={other}", f"--model.backbone.template={template}"]
    assert main([*test, *flags]) == 2
    problems = capsys.readouterr().err
    assert "error: checkpoint: was trained on another base model" in problems
    assert "error: checkpoint: was trained through another chat template" in problems
    assert main([*test, "--run_dir=third"]) == 0


def test_what_a_run_saves_is_read_as_data_alone(tiny_model_dir, pairs_file):
    """Everything in a checkpoint is tensors, text, numbers, lists and dicts, or PyTorch would refuse it here."""
    fit(tiny_model_dir, pairs_file, "run")
    for file in ("run/checkpoints/last.ckpt", "run/rounds/0/model.pt"):
        assert torch.load(file, weights_only=True)


def test_adapter_and_head_of_a_135m_model_take_less_than_a_twentieth_of_it():
    """SmolLM2-135M's shape; the optimiser's two moments come on top, 8 bytes a weight that is trained."""
    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, num_labels=1, tie_word_embeddings=True)
    with torch.device("meta"):
        model = LlamaForSequenceClassification(config)
    size_16_bit = 2 * sum(p.numel() for p in model.parameters())
    model.model.requires_grad_(False)
    lora = LoraSettings()
    assert lora.r == 8
    model.model = get_peft_model(model.model, LoraConfig(r=lora.r, target_modules=lora.target_modules))
    trained = {name: torch.zeros(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    file = io.BytesIO()
    torch.save(trained, file)
    assert 0.01 < file.tell() / size_16_bit < 0.05


def identity(model, is_4bit=False):
    return Identity(base=base_fingerprint(model), template="t", matrices=matrix_projections(model), is_4bit=is_4bit)


def test_projections_outlast_adapters_and_rounding_but_no_change_of_a_matrix():
    saved = identity(tiny())
    assert other_matrix({"matrices": {"a": [1.0], "b": [1.0]}}, {"matrices": {"a": [1.0]}}) == "b"
    assert len(saved["matrices"]) == 8  # an embedding, four of attention, three of the MLP
    check_identity("x", saved, identity(tiny(dtype=torch.bfloat16)))
    wrapped = tiny()
    wrapped.model = get_peft_model(wrapped.model, LoraConfig(r=2, target_modules="all-linear"))
    check_identity("x", saved, identity(wrapped))
    changes = [
        lambda w: -w,
        lambda w: w.flip(0),
        lambda w: w[:, torch.randperm(w.shape[1])],
        lambda w: torch.cat([w[:1] * 3, w[1:]]),
        torch.zeros_like,
        lambda w: w * torch.nan,
    ]
    for change in changes:
        for place in ("mlp.down_proj", "self_attn.q_proj"):
            other = tiny()
            weight = other.get_submodule(f"model.layers.0.{place}").weight
            weight.data = change(weight.data)
            with pytest.raises(UserError, match=f"{place}.weight is not what it was"):
                check_identity("x", saved, identity(other))


def test_projections_of_4_bits_are_those_of_32_within_their_rounding(tiny_model_dir):
    both = [
        identity_of(
            load_reward_model(Backbone(str(tiny_model_dir), train="lora", quantize=q)).model,
            SimpleNamespace(chat_template=""),
        )
        for q in ("none", "nf4")
    ]
    assert [one["is_4bit"] for one in both] == [False, True] and both[0]["matrices"].keys() == both[1][
        "matrices"
    ].keys()
    check_identity("x", *both)
    check_identity("x", *both[::-1])
    negated = {name: [-v for v in values] for name, values in both[1]["matrices"].items()}
    with pytest.raises(UserError, match="another base model"):
        check_identity("x", both[0], {**both[1], "matrices": negated})


def test_a_run_on_a_base_with_one_changed_matrix_is_not_scored(tiny_run, tiny_model_dir, pairs_file, capsys):
    shutil.copytree(tiny_model_dir, "base")
    flags = ["--model.backbone.path=base", "--model.backbone.train=lora"]
    assert main(["fit", *tiny_run, *flags, "--run_dir=run", "--evolution.max_rounds=0"]) == 0
    score = ["score", "--model=run", f"--data={pairs_file}", "--out=out.jsonl", "--overwrite"]
    assert main(score) == 0
    model = LlamaForCausalLM.from_pretrained("base")
    model.model.layers[1].mlp.down_proj.weight.data.neg_()
    model.save_pretrained("base")
    capsys.readouterr()
    assert main(score) == 2
    assert "down_proj.weight is not what it was" in capsys.readouterr().err
