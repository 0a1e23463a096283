"""A language model of some thousand weights with a token a byte, and pairs for it: for attacks, tests and timings."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with padding (id 0), BOS (1), EOS (2) and a chat template."""
    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=512)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_model(folder: Path) -> None:
    """A two-layer Llama of width 16 with that tokenizer, as transformers saves it; always the same weights."""
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_pairs(file: Path, number: int) -> None:
    """Pairs in which the response with the right sum was chosen, as JSON lines."""
    rng = random.Random(0)
    with file.open("w") as out:
        for i in range(number):
            right, wrong = f"It is {2 * i}.", f"It is {2 * i + rng.randint(1, 9)}, I think."
            out.write(json.dumps({"prompt": f"What is {i} plus {i}?", "chosen": right, "rejected": wrong}) + "\n")
