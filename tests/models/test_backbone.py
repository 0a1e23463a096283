import copy
import json
import sys
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Gemma3TextConfig,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings, backbone_from, load_tokenizer, not_found
from ser_lightning.models.loading import use_liger_kernels
from ser_lightning.models.policy import load_policy
from ser_lightning.models.probe import start_findings
from ser_lightning.models.reward_model import load_reward_model, merged_model
from ser_lightning.records import Padded
from ser_lightning.training.scoring import evaluating

ROWS = [[5, 6, 7, 8, 9], [5, 6, 7], [11], [9, 9, 4, 4]]


def padded(rows, pad, side="right", extra=0):
    longest = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, part], mask[i, part] = torch.tensor(row), 1
    return ids, mask


def rewards(reward_model, ids, mask):
    with evaluating(reward_model):
        return reward_model(Padded(ids, mask))


def shake(reward_model):
    """Give adapters (B starts at 0) something to say."""
    for p in reward_model.parameters():
        if p.requires_grad:
            p.data.add_(0.1 * torch.randn_like(p))


@pytest.fixture
def bert_dir(tmp_path, tiny_tokenizer):
    config = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("train", ["lora", "full", "head"])
def test_reward_does_not_depend_on_padding_or_company(tiny_model_dir, train):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), train=train))
    shake(reward_model)
    together = rewards(reward_model, *padded(ROWS, 0))
    alone = torch.cat([rewards(reward_model, *padded([row], 0)) for row in ROWS])
    assert torch.allclose(together, alone, atol=1e-5)
    for side in ("left", "right"):
        assert torch.allclose(rewards(reward_model, *padded(ROWS, 3, side, extra=4)), together, atol=1e-5)
    assert together.unique().numel() == len(ROWS)


def test_reward_is_that_of_plain_transformers(tiny_model_dir):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), train="full"))
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    plain.score.load_state_dict(reward_model.model.score.state_dict())
    ids, mask = padded(ROWS, plain.config.pad_token_id)
    with torch.no_grad():
        expected = plain.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert torch.allclose(rewards(reward_model, ids, mask), expected, atol=1e-5)


def test_encoder_keeps_its_own_pooling(bert_dir):
    reward_model = load_reward_model(Backbone(bert_dir, train="lora"))
    assert not reward_model.is_decoder and "classifier" in reward_model.head_names
    plain = AutoModelForSequenceClassification.from_pretrained(bert_dir, num_labels=1, ignore_mismatched_sizes=True)
    plain.classifier.load_state_dict(reward_model.model.classifier.state_dict())
    ids, mask = padded(ROWS, 0)
    with torch.no_grad():
        expected = plain.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert torch.allclose(rewards(reward_model, ids, mask), expected, atol=1e-5)


@pytest.mark.parametrize("train", ["lora", "full", "head"])
def test_head_is_always_trained_and_saved_in_float32(tiny_model_dir, train):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), train=train, dtype="bfloat16"))
    state = reward_model.trainable_state()
    assert any("score" in name for name in state) and all(t.numel() for t in state.values())
    assert reward_model.model.score.weight.dtype == torch.float32
    assert rewards(reward_model, *padded(ROWS, 0)).dtype == torch.float32
    body = [name for name in state if "score" not in name]
    assert bool(body) == (train != "head") and all("lora" in name for name in body) == (train != "full")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rewards(reward_model, *padded(ROWS, 0)).dtype == torch.float32


class CastsToFloat32(TorchDispatchMode):
    """Counts them, but for those of a handful of numbers."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == torch.float32 != args[0].dtype:
            self.shapes.append(tuple(found.shape))
        return found


def test_autocast_casts_the_input_of_adapters_and_peft_does_not_cast_it_back_before(tiny_model_dir):
    """The same rewards, with no cast beyond those of the plain body."""
    ids, mask = padded(ROWS, 0)
    found, num_casts = [], []
    for is_peft in (True, False):
        torch.manual_seed(0)
        reward_model = load_reward_model(Backbone(str(tiny_model_dir), dtype="bfloat16")).eval()
        shake(reward_model)
        for layer in reward_model.modules():
            if is_peft:
                vars(layer).pop("_cast_input_dtype", None)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), CastsToFloat32() as casts:
            found.append(reward_model(Padded(ids, mask)))
        num_casts.append(len(casts.shapes))
    plain = load_reward_model(Backbone(str(tiny_model_dir), train="head", dtype="bfloat16")).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), CastsToFloat32() as casts:
        plain(Padded(ids, mask))
    assert torch.equal(*found)
    assert num_casts[1] == len(casts.shapes) < num_casts[0]
    assert rewards(reward_model, ids, mask).isfinite().all()  # without autocast a body in bfloat16 needs the casts


def test_dropout_is_on_in_training(tiny_model_dir):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), lora=LoraSettings(dropout=0.5)))
    shake(reward_model)
    assert not torch.equal(reward_model(Padded(*padded(ROWS, 0))), reward_model(Padded(*padded(ROWS, 0))))
    assert torch.equal(rewards(reward_model, *padded(ROWS, 0)), rewards(reward_model, *padded(ROWS, 0)))


def test_new_weights_depend_on_the_global_seed_alone(tiny_model_dir):
    states = []
    for draws in (0, 5):
        torch.manual_seed(7)
        torch.randn(draws)
        states.append(load_reward_model(Backbone(str(tiny_model_dir))).trainable_state())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_state_round_trip_and_refusals(tiny_model_dir):
    torch.manual_seed(1)
    one, other = (load_reward_model(Backbone(str(tiny_model_dir))) for _ in range(2))
    shake(one)
    state = {k: v.clone() for k, v in one.trainable_state().items()}
    other.load_trainable_state(state)
    assert torch.equal(rewards(one, *padded(ROWS, 0)), rewards(other, *padded(ROWS, 0)))
    head = next(k for k in state if "score" in k)
    with pytest.raises(UserError, match="1 missing .*score"):
        other.load_trainable_state({k: v for k, v in state.items() if k != head})
    with pytest.raises(UserError, match="of shape"):
        other.load_trainable_state({**state, head: torch.zeros(2, 2)})


def test_merged_model_scores_as_the_adapted_one(tiny_model_dir):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), lora=LoraSettings(r=4, alpha=8)))
    shake(reward_model)
    ids, mask = padded(ROWS, reward_model.model.config.pad_token_id)
    expected = rewards(reward_model, ids, mask)
    merged = merged_model(reward_model)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        assert torch.allclose(merged.eval()(input_ids=ids, attention_mask=mask).logits[:, 0], expected, atol=1e-5)


def test_lora_settings_reach_the_adapters(tiny_model_dir):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), lora=LoraSettings(3, 12, 0.25, ["q_proj"])))
    shapes = {tuple(p.shape) for name, p in reward_model.named_parameters() if "lora_A" in name}
    assert {s[0] for s in shapes} == {3}
    assert all("q_proj" in name for name in reward_model.trainable_state() if "lora" in name)
    layer = next(m for m in reward_model.modules() if isinstance(getattr(m, "scaling", None), dict))
    assert layer.scaling["default"] == pytest.approx(4.0)
    assert layer.lora_dropout["default"].p == 0.25


def test_nf4_on_a_cpu_trains_adapters_and_head_and_stays_close_to_float32(tmp_path, tiny_tokenizer):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    plain = load_reward_model(Backbone(str(tmp_path)))
    torch.manual_seed(0)
    quantised = load_reward_model(Backbone(str(tmp_path), quantize="nf4"))
    ids, mask = padded(ROWS, 0)
    assert any(p.dtype == torch.uint8 for p in quantised.parameters())
    assert quantised.model.score.weight.dtype == torch.float32
    assert torch.allclose(rewards(quantised, ids, mask), rewards(plain, ids, mask), atol=0.5)
    quantised(Padded(ids, mask)).sum().backward()
    assert all(p.grad is not None for p in quantised.parameters() if p.requires_grad)


def test_gradient_checkpointing_changes_no_gradient(tiny_model_dir):
    ids, mask = padded(ROWS, 0)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(str(tiny_model_dir), lora=LoraSettings(dropout=0.0), gradient_checkpointing=checkpointing)
        reward_model = load_reward_model(backbone).train()
        reward_model(Padded(ids, mask)).sum().backward()
        gradients.append({n: p.grad for n, p in reward_model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])


def test_a_body_that_is_not_all_there_is_refused(tmp_path, tiny_model_dir, tiny_tokenizer):
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    kept = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up_proj" not in k}
    model.save_pretrained(tmp_path, state_dict=kept)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 1 tensors of the body, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_reward_model(Backbone(str(tmp_path)))
    model.save_pretrained(tmp_path, state_dict={f"strange.{k}": v for k, v in model.state_dict().items()})
    with pytest.raises(UserError, match=r"lacks \d\d tensors of the body"):
        load_reward_model(Backbone(str(tmp_path)))


def test_a_config_that_its_weights_do_not_fit_is_refused(tmp_path, tiny_model_dir, tiny_tokenizer):
    LlamaForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    line = f"^{tmp_path}: its config.json has more layers than its weights have tensors .*; is it damaged\\?$"
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1_000_000}))
    with pytest.raises(UserError, match=line):
        load_reward_model(Backbone(str(tmp_path)))
    with pytest.raises(UserError, match=line):
        start_findings(Backbone(str(tmp_path)), tiny_tokenizer, "reward")
    config["vocab_size"] = 100
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^backbone.path: got a tokenizer of 259 tokens for 100 embeddings"):
        load_reward_model(Backbone(str(tmp_path)))


@pytest.mark.parametrize("train", ["lora", "head", "full"])
def test_a_pooler_that_would_stay_random_is_refused(bert_dir, train):
    """A language model is saved without it, and the next load of a run would draw another."""
    model = BertForSequenceClassification.from_pretrained(bert_dir)
    model.save_pretrained(bert_dir, state_dict={k: v for k, v in model.state_dict().items() if "pooler" not in k})
    if train == "full":
        assert "model.bert.pooler.dense.weight" in load_reward_model(Backbone(bert_dir, train=train)).trainable_state()
        return
    with pytest.raises(UserError, match=rf"^backbone.train: got {train}, .* lacks 2 .*pooler.*; use train: full"):
        load_reward_model(Backbone(bert_dir, train=train))


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
DEEP = {
    "llama": lambda vocab: LlamaConfig(vocab_size=vocab, num_hidden_layers=4, **SIZES),
    "gpt2": lambda vocab: GPT2Config(vocab_size=vocab, n_embd=16, n_layer=4, n_head=2),
    # Every layer has a kind of attention of its own here, named in a list that has to end with the layers.
    "gemma3": lambda vocab: Gemma3TextConfig(
        vocab_size=vocab,
        num_hidden_layers=4,
        head_dim=8,
        sliding_window=2,
        layer_types=["full_attention", "sliding_attention"] * 2,
        **SIZES,
    ),
}


@pytest.mark.parametrize("family", DEEP)
@pytest.mark.parametrize("train", ["head", "lora"])
def test_the_first_layers_judge_by_what_the_whole_model_has_in_its_middle(tmp_path, tiny_tokenizer, family, train):
    body = AutoModel.from_config(DEEP[family](len(tiny_tokenizer)))
    body.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    reward_model = load_reward_model(Backbone(str(tmp_path), train=train))
    reward_model.read_as(tiny_tokenizer, ["last@3"], "")
    reward_model.drop_unread_layers()
    plain = AutoModel.from_pretrained(tmp_path).eval()
    norm = plain.ln_f if family == "gpt2" else plain.norm
    for row, reward in zip(ROWS, rewards(reward_model, *padded(ROWS, 0)), strict=True):
        with torch.no_grad():
            middle = plain(torch.tensor([row]), output_hidden_states=True).hidden_states[3]
            assert torch.allclose(reward_model.model.score(norm(middle[:, -1])).squeeze(), reward, atol=1e-5)


def test_a_shorter_body_is_a_plain_model_of_fewer_layers(tmp_path, tiny_model_dir, tiny_tokenizer):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), train="full"))
    reward_model.read_as(tiny_tokenizer, ["last@1"], "")
    reward_model.drop_unread_layers()
    shake(reward_model)
    expected = rewards(reward_model, *padded(ROWS, 0))
    merged_model(reward_model).save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.num_hidden_layers == len(plain.model.layers) == 1
    with torch.no_grad():
        found = torch.cat([plain(torch.tensor([row])).logits[0] for row in ROWS])
    assert torch.allclose(found, expected, atol=1e-5)


def test_problems_are_named_together():
    assert Backbone("x", train="full", dtype="bfloat16").problems() == []  # loads and scores
    assert [line.split(",")[0] for line in Backbone("x", train="full", dtype="bfloat16").training_problems()] == [
        "backbone.dtype: got bfloat16 with train full"
    ]
    backbone = Backbone("x", train="full", quantize="nf4", gguf_file="x.gguf")
    with pytest.raises(UserError) as error:
        load_reward_model(backbone)
    assert len(error.value.problems) == 2
    with pytest.raises(UserError, match="backbone.path: got ./nowhere; there is no such folder"):
        load_tokenizer(Backbone("./nowhere"))
    assert Backbone("x", lora=LoraSettings(r=0, dropout=1.0)).problems() == [
        "backbone.lora: got r 0, dropout 1.0; need r >= 1, 0 <= dropout < 1"
    ]


def test_settings_of_a_file_that_are_no_backbone_are_named():
    assert backbone_from({"path": "x", "lora": {"r": 4}}, "run/config.yaml") == Backbone("x", lora=LoraSettings(r=4))
    with pytest.raises(UserError, match=r"^run/config.yaml: has no settings of a backbone \(.*\); is it damaged\?$"):
        backbone_from({"path": "x", "lora": {"r": "many"}}, "run/config.yaml")


def test_a_name_that_the_hub_does_not_know_is_named(monkeypatch):
    monkeypatch.setattr("ser_lightning.models.backbone.without_hub", lambda _: False)
    assert not_found("model", "me/modle", OSError("404: none\nmore")) == (
        "backbone.path: got me/modle; there is no such folder, and the Hub gave no model of that name (404: none); "
        "give a transformers folder or a Hub name"
    )


def test_own_template_is_kept_and_the_paper_template_is_the_papers(tiny_model_dir, tiny_tokenizer):
    assert load_tokenizer(Backbone(str(tiny_model_dir))).chat_template == tiny_tokenizer.chat_template
    tokenizer = load_tokenizer(Backbone(str(tiny_model_dir), template="paper"))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    plain = text.removeprefix(tokenizer.bos_token).removesuffix(tokenizer.eos_token)
    assert plain == "Question: Why?\n\nAnswer: So." and text.endswith(tokenizer.eos_token)
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("Question: Why?\n\nAnswer:")


def test_template_from_a_file_and_a_missing_one(tiny_model_dir, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}|{% endfor %}")
    tokenizer = load_tokenizer(Backbone(str(tiny_model_dir), template=str(file)))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x|"
    with pytest.raises(UserError, match="need auto, paper or a Jinja file"):
        load_tokenizer(Backbone(str(tiny_model_dir), template="paperr"))


def test_a_tokenizer_whose_pad_is_its_eos_gets_a_pad_of_its_own_where_there_is_one(tmp_path, tiny_tokenizer):
    own = copy.deepcopy(tiny_tokenizer)  # the other tests' is left as it is
    own.add_special_tokens({"additional_special_tokens": ["<|reserved_0|>"]})
    own.pad_token = own.eos_token
    own.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(Backbone(str(tmp_path)))
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id)


def test_a_gpt2_shaped_body_works(tmp_path, tiny_tokenizer):
    GPT2Model(GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    reward_model = load_reward_model(Backbone(str(tmp_path)))
    left, right = (rewards(reward_model, *padded(ROWS, 0, side)) for side in ("left", "right"))
    assert torch.allclose(left, right, atol=1e-5)


def test_nf4_has_the_same_gradients_after_scoring_as_before(tmp_path, tiny_tokenizer):
    """bitsandbytes repacks 4-bit layers in evaluation mode for a CPU kernel that has none."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    reward_model = load_reward_model(Backbone(str(tmp_path), quantize="nf4", lora=LoraSettings(dropout=0.0)))
    with torch.no_grad():
        for name, p in reward_model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    ids = torch.tensor([[3, 4, 5, 6, 7]])

    def gradients():
        reward_model.zero_grad()
        reward_model(Padded(ids, torch.ones_like(ids))).sum().backward()
        return {name: p.grad.clone() for name, p in reward_model.named_parameters() if p.requires_grad}

    before = gradients()
    with evaluating(reward_model):
        reward_model(Padded(ids, torch.ones_like(ids)))
    after = gradients()
    assert any("layers.0" in name and g.abs().sum() > 0 for name, g in before.items())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_ligers_package_a_gpu_run_is_refused(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("ser_lightning.models.loading.is_liger_kernel_available", lambda: False)
    with pytest.raises(UserError, match=r"liger-kernel is missing; pip install 'ser-lightning\[liger\]'"):
        use_liger_kernels(load_reward_model(Backbone(str(tiny_model_dir))).model, "cuda")


def test_a_model_that_liger_has_no_kernels_for_is_refused_on_a_gpu(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("ser_lightning.models.loading.is_liger_kernel_available", lambda: True)
    for name, known in (("", {}), (".transformers", {}), (".transformers.monkey_patch", {"mistral": None})):
        package = ModuleType(f"liger_kernel{name}")
        package.MODEL_TYPE_TO_APPLY_LIGER_FN = known
        monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(UserError, match=r"got true, but Liger has no kernels for a llama; set it to false"):
        use_liger_kernels(load_reward_model(Backbone(str(tiny_model_dir))).model, "cuda")


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_attention_that_needs_a_gpu_is_left_out_without_one(tiny_model_dir, caplog, name):
    """So a run that was trained with it is scored and exported anywhere; neither package nor GPU is here."""
    for load in (load_reward_model, load_policy):
        caplog.clear()
        with caplog.at_level("INFO"):
            model = load(Backbone(str(tiny_model_dir), attn_implementation=name))
            load(Backbone(str(tiny_model_dir), attn_implementation=name), "meta")
        assert caplog.text.count(f"Attention: as transformers chooses, since {name} needs a CUDA GPU.") == 1
        assert model.body.config._attn_implementation == "sdpa"


def test_words_that_are_no_choice_are_named_with_those_that_are():
    assert Backbone("x", train="ful", quantize="int8").problems() == [
        "backbone.train: got 'ful'; use lora, full, head",
        "backbone.quantize: got 'int8'; use none, nf4",
    ]
    assert not Backbone("x", train="head", quantize="nf4", dtype="bfloat16").problems()


def test_attention_that_cannot_be_had_is_one_line(tiny_model_dir):
    for load in (load_reward_model, load_policy):
        with pytest.raises(UserError, match="^backbone.path: no (language )?model could be loaded from .*my_attention"):
            load(Backbone(str(tiny_model_dir), attn_implementation="my_attention"))


def test_the_setting_for_ligers_kernels_reaches_reward_models_and_policies(tiny_model_dir, caplog):
    for load in (load_reward_model, load_policy):
        caplog.clear()
        with caplog.at_level("INFO"):
            load(Backbone(str(tiny_model_dir)))
            assert "Kernels" not in caplog.text
            load(Backbone(str(tiny_model_dir), use_liger_kernel=True))
            load(Backbone(str(tiny_model_dir), use_liger_kernel=True), "meta")
        assert caplog.text.count("Kernels: the model's own, as backbone.use_liger_kernel needs a CUDA GPU.") == 1
