"""Train the tokenizer and the small language model of the synthetic world on its unlabelled text.

Run from the repository's root (about 13 minutes on one core; the same seed gives the same weights on one machine):

    python scripts/pretrain_world_lm.py --output ser_lightning/synthetic/world_lm

The folder it writes is an ordinary transformers folder. No label and no gold reward is read: the text is conversations,
each of `TEXTS_PER_WRITER` turns with one writer, whose skill the model has to make out to foresee the next turn.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from ser_lightning.synthetic.world import TEXTS_PER_WRITER, WORLD_LM_PATH, generate_texts

CONTEXT_LENGTH = 256
VOCABULARY = 1200  # every word of the world is one token
PAD, BOS, EOS, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('The world has the roles user and assistant, got ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HELD_OUT_SEED_SHIFT = 1_000_003


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the world's text: any string can be encoded and comes back unchanged."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((text for pair in generate_texts(20_000, seed) for text in pair), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million weights, small enough to train and to ship."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def render_conversation(tokenizer: PreTrainedTokenizerFast, turns: Iterable[tuple[str, str]]) -> str:
    """Lay the turns with one writer out in the chat template."""
    messages = []
    for prompt, response in turns:
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield padded conversations without end: input_ids, attention_mask and labels, each (batch_size, T)."""
    texts = generate_texts(10**9, seed)
    while True:
        conversations = [render_conversation(tokenizer, islice(texts, TEXTS_PER_WRITER)) for _ in range(batch_size)]
        encoded = tokenizer(conversations, add_special_tokens=False, padding=True, truncation=True, return_tensors="pt")
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        yield {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> None:
    """One pass over fresh text with AdamW; the learning rate warms up, then falls along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=args.steps, pct_start=0.05, cycle_momentum=False
    )
    model.train()
    progress = tqdm(islice(batches(tokenizer, args.seed, args.batch_size), args.steps), total=args.steps)
    for batch in progress:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def held_out_perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Perplexity per token on 800 texts that were not trained on."""
    model.eval()
    unseen = islice(batches(tokenizer, seed + HELD_OUT_SEED_SHIFT, 20), 10)
    losses = [model(**batch).loss.item() for batch in unseen]
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=WORLD_LM_PATH, help="folder to write")
    parser.add_argument("--steps", type=int, default=2200, help="optimiser steps")
    parser.add_argument("--batch_size", type=int, default=8, help="conversations per step")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the text")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as fast as two on a model this small
    torch.manual_seed(args.seed)
    logging.disable_progress_bar()
    started = time.perf_counter()
    tokenizer = train_tokenizer(args.seed)
    model = build_model(tokenizer)
    train(model, tokenizer, args)
    print(f"held-out perplexity {held_out_perplexity(model, tokenizer, args.seed):.3f}")
    model.generation_config.max_new_tokens = 96
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"wrote {args.output}: {model.num_parameters():,} weights, {size / 2**20:.1f} MiB, ", end="")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
