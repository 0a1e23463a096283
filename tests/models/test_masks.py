"""Packed rows against padded ones: the same scores and the same gradients, for every kind of model that is packed."""

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import transformers.integrations.flex_attention as transformers_flex
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForSequenceClassification

from ser_lightning.data.layouts import PADDED, Layout, pack_sequences
from ser_lightning.errors import UserError
from ser_lightning.models import masks
from ser_lightning.models.backbone import Backbone, LoraSettings
from ser_lightning.models.loading import prepare_body
from ser_lightning.models.masks import (
    BLOCK,
    attention_masks,
    choose_layout,
    is_visible,
    packing_failure,
    sharing_problem,
    visible_runs,
)
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.records import Padded
from ser_lightning.training.scoring import evaluating
from tests.device_reads import DeviceReads
from tests.helpers import slow

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 6
BY_LAYER = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, **EXPERTS},
    "qwen2": {**BY_LAYER, "use_sliding_window": True},
    "qwen2_moe": {**BY_LAYER, **EXPERTS, "use_sliding_window": True, "shared_expert_intermediate_size": 16},
    "qwen3": {**BY_LAYER, "use_sliding_window": True},
    "qwen3_moe": {**EXPERTS, "sliding_window": WINDOW, "use_sliding_window": True},
    "gemma": {},
    "gemma2": BY_LAYER,
    "gemma3_text": BY_LAYER,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "olmo": {},
    "olmo2": {},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "smollm3": {**BY_LAYER, "use_sliding_window": True, "no_rope_layers": [1, 0, 1]},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
}
"""Every kind that `masks` knows, with a window shorter than the sequences wherever it can have one."""


def model_of(kind, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **settings}, num_labels=1)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "residual_dropout", "hidden_dropout"):
        setattr(config, name, 0.0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.3)  # far from 0, so that attention to the wrong place would show
    return model


def pairs_of_every_sort():
    """Sequences a and b: long, a prefix of the other, nothing shared, cut on the left, prompt longer than a window."""
    generator = torch.Generator().manual_seed(1)

    def draw(n):
        return torch.randint(3, 64, (n,), generator=generator).tolist()

    long, short = draw(30), draw(5)
    return [
        (long + draw(12), long + draw(9)),
        (short + [7, 8], short + [7, 8, *draw(6)]),
        (draw(4), draw(11)),
        ([3, *draw(1)], [3, *draw(14)]),
        (long[8:] + draw(10), long[8:] + draw(3)),
    ]


PAIRS = pairs_of_every_sort()


def inputs_of(pairs, layout):
    sequences = [a for a, _ in pairs] + [b for _, b in pairs]
    return layout.lay_out(sequences, [*range(len(pairs))] * 2, pad_token_id=0)


def scores_and_gradients(reward_model, layout, pairs=PAIRS):
    """(2B,) rewards and the gradients of a loss in which every one of them has a weight of its own."""
    reward_model.zero_grad()
    rewards = reward_model(inputs_of(pairs, layout))
    (rewards * torch.linspace(-1, 1.5, len(rewards))).sum().backward()
    return rewards.detach(), {n: p.grad.clone() for n, p in reward_model.named_parameters() if p.grad is not None}


def assert_same(reward_model, layout, atol=1e-5):
    expected, slopes = scores_and_gradients(reward_model, PADDED)
    found, own_slopes = scores_and_gradients(reward_model, layout)
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)
    assert slopes.keys() == own_slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(own_slopes[name], slope, atol=atol * max(1.0, float(slope.abs().max())), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_padded_in_scores_and_gradients(kind):
    model = model_of(kind)
    layout = choose_layout("shared_prompt", model, "cpu", "layout")
    assert layout.shares_prompts
    assert_same(RewardModel(model).train(), layout)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gemma2"])  # SDPA has no cap for its scores
def test_padded_rows_of_a_gpu_are_those_of_transformers_without_a_read(kind):
    model = RewardModel(model_of(kind)).train()
    for pairs, padding in ((PAIRS, "right"), ([(PAIRS[0][0], PAIRS[0][0][::-1])], "none")):
        assert inputs_of(pairs, PADDED).padding == padding
        model.model.set_attn_implementation("sdpa")
        expected, slopes = scores_and_gradients(model, PADDED, pairs)
        model.model.set_attn_implementation(masks.PADDED_ATTENTION)
        with DeviceReads() as reads:
            found, own_slopes = scores_and_gradients(model, PADDED, pairs)
        assert not reads.found or EXPERTS.items() <= KINDS[kind].items()  # routing to experts reads
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for name, slope in slopes.items():
            torch.testing.assert_close(
                own_slopes[name], slope, atol=1e-5 * max(1.0, float(slope.abs().max())), rtol=1e-4
            )


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_padding_of_which_nobody_knows_is_masked_as_ever(kind):
    model, inputs = RewardModel(model_of(kind)).eval(), inputs_of(PAIRS, PADDED)
    rows = [ids[mask.bool()] for ids, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True)]
    width = inputs.input_ids.shape[1]
    left = Padded(*(torch.stack([torch.cat([torch.zeros(width - len(x), dtype=torch.int64), x]) for x in columns])
                    for columns in (rows, [torch.ones_like(row) for row in rows])))  # fmt: skip
    with torch.no_grad():
        expected = model(inputs)
        model.model.set_attn_implementation(masks.PADDED_ATTENTION)
        torch.testing.assert_close(model(left), expected, atol=1e-5, rtol=1e-5)


def test_a_gpu_takes_these_masks_for_padded_rows():
    for kind, device, expected in (("llama", "cuda", masks.PADDED_ATTENTION), ("llama", "cpu", "sdpa")):
        model = model_of(kind)
        assert choose_layout("padded", model, device, "layout") is PADDED
        assert model.config._attn_implementation == expected
    encoder = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **SIZES))
    assert choose_layout("padded", encoder, "cuda", "layout") is PADDED
    assert encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_kernel_of_a_cpu(kind, attention):
    model = model_of(kind)
    model.set_attn_implementation(attention)
    assert_same(RewardModel(model).train(), choose_layout("shared_prompt", model, "cpu", "layout"))


@pytest.mark.parametrize("kind", [kind for kind, settings in KINDS.items() if "sliding_window" in settings])
def test_the_windows_of_these_tests_do_bite(kind):
    windowed, wide = (RewardModel(model_of(kind, sliding_window=n)) for n in (WINDOW, 100))
    with torch.no_grad():
        assert not torch.allclose(windowed(inputs_of(PAIRS, PADDED)), wide(inputs_of(PAIRS, PADDED)), atol=1e-3)


def test_every_known_kind_is_tested():
    assert KINDS.keys() == masks._MASKS.keys()


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "llama"])
def test_with_adapters(kind):
    model = model_of(kind)
    prepare_body(model, Backbone("x", lora=LoraSettings(r=2, dropout=0.0)))
    reward_model = RewardModel(model).train()
    with torch.no_grad():
        for name, p in reward_model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    assert_same(reward_model, choose_layout("shared_prompt", model, "cpu", "layout"))


def test_with_gradient_checkpointing():
    model = model_of("qwen2")
    prepare_body(model, Backbone("x", lora=LoraSettings(r=2, dropout=0.0), gradient_checkpointing=True))
    assert_same(RewardModel(model).train(), choose_layout("shared_prompt", model, "cpu", "layout"))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_in_4_bits(kind, tmp_path, tiny_tokenizer):
    """bfloat16 inside the 4-bit layers rounds sums in another order: near, not equal."""
    model_of(kind, vocab_size=len(tiny_tokenizer), hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    backbone = Backbone(str(tmp_path), quantize="nf4", lora=LoraSettings(r=2, dropout=0.0))
    reward_model = load_reward_model(backbone)
    assert reward_model.layout.shares_prompts
    expected, slopes = scores_and_gradients(reward_model, PADDED)
    found, own_slopes = scores_and_gradients(reward_model, reward_model.layout)
    spread = float(expected.std())
    assert float((found - expected).abs().max()) < 0.05 * spread
    for name, slope in slopes.items():
        assert float((own_slopes[name] - slope).norm()) <= 0.05 * float(slope.norm()) + 1e-6, name


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_pair_scores_alone_as_in_any_pack(kind):
    reward_model = RewardModel(model_of(kind)).eval()
    layout = choose_layout("auto", reward_model.model, "cpu", "layout")
    with torch.no_grad():
        alone = torch.stack([reward_model(inputs_of([pair], layout)) for pair in PAIRS], dim=1)
        orders = torch.Generator().manual_seed(0)
        for _ in range(4):
            order = torch.randperm(len(PAIRS), generator=orders).tolist()
            together = reward_model(inputs_of([PAIRS[i] for i in order], layout)).view(2, -1)
            torch.testing.assert_close(together, alone[:, order], atol=1e-5, rtol=1e-5)


def test_swapping_a_and_b_swaps_the_scores():
    reward_model = RewardModel(model_of("qwen3")).eval()
    layout = choose_layout("auto", reward_model.model, "cpu", "layout")
    with torch.no_grad():
        one = reward_model(inputs_of(PAIRS, layout)).view(2, -1)
        other = reward_model(inputs_of([(b, a) for a, b in PAIRS], layout)).view(2, -1)
    torch.testing.assert_close(one, other.flip(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_responses", [1, 3, 8])
def test_many_responses_to_one_prompt(num_responses):
    reward_model = RewardModel(model_of("mistral")).eval()
    generator = torch.Generator().manual_seed(num_responses)
    prompt = torch.randint(3, 64, (20,), generator=generator).tolist()
    rows = [[*prompt, *torch.randint(3, 64, (n + 1,), generator=generator).tolist()] for n in range(num_responses)]
    with torch.no_grad():
        found, expected = (
            reward_model(layout.lay_out(rows, [0] * num_responses, 0))
            for layout in (Layout(True, row_multiple=16), PADDED)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_visible_by_hand():
    packed = pack_sequences([[5, 6, 7, 8], [5, 6, 9], [4]], [[[0, 1], [2]]])  # 5 6 | 7 8 | 9, and 4
    places, row = torch.arange(6), torch.tensor(0)
    found = is_visible(visible_runs(packed, None), row, places[:, None], places[None, :])
    assert found.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    windowed = is_visible(visible_runs(packed, 2), row, places[:, None], places[None, :])
    assert windowed.int()[3:5].tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize("layout", [Layout(True, row_multiple=256), Layout(True, is_one_row=True, row_multiple=256)])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_block_masks_see_what_dense_masks_see(kind, layout):
    """Uncompiled FlexAttention on a CPU against attention by hand under the dense mask."""
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]})
    packed = inputs_of(PAIRS, layout)
    num_rows, length = packed.input_ids.shape
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(num_rows, 2, length, 16, generator=generator) for _ in range(3))
    config._attn_implementation = "sdpa"
    dense = attention_masks(config, packed)
    config._attn_implementation = "flex_attention"
    blocks = attention_masks(config, packed)
    if not isinstance(dense, dict):
        dense, blocks = {"all": dense}, {"all": blocks}
    assert dense.keys() == blocks.keys()
    for name in dense:
        scores = (query @ key.transpose(-1, -2) / 4).masked_fill(~dense[name], float("-inf"))
        found = flex_attention(query, key, value, block_mask=blocks[name])
        torch.testing.assert_close(found, scores.softmax(-1) @ value, atol=1e-5, rtol=1e-5)


def seen_by_definition(packed, window):
    """(L, L) bool of a batch of one row: a token sees another if some sequence has both, the other not after it."""
    length = packed.input_ids.shape[1]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for i, n in enumerate(packed.num_tokens.tolist()):
        places = packed.places(torch.arange(n).expand(len(packed.num_tokens), -1))[i].tolist()
        for query in range(n):
            for key in range(max(0, query - (window or n) + 1), query + 1):
                seen[places[query], places[key]] = True
    return seen


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("seed", [3, *slow(0, 1, 2)])
def test_block_masks_against_a_loop_over_pairs_of_tokens(seed, window):
    generator = torch.Generator().manual_seed(seed)

    def draw(most):
        return torch.randint(
            3, 64, (int(torch.randint(1, most, (), generator=generator)),), generator=generator
        ).tolist()

    prompts = [draw(most) for most in (300, 30, 150)]
    sequences, keys = zip(
        *((prompt + draw(most), k) for k, prompt in enumerate(prompts) for most in (200, 20)), strict=True
    )
    packed = Layout(True, is_one_row=True, row_multiple=BLOCK).lay_out(sequences, keys, pad_token_id=0)
    seen = seen_by_definition(packed, window)
    is_real = seen.diagonal()
    places = torch.arange(len(seen))
    assert torch.equal(
        is_visible(visible_runs(packed, window), torch.tensor(0), places[:, None], places)[is_real], seen[is_real]
    )
    mask = masks._block_mask(packed, window)
    blocks = seen.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    listed = {}
    for kind in ("kv", "full_kv"):
        counts, places = (getattr(mask, f"{kind}_{what}")[0, 0] for what in ("num_blocks", "indices"))
        listed[kind] = {(q, int(k)) for q in range(len(counts)) for k in places[q, : counts[q]]}
    diagonal = {(q, q) for q in range(len(counts))}  # padding sees itself
    assert listed["kv"] | listed["full_kv"] == diagonal | {tuple(b) for b in blocks.any(3).any(1).nonzero().tolist()}
    assert listed["full_kv"] <= {tuple(b) for b in blocks.all(3).all(1).nonzero().tolist()}
    assert not listed["kv"] & listed["full_kv"]


@pytest.fixture
def compilations(monkeypatch):
    """FlexAttention traced by TorchDynamo as on CUDA, but run by eager kernels; counts compilations."""
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, backend=counter)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *states: None)  # it refuses gradients on a CPU
    monkeypatch.setattr(transformers_flex, "WrappedFlexAttention", lambda training: lambda: compiled)
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "qwen2"])
def test_flex_attention_gives_scores_and_gradients_of_padded_rows(kind, compilations):
    model = model_of(kind)
    reward_model = RewardModel(model).train()
    expected, slopes = scores_and_gradients(reward_model, PADDED)
    layout = choose_layout("shared_prompt", model, "cuda", "layout")
    found, own_slopes = scores_and_gradients(reward_model, layout)
    assert compilations.frame_count > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, slope in slopes.items():
        torch.testing.assert_close(own_slopes[name], slope, atol=1e-5 * max(1.0, float(slope.abs().max())), rtol=1e-4)


# Of one window for all layers and of two; what several windows compute is tested above.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_many_batches_are_compiled_for_once(kind, compilations):
    """The first length of a row, and all others; with and without gradients. TorchDynamo gives up at 8."""
    model = model_of(kind)
    layout = choose_layout("shared_prompt", model, "cuda", "layout")
    reward_model = RewardModel(model).train()
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for step in range(12):
        counts = torch.randint(1, 90, (int(torch.randint(1, 12, (), generator=generator)), 3), generator=generator)
        pairs = [([5] * p + [7] * a, [5] * p + [8] * b) for p, a, b in counts.tolist()]
        inputs = inputs_of(pairs, layout)
        lengths.add(inputs.input_ids.shape[1])
        with torch.set_grad_enabled(step % 3 > 0):
            rewards = reward_model(inputs)
        if step % 3:
            rewards.sum().backward()
    assert len(lengths) > 6
    assert compilations.frame_count <= 4


def test_flex_attention_is_cast_as_autocast_casts_other_attention(compilations):
    model = model_of("qwen2")
    layout = choose_layout("shared_prompt", model, "cuda", "layout")
    with torch.autocast("cpu", torch.bfloat16):
        found, slopes = scores_and_gradients(RewardModel(model).train(), layout)
    assert found.isfinite().all() and slopes["model.model.layers.0.self_attn.q_proj.weight"].abs().max() > 0


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", *slow("qwen3")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *slow(torch.float32)])
def test_packed_rows_are_tried_before_auto_takes_them(kind, dtype, compilations, monkeypatch):
    model = model_of(kind).to(dtype)
    state = torch.random.get_rng_state()
    assert packing_failure(model, "cpu") is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(
        masks, "visible_runs", lambda packed, window: (packed.shared_end, packed.shared_end, packed.part_start)
    )
    assert packing_failure(model, "cpu").startswith("packed rows differ from padded ones by ")


def test_rounding_in_a_wide_model_is_no_difference(compilations):
    """A slope that is 0 but for rounding made `auto` pad models of 896 and more on an H100."""
    model = model_of("llama", hidden_size=2048, num_attention_heads=16, num_hidden_layers=1).to(torch.bfloat16)
    assert packing_failure(model, "cpu") is None


def test_auto_pads_where_flex_attention_does_not_compile(compilations, monkeypatch, caplog):
    def fail(training):
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(transformers_flex, "WrappedFlexAttention", fail)
    problem = "FlexAttention fails on this device (RuntimeError: no compiler here)"
    assert packing_failure(model_of("llama"), "cpu") == problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(masks, "packing_failure", lambda model, device: problem)
    with caplog.at_level("INFO"):
        assert choose_layout("auto", model_of("llama"), "cuda", "model.layout") == PADDED
    assert caplog.messages[-1] == f"Layout: padded, as {problem}."
    assert choose_layout("shared_prompt", model_of("llama"), "cuda", "model.layout").shares_prompts


def test_what_cannot_be_exact_is_padded_with_one_line_why(capsys, caplog):
    cases = {
        "a bloom takes no position ids": AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model("bloom", vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
        ),
        "longrope embeddings depend on the longest sequence of a batch": model_of(
            "phi3",
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            },
        ),
        "it is not known how a qwen3 masks in layers of chunked_attention": model_of("qwen3"),
        "packed rows are not known to be exact for a opt": AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model("opt", **{**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 32})
        ),
        "the attention implementation flash_attention_2 takes no masks of one's own": model_of("llama"),
    }
    cases["it is not known how a qwen3 masks in layers of chunked_attention"].config.layer_types = ["chunked_attention"]
    list(cases.values())[-1].config._attn_implementation = "flash_attention_2"
    for problem, model in cases.items():
        assert sharing_problem(model, is_cpu=True) == problem
        with caplog.at_level("INFO"):
            assert choose_layout("auto", model, "cpu", "model.layout") == PADDED
        assert caplog.messages[-1] == f"Layout: padded, as {problem}."
        with pytest.raises(UserError) as error:
            choose_layout("shared_prompt", model, "cpu", "model.layout")
        assert error.value.problems == [f"model.layout: got shared_prompt, but {problem}; use auto or padded"]


def test_cuda_takes_flex_attention_and_rows_of_few_lengths():
    model = model_of("llama")
    assert choose_layout("auto", model, "mps", "model.layout") == PADDED
    assert model.config._attn_implementation == "sdpa"
    layout = choose_layout("shared_prompt", model, "cuda", "model.layout")
    assert layout.shares_prompts and layout.row_multiple == BLOCK and layout.is_one_row
    assert model.model.layers[0].self_attn.config._attn_implementation == masks.PACKED_ATTENTION
    # Without a GPU, as in a plan, nothing can be tried.
    assert torch.cuda.is_available() or choose_layout("auto", model_of("llama"), "cuda", "model.layout") == layout
    assert sharing_problem(model_of("gpt2"), is_cpu=False) == "a gpt2 has no FlexAttention"
    dropout = model_of("llama", attention_dropout=0.1)
    assert sharing_problem(dropout, is_cpu=False) == "FlexAttention has no attention dropout"


def test_padded_is_padded_whatever_the_model():
    assert choose_layout("padded", model_of("llama"), "cpu", "layout") == PADDED


def test_scoring_pairs_of_a_real_tokenizer(tiny_model_dir):
    reward_model = load_reward_model(Backbone(str(tiny_model_dir), train="full"))
    with evaluating(reward_model):
        packed, padded = (reward_model(inputs_of(PAIRS, layout)) for layout in (reward_model.layout, PADDED))
    assert isinstance(inputs_of(PAIRS, PADDED), Padded)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
