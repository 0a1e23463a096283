"""What `plan` expects of the overlays of `hardware/` on bodies of 2 to 8B: `python -m benchmarks.hardware_plan.run`.

Makes folders that hold the published shapes of known models (no weights, the tokenizer of the bundled model) and pairs
as long as `data.max_length` allows, and adds to results.jsonl; then `python -m benchmarks.tables`. Nothing was measured
on a GPU.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.shared.results import Results, machine, versions
from benchmarks.shared.runs import child_environment, run_child

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    "mistral-7b": {"model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336}
    | {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None},
    "qwen2.5-7b": {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
    | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
    "qwen3-8b": {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288}
    | {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "gemma2-2b": {"model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216}
    | {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
}
"""Overlay of `models/` -> the shape of its model, as its card gives it."""
OVERLAYS = {"qlora_12gb": 12, "qlora_24gb": 24, "lora_80gb": 80}
"""Overlay of `hardware/` -> GB of the card that it is meant for."""


def write_shape(folder: Path, shape: dict[str, Any]) -> None:
    """A folder from which `plan` can build a model without weights."""
    from transformers import AutoConfig

    from ser_lightning.models.backbone import Backbone, load_tokenizer

    settings = {k: v for k, v in shape.items() if k != "model_type"}
    config = AutoConfig.for_model(shape["model_type"], **settings, max_position_embeddings=8192, pad_token_id=0)
    config.save_pretrained(folder)
    load_tokenizer(Backbone("world_lm")).save_pretrained(folder)


def write_long_pairs(file: Path) -> None:
    """Pairs of which some fill any length that an overlay allows."""
    rows = []
    for i in range(100):
        words = " ".join(["tea"] * (18 * (i + 1)))
        rows.append(
            {"prompt": f"Tell me {i}. {words[: len(words) // 3]}", "chosen": words, "rejected": words[:-3] + "sun"}
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Plan every model under every overlay and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("runs/hardware"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    write_long_pairs(args.scratch / "pairs.jsonl")
    made_with = {"machine": machine(), "versions": versions("torch", "transformers", "peft", "bitsandbytes")}
    for model, shape in SHAPES.items():
        write_shape(args.scratch / model, shape)
        for overlay, gigabytes in OVERLAYS.items():
            file = args.scratch / "plan.json"
            flags = ["--config", "rm.yaml", "--config", f"models/{model}.yaml", "--config", f"hardware/{overlay}.yaml"]
            own = ["--model.backbone.path", str(args.scratch / model), "--data.path", str(args.scratch / "pairs.jsonl")]
            own += ["--model.reading", "last", "--data.seed_fraction", "0.5"]
            own += ["--data.cache_dir", str(args.scratch / "cache"), "--overwrite", "--json", str(file)]
            words = [sys.executable, "-m", "ser_lightning", "plan", *flags, *own]
            run_child(words, child_environment(os.cpu_count() or 1))
            plan = json.loads(file.read_text())
            memory = {name: plan["memory"][name] for name in ("optimizer", "batch_tokens", "kinds", "all")}
            line = {"model": model, "overlay": overlay, "gigabytes": gigabytes, **memory}
            Results(args.out, "model", "overlay").add({**line, **made_with})
            print(f"{model} {overlay}", flush=True)


if __name__ == "__main__":
    main()
