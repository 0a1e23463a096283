"""Bytes that are foretold from a config equal those of the loaded model, tensor by tensor."""

import os
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import BertConfig, BertForSequenceClassification

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.reward_model import load_reward_model
from ser_lightning.planning.memory import (
    CPU_TOKENS,
    auto_budgets,
    count_weights,
    device_bytes,
    device_of,
    gathered_bytes,
    gradient_bytes,
    keep_one_shard,
    labelling_activations,
    nf4_bytes,
    optimizer_bytes,
    shape_of,
    trained_weights,
    training_activations,
    workspace_bytes,
)
from ser_lightning.records import Padded
from ser_lightning.training.strategies import spread
from ser_lightning.utils.collectives import own_part
from tests.helpers import kept_for_backward, save_language_model, slow
from tests.peak_memory import PeakMemory

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
SETTINGS = [
    {"train": train, "dtype": dtype, "quantize": quantize}
    for train in ("full", "lora", "head")
    for dtype in ("float32", "bfloat16")
    for quantize in ("none", "nf4")
    if (train, quantize) != ("full", "nf4")
]


@pytest.fixture(scope="module")
def odd_dir(tiny_tokenizer, tmp_path_factory):
    """A Llama whose layers fill no whole block of 64 weights, and several of 256 blocks."""
    folder = tmp_path_factory.mktemp("odd")
    sizes = {"hidden_size": 76, "intermediate_size": 451, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return save_language_model(folder, tiny_tokenizer, **sizes, **heads)


def both(folder, **settings):
    backbone = Backbone(folder, **settings)
    return load_reward_model(backbone, "meta"), load_reward_model(backbone)


def num_bytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def quantised(p):
    """What a 4-bit weight needs beside itself."""
    state = getattr(p, "quant_state", None)
    return [] if state is None else [state.absmax, state.offset, state.code, state.state2.absmax, state.state2.code]


def run(reward_model, num_tokens=8):
    ids = torch.randint(3, 100, (2, num_tokens // 2))
    return reward_model(Padded(ids, torch.ones_like(ids)))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_weights_gradients_and_optimiser_state_are_those_of_the_loaded_model(odd_dir, settings):
    meta, real = both(odd_dir, **settings)
    assert all(p.is_meta for p in meta.parameters())
    counts = count_weights(meta).values()
    assert sum(w.num_bytes for w in counts) == num_bytes(t for p in real.parameters() for t in [p, *quantised(p)])
    trained = trained_weights(real)
    assert sum(w.trained for w in counts) == sum(p.numel() for p in trained)
    assert [n for n, p in meta.named_parameters() if p.requires_grad] == list(real.trainable_state())
    run(real).sum().backward()
    assert gradient_bytes(trained_weights(meta)) == num_bytes(p.grad for p in trained)
    for make in (torch.optim.AdamW, torch.optim.SGD, lambda p: torch.optim.SGD(p, momentum=0.9)):
        expected = make(trained)
        expected.step()
        state = (value for values in expected.state.values() for value in values.values() if torch.is_tensor(value))
        assert optimizer_bytes(make(trained_weights(meta))) == num_bytes(state)


@pytest.mark.parametrize("settings", SETTINGS[:1] + SETTINGS[2:4], ids=lambda settings: "-".join(settings.values()))
def test_weights_are_counted_by_kind(odd_dir, tiny_tokenizer, settings):
    meta, real = both(odd_dir, **settings)
    kinds, named = count_weights(meta), list(real.named_parameters())
    names = {"embeddings": "embed_tokens", "adapters": "lora_", "head": "model.score"}
    for kind, part in names.items():
        assert kinds[kind].trained + kinds[kind].frozen == sum(p.numel() for name, p in named if part in name)
    assert kinds["embeddings"].trained + kinds["embeddings"].frozen == len(tiny_tokenizer) * 76
    assert kinds["head"].trained == 76 and kinds["head"].frozen == 0


def test_an_optimiser_that_looks_at_values_counts_as_two_states_of_a_weight():
    class Picky(torch.optim.SGD):
        def step(self, closure=None):
            if self.param_groups[0]["params"][0].grad.sum() > 0:
                super().step(closure)

    weight = torch.nn.Parameter(torch.empty(3, 5, dtype=torch.bfloat16, device="meta"))
    assert optimizer_bytes(Picky([weight], lr=0.1)) == 2 * 15 * 2 and weight.grad is None


def test_memory_is_that_of_the_first_gpu_where_it_is_used(monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(total_memory=7 + index))
    assert device_bytes("cuda") == ("GPU", 7) and device_bytes("cpu") == ("machine", machine)


def test_an_encoder_is_counted_too(tmp_path, tiny_tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(tiny_tokenizer), **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    meta, real = both(str(tmp_path), train="lora")
    kinds = count_weights(meta)
    assert sum(w.num_bytes for w in kinds.values()) == num_bytes(real.parameters())
    assert kinds["head"].trained == sum(p.numel() for p in real.model.classifier.parameters())
    assert shape_of(meta.model, Backbone("x"), "32-true", "cpu").mlp_tensors == 2


def test_nf4_by_hand():
    # 1,000 weights: 500 bytes, 16 blocks of a byte, 1 float32 for them, their mean, both tables.
    assert nf4_bytes(1000) == 500 + 16 + 4 + 4 + 16 * 4 + 256 * 4
    assert nf4_bytes(64 * 257) == 64 * 257 // 2 + 257 + 2 * 4 + 4 + 272 * 4


def test_optimisers_of_bitsandbytes_keep_what_they_say(odd_dir):
    meta, real = both(odd_dir, train="full")
    for make in (bnb.optim.AdamW8bit, bnb.optim.AdamW, bnb.optim.Lion8bit):
        expected = make(trained_weights(real), lr=1e-3)
        run(real).sum().backward()
        expected.step()
        state = [
            value
            for values in expected.state.values()
            for name, value in values.items()
            if torch.is_tensor(value) and not name.startswith("qmap")  # one table for all weights
        ]
        assert optimizer_bytes(make(trained_weights(meta), lr=1e-3)) == num_bytes(state), make
    # Large weights: 2 states of a byte and a float32 for each 256; small ones: 2 of a float32.
    large, small = (torch.nn.Parameter(torch.empty(n, device="meta")) for n in (5120, 512))
    assert optimizer_bytes(bnb.optim.PagedAdamW8bit([large, small])) == 2 * (5120 + 20 * 4) + 8 * 512


def kept_bytes(reward_model, num_tokens):
    return kept_for_backward(reward_model, lambda: run(reward_model, num_tokens))


@pytest.fixture(scope="module")
def wide_dir(tiny_tokenizer, tmp_path_factory):
    """A Llama of which the states are larger than the weights, tokens being 2,048."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    return save_language_model(folder, tiny_tokenizer, **sizes, **heads)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_about_those_that_autograd_keeps(tmp_path, tiny_tokenizer, train, dtype, dropout):
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    save_language_model(tmp_path, tiny_tokenizer, **sizes, **heads)
    backbone = Backbone(str(tmp_path), train=train, dtype=dtype, lora=LoraSettings(dropout=dropout))
    reward_model = load_reward_model(backbone)
    shape = shape_of(reward_model.model, backbone, "32-true", "cpu")
    assert training_activations(shape, train, False, 512) == pytest.approx(kept_bytes(reward_model, 512), rel=0.25)


def peak_of(folder, use, is_mixed, **settings):
    """Bytes at the peak beside weights and their gradients, and the estimate; 2,048 tokens in 16 rows."""
    backbone = Backbone(str(folder), lora=LoraSettings(r=4, dropout=0.0), **settings)
    reward_model = load_reward_model(backbone)
    shape = shape_of(reward_model.model, backbone, "bf16-mixed" if is_mixed else "32-true", "cuda")
    ids = torch.randint(1, 100, (16, 128))
    inputs = Padded(ids, torch.ones_like(ids))
    watched = PeakMemory(p for p in reward_model.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed), torch.set_grad_enabled(use == "training"), watched:
        rewards = reward_model.train(use == "training")(inputs)
        if use == "training":
            rewards.sum().backward()
    if use == "labelling":
        copies = workspace_bytes(reward_model, "bf16-mixed" if is_mixed else "32-true")
        return watched.peak, labelling_activations(shape, ids.numel()) + copies
    gradients = gradient_bytes(p for p in reward_model.parameters() if p.grad is not None)
    estimate = training_activations(shape, backbone.train, backbone.gradient_checkpointing, ids.numel())
    return watched.peak - gradients, estimate


@pytest.mark.parametrize("train", ["lora", "full", "head"])
@pytest.mark.parametrize("is_mixed", [True, *slow(False)])
@pytest.mark.parametrize("use", ["training", "checkpointing", "labelling"])
def test_estimates_are_about_the_peak(wide_dir, train, is_mixed, use):
    if train == "head" and use != "labelling":
        pytest.skip("no gradients in the body")
    dtype = "float32" if train == "full" or not is_mixed else "bfloat16"
    settings = {"train": train, "dtype": dtype, "gradient_checkpointing": use == "checkpointing"}
    peak, estimate = peak_of(wide_dir, use.replace("checkpointing", "training"), is_mixed, **settings)
    assert estimate == pytest.approx(peak, rel=0.25)


def test_autocast_halves_the_body_and_copies_what_is_trained(odd_dir):
    meta, _ = both(odd_dir, train="full")
    shapes = [shape_of(meta.model, Backbone(odd_dir, train="full"), p, "cuda") for p in ("32-true", "bf16-mixed")]
    assert [shape.num_bytes for shape in shapes] == [4, 2]
    assert workspace_bytes(meta, "32-true") == 0
    linear = (m.weight.numel() for m in meta.modules() if isinstance(m, torch.nn.Linear))
    assert workspace_bytes(meta, "bf16-mixed") == 2 * sum(linear)


@pytest.mark.parametrize("settings", SETTINGS)
def test_auto_budgets_are_those_of_a_plan_and_fit_its_memory(tmp_path, tiny_tokenizer, settings):
    save_language_model(tmp_path, tiny_tokenizer, **WIDE, num_hidden_layers=2)
    backbone = Backbone(str(tmp_path), **settings)
    loaded, meta = load_reward_model(backbone), load_reward_model(backbone, "meta")
    budgets = []
    for gib in (1.0, 1.25, 1.5, 2.0, 3.0, 8.0):
        found = auto_budgets(meta, backbone, "32-true", "cuda", int(gib * 2**30))
        assert all(1024 <= n <= 65536 and n % 1024 == 0 for n in found)
        real = auto_budgets(loaded, backbone, "32-true", "cuda", int(gib * 2**30))
        assert all(abs(one - other) <= 2048 for one, other in zip(found, real, strict=True))
        budgets.append(found)
        shape = shape_of(meta.model, backbone, "32-true", "cuda")
        used = training_activations(shape, backbone.train, backbone.gradient_checkpointing, found[0])
        assert found[0] == 1024 or used < gib * 2**30 - sum(kind.num_bytes for kind in count_weights(meta).values())
    for one, next_one in zip(budgets, budgets[1:], strict=False):
        assert all(a <= b for a, b in zip(one, next_one, strict=True))
    assert budgets[0] == (1024, 1024) and budgets[-1][1] == 65536
    assert auto_budgets(meta, backbone, "32-true", "cpu", 2**40) == CPU_TOKENS


def test_problems_are_those_of_loading(odd_dir):
    with pytest.raises(UserError, match="backbone.path: got ./nowhere; there is no such folder"):
        load_reward_model(Backbone("./nowhere"), "meta")
    with pytest.raises(UserError, match="4-bit weights cannot be trained"):
        load_reward_model(Backbone(odd_dir, train="full", quantize="nf4"), "meta")


def test_a_gpu_that_is_asked_for_need_not_be_here():
    assert device_of("gpu") == device_of("cuda") == "cuda"
    assert device_of("cpu") == "cpu"


@pytest.fixture
def four_ranks():
    """A mesh of four ranks, of which this process is the first; what the others would send is made up."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (4,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "settings", [s for s in SETTINGS if s["quantize"] == "none"], ids=lambda s: "-".join(s.values())
)
def test_the_shard_of_a_rank_has_the_bytes_of_a_real_one(odd_dir, four_ranks, settings):
    """Four ranks divide neither the 259 tokens nor the 451 rows of an MLP."""
    meta, real = both(odd_dir, **settings)
    frozen, whole = (sum(w.frozen for w in count_weights(meta).values()), num_bytes(real.parameters()))
    spread(real.body, four_ranks)
    keep_one_shard(meta, 4)
    parts = [own_part(p) for p in real.parameters()]
    assert sum(w.num_bytes for w in count_weights(meta).values()) == num_bytes(parts) < whole
    assert sum(w.frozen for w in count_weights(meta).values()) < max(1, frozen / 3)
    trained = trained_weights(real)
    for p in trained:
        p.grad = torch.zeros_like(p)
    assert gradient_bytes(trained_weights(meta)) == num_bytes(own_part(p.grad) for p in trained)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    state = (own_part(v) for values in optimizer.state.values() for v in values.values())
    assert optimizer_bytes(torch.optim.AdamW(trained_weights(meta))) == num_bytes(state)


def test_what_is_gathered_is_what_torch_counts(tmp_path, tiny_tokenizer, four_ranks):
    """By its own tracker, less the shards; activations of a few tokens are next to nothing."""
    sizes = {"hidden_size": 76, "intermediate_size": 451, "num_hidden_layers": 4, "num_attention_heads": 2}
    save_language_model(tmp_path, tiny_tokenizer, **sizes)
    meta, real = both(str(tmp_path), train="full")
    training, labelling = gathered_bytes(meta)
    spread(real.body, four_ranks)
    ids = torch.randint(3, 100, (1, 4))
    with FSDPMemTracker(real.body) as tracker, torch.no_grad():
        real.body(input_ids=ids, use_cache=False)
    assert _unsharded(tracker) == pytest.approx(labelling, rel=0.05)
    with FSDPMemTracker(real.body) as tracker:
        real.body(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    assert _unsharded(tracker) == pytest.approx(training, rel=0.05)
    assert gathered_bytes(both(str(tmp_path), train="lora")[0]) == (labelling, labelling)


def _unsharded(tracker):
    [peak] = tracker.get_tracker_snapshot("peak").values()
    sharded = sum(n for kind, n in peak.items() if getattr(kind, "name", "") in ("SHARDED_PARAM", "SHARDED_GRAD"))
    return peak["Total"] - sharded
