from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, ViTConfig

from ser_lightning.data.encode import encode_candidates
from ser_lightning.errors import UserError
from ser_lightning.models.adapter_reward import adapter_reward_model, can_share
from ser_lightning.models.backbone import Backbone, LoraSettings, load_tokenizer
from ser_lightning.models.fingerprint import identity_of
from ser_lightning.models.masks import PACKED_ATTENTION, PADDED_ATTENTION, last_hidden
from ser_lightning.models.policy import (
    body_of,
    load_language_model,
    load_policy,
    logits_of,
    policy_state,
    use_adapter,
)
from ser_lightning.models.readings import only_layers
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.records import Padded
from ser_lightning.rl.rollout import stop_ids
from ser_lightning.runs.reward_run import RewardRun
from tests.models.test_masks import model_of

ROLES = ("policy", "reference", "critic")
IDS = torch.tensor([[5, 9, 17, 33, 8, 44]])
MASK = torch.ones_like(IDS)


def lora(model_dir, **kwargs):
    return Backbone(str(model_dir), train="lora", lora=LoraSettings(r=4, dropout=0.0), **kwargs)


def backbone(model_dir, train):
    return lora(model_dir) if train == "lora" else Backbone(str(model_dir), train="full")


def randomised(state):
    generator = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in state.items()}


def hidden(policy, role, ids=IDS, mask=MASK):
    with torch.no_grad():
        return policy.eval().hidden(role, Padded(ids, mask))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_policy_and_reference_start_as_the_pretrained_model(tiny_model_dir, train):
    policy = load_policy(backbone(tiny_model_dir, train), has_reference=True, has_critic=True)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    for role in ("policy", "reference"):
        logits = policy.head(role)(hidden(policy, role))
        assert torch.allclose(logits, plain(input_ids=IDS, attention_mask=MASK).logits, atol=1e-6), role
    assert torch.equal(policy.values(hidden(policy, "critic")), torch.zeros(1, 6))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_start_is_policy_and_reference_and_not_critic(tiny_model_dir, train):
    first = load_policy(backbone(tiny_model_dir, train))
    start = randomised(policy_state(first.trainable_state()))
    policy = load_policy(backbone(tiny_model_dir, train), start=start, has_reference=True, has_critic=True)
    assert torch.allclose(hidden(policy, "policy"), hidden(policy, "reference"), atol=1e-6)
    assert not torch.allclose(hidden(policy, "policy"), hidden(first, "policy"), atol=1e-3)
    first.load_trainable_state(start)
    assert torch.allclose(hidden(policy, "reference"), hidden(first, "policy"), atol=1e-6)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("has_start", [False, True])
def test_training_the_policy_or_the_critic_moves_no_other_role(tiny_model_dir, train, has_start):
    start = randomised(policy_state(load_policy(backbone(tiny_model_dir, train)).trainable_state()))
    settings = {"start": start if has_start else None, "has_reference": True, "has_critic": True}
    for trained in ("policy", "critic"):
        policy = load_policy(backbone(tiny_model_dir, train), **settings)
        before = {role: hidden(policy, role) for role in ROLES}
        with torch.no_grad():
            for p in policy.parameters_of(trained):
                p += 0.05
        moved = {role for role in ROLES if not torch.equal(before[role], hidden(policy, role))}
        assert moved == {trained}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_every_trained_parameter_belongs_to_one_role(tiny_model_dir, train):
    policy = load_policy(backbone(tiny_model_dir, train), has_reference=True, has_critic=True)
    parts = [{id(p) for p in policy.parameters_of(role)} for role in ("policy", "critic")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {id(p) for p in policy.parameters() if p.requires_grad}
    assert all(parts)


def test_with_adapters_there_is_one_base(tiny_model_dir):
    bare = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_model_dir).parameters())
    policy = load_policy(lora(tiny_model_dir), has_reference=True, has_critic=True)
    one_adapter = sum(p.numel() for p in policy.parameters_of("policy"))
    assert sum(p.numel() for p in policy.parameters()) == bare + 2 * one_adapter + 17  # the value head
    assert not any(
        p.requires_grad for name, p in policy.named_parameters() if "lora" not in name and "value" not in name
    )


def test_switching_adapters_leaves_what_is_trained_alone(tiny_model_dir):
    policy = load_policy(lora(tiny_model_dir), has_critic=True)
    before = {name: p.requires_grad for name, p in policy.named_parameters()}
    for name in ("critic", None, "policy"):
        with use_adapter(policy.body, name):
            assert {n: p.requires_grad for n, p in policy.named_parameters()} == before
    policy.hidden("critic", Padded(IDS, MASK)).sum().backward()
    with_gradient = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert with_gradient and all(".critic." in name for name in with_gradient)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_state(tiny_model_dir, side):
    policy = load_policy(lora(tiny_model_dir))
    pad, zeros = torch.full((1, 3), 0), torch.zeros(1, 3, dtype=torch.int64)
    order = (pad, IDS) if side == "left" else (IDS, pad)
    masks = (zeros, MASK) if side == "left" else (MASK, zeros)
    found = hidden(policy, "policy", torch.cat(order, 1), torch.cat(masks, 1))
    kept = found[:, 3:] if side == "left" else found[:, :6]
    assert torch.allclose(kept, hidden(policy, "policy"), atol=1e-5)


def test_capped_logits_are_those_of_the_models_own_forward(tmp_path, tiny_tokenizer):
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    states = model.model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    logits = model(input_ids=IDS, attention_mask=MASK).logits
    assert torch.allclose(logits_of(model, states), logits, atol=1e-6)
    assert not torch.allclose(model.lm_head(states), logits, atol=1e-3)


def test_a_model_that_scales_its_logits_unknown_to_us_is_refused(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("ser_lightning.models.policy.logits_of", lambda lm, h: 2 * lm.lm_head(h))
    with pytest.raises(UserError, match="logits are scaled"):
        load_policy(lora(tiny_model_dir))


def test_policies_that_cannot_be(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=r"backbone\.train: got head"):
        load_policy(Backbone(str(tiny_model_dir), train="head"))
    with pytest.raises(UserError, match="there is no such folder"):
        load_policy(lora(tmp_path / "nothing"))
    body = AutoModelForCausalLM.from_pretrained(tiny_model_dir).model
    body.save_pretrained(tmp_path / "body")
    load_tokenizer(lora(tiny_model_dir)).save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"lacks 1 tensors of a language model, such as lm_head\.weight"):
        load_policy(lora(tmp_path / "body"))
    ViTConfig().save_pretrained(tmp_path / "eyes")
    with pytest.raises(UserError, match=r"^backbone.path: no language model could be loaded from .*eyes \(Unrecog"):
        load_language_model(lora(tmp_path / "eyes"), "meta")


def test_packed_attention_makes_way_while_tokens_are_sampled_one_by_one(tiny_model_dir):
    policy = load_policy(backbone(tiny_model_dir, "full"), has_reference=True)
    configs = [body_of(policy.lm).config, policy.others["reference"].config]
    for config in configs:
        config._attn_implementation = PACKED_ATTENTION
    with policy.sampling("left"):
        assert {config._attn_implementation for config in configs} == {PADDED_ATTENTION}
    assert {config._attn_implementation for config in configs} == {PACKED_ATTENTION}


def test_stop_tokens_are_those_of_model_tokenizer_and_config(tiny_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    letter = tiny_tokenizer("a").input_ids[0]
    assert stop_ids(None, tiny_tokenizer, []) == [eos]
    assert stop_ids([eos, 7], tiny_tokenizer, ["a"]) == sorted({eos, 7, letter})
    assert stop_ids(7, tiny_tokenizer, []) == sorted({eos, 7})
    with pytest.raises(UserError, match=r"sampling\.stop: got 'ab', which is 2 tokens"):
        stop_ids(None, tiny_tokenizer, ["ab"])


def test_a_policy_without_eos_is_refused(tiny_model_dir, tiny_tokenizer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"without EOS .* name the token that ends one in sampling\.stop"):
        stop_ids(None, tokenizer, [])
    assert stop_ids(None, tokenizer, ["a"])


@pytest.mark.parametrize(("dtype", "is_tied"), [("float32", True), ("bfloat16", True), ("bfloat16", False)])
def test_four_bits_train_all_roles_on_one_base(tmp_path, tiny_tokenizer, dtype, is_tied):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer), tie_word_embeddings=is_tied, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    policy = load_policy(lora(tmp_path, quantize="nf4", dtype=dtype), has_reference=True, has_critic=True)
    assert torch.allclose(hidden(policy, "policy"), hidden(policy, "reference"), atol=1e-6)
    policy.train()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:  # 0 until it is trained, and then nothing flows further down
                p.normal_(std=0.1)
        policy.value_head.weight.normal_()
    logits = policy.head("policy")(policy.hidden("policy", Padded(IDS, MASK)))
    (logits.float().sum() + policy.values(policy.hidden("critic", Padded(IDS, MASK))).sum()).backward()
    for role in ("policy", "critic"):
        gradients = [p.grad for p in policy.parameters_of(role)]
        assert all(g is not None and g.abs().sum() > 0 for g in gradients), role


@pytest.mark.parametrize("train", ["lora", "head"])
def test_a_reward_model_on_the_policys_base_scores_as_one_of_its_own(tiny_model_dir, train):
    settings = Backbone(str(tiny_model_dir), train=train, lora=LoraSettings(r=2, dropout=0.0))
    own = load_reward_model(settings).eval()
    own.load_trainable_state(randomised(own.trainable_state()))
    start = randomised(policy_state(load_policy(lora(tiny_model_dir)).trainable_state()))
    policy = load_policy(lora(tiny_model_dir), start=start, has_reference=True, has_critic=True)
    before, num_before = hidden(policy, "policy"), sum(p.numel() for p in policy.parameters())
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    shared = adapter_reward_model(policy, settings, own.trainable_state(), "reward0").eval()
    with torch.no_grad():
        assert torch.allclose(shared(Padded(IDS, MASK)), own(Padded(IDS, MASK)), atol=1e-6)
    assert torch.equal(hidden(policy, "policy"), before)
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
    added = sum(p.numel() for p in policy.parameters()) - num_before
    assert added == sum(p.numel() for name, p in own.named_parameters() if "lora" in name)


def test_a_reward_model_that_was_trained_on_another_base_or_template_is_not_put_on_the_policys(tiny_model_dir):
    """As when it is loaded by itself: its rewards would mean nothing."""
    settings = lora(tiny_model_dir)
    own = load_reward_model(settings)
    identity = identity_of(own.model, load_tokenizer(settings))
    weights = randomised(own.trainable_state())
    policy = load_policy(settings, has_critic=True)
    adapter_reward_model(policy, settings, weights, "reward0", identity=identity)
    with pytest.raises(UserError, match="^run: was trained through another chat template"):
        adapter_reward_model(policy, settings, weights, "reward1", identity={**identity, "template": "other"})
    with torch.no_grad():
        body_of(policy.lm).get_base_model().layers[0].self_attn.q_proj.weight.neg_()
    with pytest.raises(UserError, match=r"^run: was trained on another base model \(model.layers.0.self_attn.q_proj"):
        adapter_reward_model(policy, settings, weights, "reward1", identity=identity)


@pytest.mark.parametrize("train", ["lora", "head"])
@pytest.mark.parametrize("texts", [["mean@1", "judge@2"], ["judge@1"], ["last@1", "mean@1"]])
def test_a_reward_model_reads_inside_the_policys_base_as_in_its_own(tiny_model_dir, train, texts):
    settings = lora(tiny_model_dir) if train == "lora" else Backbone(str(tiny_model_dir), train="head")
    tokenizer = load_tokenizer(settings)
    run = RewardRun(settings, 64, {}, 0.0, 1.0, None, {"readings": texts, "question": "Good?"})
    own = load_reward_model(settings).eval()
    own.read_as(tokenizer, texts, "Good?")
    own.drop_unread_layers()
    run = replace(run, weights=randomised(own.trainable_state()))
    own.load_trainable_state(run.weights)
    policy = load_policy(lora(tiny_model_dir), has_reference=True, has_critic=True)
    before, trained = hidden(policy, "policy"), [name for name, p in policy.named_parameters() if p.requires_grad]
    num_before = sum(p.numel() for p in policy.parameters())
    shared = adapter_reward_model(policy, settings, run.weights, "reward0", run.reading).eval()
    [encoded] = encode_candidates(tokenizer, [[]], [["Yes.", "It is 4."]], 100)
    found = []
    for model in (own, shared, run.load()[0].eval()):
        with torch.no_grad():
            found.append(model(model.layout.lay_out(encoded.rows, [0, 1], 0, [encoded.start] * 2)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(hidden(policy, "policy"), before) and policy.lm.config.num_hidden_layers == 2
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
    # Layers that the reward model does not read get no adapter.
    added = sum(p.numel() for p in policy.parameters()) - num_before
    assert added == sum(p.numel() for name, p in own.named_parameters() if "lora" in name)


def test_a_body_without_its_upper_layers_has_them_back_even_after_an_error(tmp_path):
    model = model_of("gemma2")
    ids, body = Padded(IDS, MASK), model.model
    with torch.no_grad():
        whole = last_hidden(body.eval(), ids)
        with only_layers(body, 1):
            assert not torch.allclose(last_hidden(body, ids), whole) and len(body.layers) == 1
        with pytest.raises(IndexError), only_layers(body, 1):
            last_hidden(body, Padded(IDS + 1000, MASK))
        assert torch.equal(last_hidden(body, ids), whole)
    assert len(body.config.layer_types) == body.config.num_hidden_layers == len(body.layers) == 3


def test_only_the_same_frozen_base_is_shared(tiny_model_dir, tmp_path):
    policy = lora(tiny_model_dir)
    assert can_share(policy, lora(tiny_model_dir))
    assert can_share(policy, Backbone(str(tiny_model_dir), train="head"))
    assert not can_share(policy, Backbone(str(tiny_model_dir), train="full"))
    assert not can_share(policy, lora(tmp_path))
    assert not can_share(policy, lora(tiny_model_dir, quantize="nf4"))
    assert not can_share(Backbone(str(tiny_model_dir), train="full"), lora(tiny_model_dir))
