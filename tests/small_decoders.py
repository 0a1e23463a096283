"""Small decoders of several kinds, pairs of all lengths for them, and what a loss over these gives."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 40
BY_LAYER = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {**BY_LAYER, "use_sliding_window": True},
    "gemma3_text": BY_LAYER,
    "gpt_neox": {},
}
"""No window, one in all layers, one in some, one in some under another scaling, and no gate in the MLP."""


def model_of(kind, device):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}, num_labels=1)
    for name in ("attention_dropout", "hidden_dropout"):
        setattr(config, name, 0.0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.1)  # far from 0, so that attention to the wrong place would show
    return model.to(device)


def pairs_of(number, seed):
    """Pairs of all lengths: prompts longer than a window, several blocks of a mask, pairs that share nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist()

    prompts = [draw(30, 160) if i % 4 else [] for i in range(number)]
    return [(prompt + draw(3, 70), prompt + draw(3, 70)) for prompt in prompts]


def scores_and_gradients(reward_model, layout, pairs, device):
    """(2B,) rewards, and all gradients of a loss that weighs each of them differently, as one vector."""
    reward_model.zero_grad()
    sequences = [a for a, _ in pairs] + [b for _, b in pairs]
    rewards = reward_model(layout.lay_out(sequences, [*range(len(pairs))] * 2, pad_token_id=0).to(device))
    (rewards * torch.linspace(-1, 1.5, len(rewards), device=device)).mean().backward()
    gradients = [p.grad.float().flatten() for p in reward_model.parameters() if p.grad is not None]
    return rewards.detach().float(), torch.cat(gradients)


def distance(found, expected):
    """Relative to the expected values as a whole."""
    return float((found - expected).norm() / expected.norm())
