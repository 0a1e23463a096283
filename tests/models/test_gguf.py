"""Weights out of a GGUF file are those of the folder that it was made of, and are saved as any others."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.policy import load_policy
from ser_lightning.models.reward_model import load_reward_model, merged_model
from ser_lightning.training.own_answer import answer_direction

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_gguf(file, model, tokenizer):
    """As llama.cpp's converter does for a Llama, in 32 bits; the last token is the one that transformers adds."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    for add, value in (
        (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_block_count, config.num_hidden_layers),
        (writer.add_feed_forward_length, config.intermediate_size),
        (writer.add_head_count, config.num_attention_heads),
        (writer.add_head_count_kv, config.num_key_value_heads),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_vocab_size, config.vocab_size),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_token_list, [*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "<|endoftext|>"]),
        (writer.add_token_merges, [*map(" ".join, merges)]),
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_chat_template, tokenizer.chat_template),
    ):
        add(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns neighbours, transformers two halves
            heads = config.num_attention_heads
            tensor = tensor.reshape(heads, 2, len(tensor) // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def made_of():
    """The model in `model/tiny.gguf`."""
    tokenizer = load_tokenizer(Backbone("world_lm"))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 1, **SIZES))
    Path("model").mkdir()
    write_gguf("model/tiny.gguf", model, tokenizer)
    return model


def test_a_gguf_file_is_loaded_as_what_it_was_made_of_and_saved_as_any_other(made_of):
    backbone = Backbone("model", train="full", gguf_file="tiny.gguf")
    tokenizer = load_tokenizer(backbone)
    ids = torch.tensor([tokenizer.encode("Is it 4? It is.")])
    assert ids.tolist() == [load_tokenizer(Backbone("world_lm")).encode("Is it 4? It is.")]
    expected = made_of.eval()(ids).logits
    policy, reward_model = load_policy(backbone), load_reward_model(backbone)
    with torch.no_grad():
        assert torch.allclose(policy.lm.eval()(ids).logits, expected, atol=1e-5)
        before = reward_model.model.eval()(ids).logits
        merged_model(reward_model).save_pretrained("saved")
        saved = AutoModelForSequenceClassification.from_pretrained("saved").eval()
        assert torch.equal(saved(ids).logits, before) and not hasattr(saved.config, "quantization_config")
    rows = made_of.lm_head.weight[[tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No")]]
    assert torch.allclose(answer_direction(backbone, tokenizer), rows[0] - rows[1], atol=1e-6)
