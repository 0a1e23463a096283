"""Peak memory of the models of an RL step: `python -m benchmarks.rl_memory.run`.

`shared` is one frozen base with adapters for policy, critic and reward model, whose bare self is the reference;
`separate` is four models with the same adapters, each on a base of its own. Both do the same work in a process of their
own: sample, score, measure, one update of policy and critic. Adds to results.jsonl; then `python -m benchmarks.tables`.
"""

import argparse
import json
import os
import re
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.shared.results import Results, machine, versions
from benchmarks.shared.runs import GIVE_BACK, child_environment, run_child

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ser_lightning.models.backbone import Backbone
    from ser_lightning.models.policy import Policy, Role

SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
"""The defaults make a model of 135 million parameters."""


class Models(NamedTuple):
    """Which model plays which role; the same one several times where they share a base."""

    policy: "Policy"
    reference: "Policy"
    reference_role: "Role"
    critic: "Policy"
    reward_model: "nn.Module"


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """A random Llama and a tokenizer of one token a byte, and the weights of a reward model on it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.shared.tiny_model import byte_tokenizer
    from ser_lightning.models.reward_model import load_reward_model

    byte_tokenizer().save_pretrained(folder)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, tie_word_embeddings=True))
    # Weights that need no conversion stay memory-mapped: four copies would be counted, but lie in memory once.
    model.to(torch.bfloat16).save_pretrained(folder)
    reward_model = load_reward_model(make_backbone(folder))
    fill_adapters(reward_model, "default", "reward")
    torch.save(reward_model.trainable_state(), folder / "reward.pt")


def make_backbone(folder: Path) -> "Backbone":
    """Adapters without dropout, which would differ between the two ways."""
    from ser_lightning.models.backbone import Backbone, LoraSettings

    return Backbone(str(folder), train="lora", lora=LoraSettings(dropout=0.0))


def fill_adapters(model: "nn.Module", adapter: str, role: str) -> None:
    """Random numbers that depend on role and place alone, so that both ways have the same adapters, none of them 0."""
    import torch
    from torch import nn

    from ser_lightning.utils.seeds import hash_seed

    for name, p in model.named_parameters():
        if found := re.search(rf"(layers\..*lora_[AB])\.{adapter}\.", name):
            generator = torch.Generator().manual_seed(hash_seed(role, found[1]))
            nn.init.normal_(p, std=0.02, generator=generator)


def load_models(way: str, folder: Path, device: str) -> Models:
    """The four models of an RL step."""
    import torch

    from ser_lightning.models.adapter_reward import adapter_reward_model
    from ser_lightning.models.policy import load_policy
    from ser_lightning.models.reward_model import load_reward_model

    backbone = make_backbone(folder)
    weights = torch.load(folder / "reward.pt", weights_only=True)
    if way == "shared":
        policy = load_policy(backbone, device, has_reference=True, has_critic=True).to(device)
        models = Models(policy, policy, "reference", policy, adapter_reward_model(policy, backbone, weights, "reward0"))
    else:
        policy = load_policy(backbone, device).to(device)
        reference = load_policy(replace(backbone, train="full"), device).requires_grad_(False).to(device)
        critic = load_policy(backbone, device, has_critic=True).to(device)
        body: Any = critic.body
        body.set_adapter("critic")
        body.delete_adapter("policy")
        reward_model = load_reward_model(backbone, device)
        reward_model.load_trainable_state(weights)
        models = Models(policy, reference, "policy", critic, reward_model.requires_grad_(False).to(device))
    fill_adapters(models.policy, "policy", "policy")
    fill_adapters(models.critic, "critic", "critic")
    for model in (models.policy, models.reference, models.critic, models.reward_model):
        model.eval()
    return models


def one_step(models: Models, args: argparse.Namespace) -> dict[str, "Tensor"]:
    """Sample, score, measure, learn, as `PPOModule` does; every figure that says whether two ways agree."""
    import numpy as np
    import torch

    from ser_lightning.data.layouts import PADDED
    from ser_lightning.rl.experience import PPOSettings, make_experience, micro_batches
    from ser_lightning.rl.policy_math import clipped_policy_loss, clipped_value_loss
    from ser_lightning.rl.rollout import Generator, Sampling, response_logps, response_values, uniform_numbers

    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 256, (args.responses, args.prompt_tokens), generator=draw).tolist()
    uniform = uniform_numbers((0,), args.responses, args.new_tokens).to(args.device)
    generator = Generator(Sampling(args.new_tokens), [2], 0, tokens_per_batch=16384)
    rollout = generator.sample(models.policy, "policy", prompts, uniform)
    [batch] = micro_batches(rollout, np.arange(len(rollout)), 10**9, PADDED, args.device)
    mask, settings = rollout.response_mask.to(args.device), PPOSettings()

    def table(values: "Tensor") -> "Tensor":
        return torch.zeros(mask.numel(), device=mask.device).index_copy(0, batch.table_places, values).view(mask.shape)

    with torch.no_grad():
        score = models.reward_model(batch.inputs)
        logp = table(response_logps(models.policy, "policy", batch, 1.0)[0])
        ref_logp = table(response_logps(models.reference, models.reference_role, batch, 1.0)[0])
        value = table(response_values(models.critic, batch))
    learned = make_experience(rollout, score, logp, ref_logp, value, 0.05, "gae", 1, settings)
    assert learned.returns is not None

    trained = {"policy": models.policy.parameters_of("policy"), "critic": models.critic.parameters_of("critic")}
    optimizers = [torch.optim.AdamW(parameters, lr=1e-3) for parameters in trained.values()]
    new_logp = table(response_logps(models.policy, "policy", batch, 1.0)[0])
    tokens = new_logp[mask], logp[mask], learned.advantage[mask]
    policy_loss = clipped_policy_loss(*tokens, settings.clip_range)[0] / mask.sum()
    policy_loss.backward()
    new_value = table(response_values(models.critic, batch))
    tokens = new_value[mask], value[mask], learned.returns[mask]
    value_loss = clipped_value_loss(*tokens, settings.value_clip_range) / mask.sum()
    value_loss.backward()
    norms = {f"{role}_gradient": torch.nn.utils.clip_grad_norm_(p, 1.0) for role, p in trained.items()}
    for optimizer in optimizers:
        optimizer.step()
    with torch.no_grad():
        after = table(response_logps(models.policy, "policy", batch, 1.0)[0])
        value_after = table(response_values(models.critic, batch))
    figures = {"tokens": mask.sum(), "score": score, "kl": learned.kl.sum(-1), "value_loss": value_loss}
    # A policy loss of whitened advantages is 0 before the first update; that after it says more.
    moved = {"moved_logp": (after - logp).sum(-1), "moved_value": value_after.sum(-1)}
    return {name: x.detach().cpu() for name, x in {**figures, "policy_loss": policy_loss, **norms, **moved}.items()}


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """One step in one way, and its memory."""
    import torch

    before = peak_bytes()
    models = load_models(way, args.scratch / "model", args.device)
    loaded = peak_bytes()
    figures = one_step(models, args)
    counted = {id(p): p for model in models if isinstance(model, torch.nn.Module) for p in model.parameters()}
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in counted.values()),
        "code_mib": before / 2**20,
        "loaded_peak_mib": loaded / 2**20,
        "peak_mib": peak_bytes() / 2**20,
        "figures": {name: x.flatten().tolist() for name, x in figures.items()},
    }
    if args.device != "cpu":
        found["device_peak_mib"] = torch.cuda.max_memory_reserved() / 2**20
        found["device"] = torch.cuda.get_device_name()
    return found


def check_same(ways: dict[str, dict[str, Any]]) -> float:
    """Largest relative difference of any figure of the two ways; `RuntimeError` if it is more than rounding."""
    ours, others = (ways[way].pop("figures") for way in ("shared", "separate"))
    worst = 0.0
    for name, values in ours.items():
        size = max(map(abs, values))
        differences = [abs(a - b) for a, b in zip(values, others[name], strict=True)]
        # A loss that is 0 up to rounding has no relative error.
        if max(differences) > 1e-3 * size + 1e-6:
            raise RuntimeError(f"{name} differs: {values} shared, {others[name]} separate")
        worst = max(worst, max(differences) / (size + 1e-3))
    return worst


def main() -> None:
    """Write the model, measure both ways, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {**SIZES, "responses": 8, "prompt_tokens": 64, "new_tokens": 32}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scratch", type=Path, default=Path("runs/rl_memory"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--only", choices=["model", "shared", "separate"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "model":
        write_model(args.scratch / "model", {name: getattr(args, name) for name in SIZES})
        return
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    args.scratch.mkdir(parents=True, exist_ok=True)
    given = [f"--{name}={getattr(args, name)}" for name in (*sizes, "device")]
    command = [sys.executable, "-m", "benchmarks.rl_memory.run", *given, "--scratch", str(args.scratch), "--only"]
    _run([*command, "model"])
    ways = {way: json.loads(_run([*command, way]).splitlines()[-1]) for way in ("shared", "separate")}
    difference = check_same(ways)
    column = "peak_mib" if args.device == "cpu" else "device_peak_mib"
    shared, separate = ways["shared"][column], ways["separate"][column]
    changed = [f"--{name}={getattr(args, name)}" for name in sizes if getattr(args, name) != sizes[name]]
    changed += [f"--device={args.device}"] if args.device != "cpu" else []
    result = {
        "command": " ".join(["python -m benchmarks.rl_memory.run", *changed]),
        "device": args.device,
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft"),
        "work": {name: getattr(args, name) for name in sizes},
        "ways": ways,
        "separate_over_shared": separate / shared,
        "largest_relative_difference": difference,
    }
    print(f"{column}: {shared:.0f} shared, {separate:.0f} separate, {separate / shared:.2f} times as much")
    Results(args.out, "device").add(result)


def _run(command: list[str]) -> str:
    """What a child prints; this process stays small, since a child's peak starts with that of who started it."""
    return run_child(command, {**child_environment(os.cpu_count() or 1), **GIVE_BACK})


if __name__ == "__main__":
    main()
