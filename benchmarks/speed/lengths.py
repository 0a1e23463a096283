"""Made-up pairs with the lengths of known data sets, and a model for them. No text of any data set is here."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCABULARY = 8000
SPECIAL = ("<pad>", "<eos>")
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
"""A Llama of 25.7M weights in its layers and 4.1M in its embeddings."""


@dataclass(frozen=True)
class Profile:
    """Lengths in tokens, log-normal, with the moments of a sample of a data set (four characters a token).

    Attributes:
        prompt: mean and standard deviation of the logarithm.
        response: the same of either response.
        correlation: of the logarithms of both responses.
        max_length: longest conversation; longer prompts lose their beginning, as in training.
    """

    prompt: tuple[float, float]
    response: tuple[float, float]
    correlation: float
    max_length: int


PROFILES = {
    "hh": Profile((4.44, 1.16), (3.80, 1.05), 0.41, 512),
    "ultrafeedback": Profile((4.41, 1.10), (4.93, 1.20), 0.51, 1024),
}
"""HH-RLHF (helpful, base and rejection sampling): prompts of 2.15 times the responses. UltraFeedback: 0.53 times."""


def lengths_of(profile: Profile, num_pairs: int, seed: int) -> np.ndarray:
    """(N, 3) tokens of prompt, response a and response b."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((num_pairs, 3))
    noise[:, 2] = profile.correlation * noise[:, 1] + (1 - profile.correlation**2) ** 0.5 * noise[:, 2]
    means = np.array([profile.prompt[0], profile.response[0], profile.response[0]])
    deviations = np.array([profile.prompt[1], profile.response[1], profile.response[1]])
    lengths = np.exp(means + deviations * noise).astype(int) + 1
    responses = np.minimum(lengths[:, 1:], profile.max_length - 1)
    prompt = np.minimum(lengths[:, 0], profile.max_length - responses.max(axis=1))
    return np.column_stack([prompt, responses])


def lengths_in(folder: Path, num_pairs: int, max_length: int) -> np.ndarray:
    """(N, 3) lengths of the first pairs of a user's files (`prompt`, `chosen`, `rejected`), four characters a token."""
    rows = []
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                pair = json.loads(line)
                rows.append([1 + len(str(pair[name])) // 4 for name in ("prompt", "chosen", "rejected")])
    found = np.random.default_rng(0).permutation(np.asarray(rows))[:num_pairs]
    found[:, 1:] = np.minimum(found[:, 1:], max_length - 1)
    found[:, 0] = np.minimum(found[:, 0], max_length - found[:, 1:].max(axis=1))
    return found


def make_pairs(lengths: np.ndarray, seed: int) -> list[tuple[list[int], list[int]]]:
    """Ids of both conversations of each pair; the responses part at their first token and end in EOS."""
    generator = np.random.default_rng(seed)
    pairs = []
    for prompt, *responses in lengths.tolist():
        shared = generator.integers(len(SPECIAL), VOCABULARY - 1, prompt).tolist()
        a, b = (generator.integers(len(SPECIAL), VOCABULARY - 1, n).tolist() for n in responses)
        a[0], b[0] = VOCABULARY - 1, 2 + b[0] % (VOCABULARY - 3)
        pairs.append(([*shared, *a[:-1], 1], [*shared, *b[:-1], 1]))
    return pairs


def write_model(folder: Path) -> None:
    """Random weights, and a tokenizer in which id n is the word wn."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForSequenceClassification(LlamaConfig(**MODEL, num_labels=1)).save_pretrained(folder)
    words = {**{word: i for i, word in enumerate(SPECIAL)}, **{f"w{i}": i for i in range(len(SPECIAL), VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.model_max_length = MODEL["max_position_embeddings"]
    fast.save_pretrained(folder)


def text_of(ids: list[int]) -> str:
    """Words that the tokenizer turns into these ids."""
    return " ".join(SPECIAL[i] if i < len(SPECIAL) else f"w{i}" for i in ids)
