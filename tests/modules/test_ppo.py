"""Steps of the RL stage against plain transformers and autograd; validation, judges, resuming, wrong input."""

import itertools
import math
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch.func import functional_call
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from ser_lightning.__main__ import main
from ser_lightning.callbacks.policy_watch import PolicyWatch
from ser_lightning.data.encode import encode_candidates, encode_prompts
from ser_lightning.datamodules.prompts import PromptDataModule
from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, LoraSettings, load_tokenizer
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.records import Padded
from ser_lightning.rl.experience import PPOSettings
from ser_lightning.rl.policy_math import AdaptiveKL, FixedKL
from ser_lightning.rl.reward_functions import ModelReward
from ser_lightning.rl.reward_sources import load_reward
from ser_lightning.rl.rollout import Sampling, uniform_numbers
from tests.helpers import problems_of, save_reward_model, slow, trainer

STOP = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ")
"""One in seven of the tiny model's tokens: some responses end and some do not."""
ROOM = 8
LR, CLIP_NORM, KL_WEIGHT = 0.3, 0.5, 0.3


def letters(prompts, responses):
    """A reward that depends on every character of prompt and response."""
    return [(sum(map(ord, r)) % 7 + len(p[-1]["content"]) % 3) / 4 - 1 for p, r in zip(prompts, responses, strict=True)]


def vowels(prompts, responses):
    return [float(sum(c in "aeiou" for c in r) - len(r) / 5) for r in responses]


@pytest.fixture(autouse=True)
def _rewards(monkeypatch):
    """The functions under dotted paths, as a config names them."""
    wrong = {"nans": lambda p, r: [math.nan] * len(r), "too_few": lambda p, r: [0.0] * (len(r) - 1)}
    monkeypatch.setitem(sys.modules, "my_rewards", SimpleNamespace(letters=letters, vowels=vowels, **wrong))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def reward_flags(tiny_model_dir, pairs_file, cache):
    """Flags of a calibrated reward model's fit on the tiny model; adapters."""
    return [
        *("--config", "rm.yaml", "--model.reading=last", f"--data.path={pairs_file}", f"--data.cache_dir={cache}"),
        *(f"--model.backbone.path={tiny_model_dir}", "--model.backbone.train=lora"),
        *("--data.max_length=64", "--data.pairs_per_step=8", "--data.seed_fraction=0.3"),
        *("--evolution.max_rounds=0", "--evolution.seed_epochs=1", "--evolution.folds=2"),
        *("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
    ]


@pytest.fixture(scope="module")
def reward_run(reward_flags, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("reward") / "run"
    assert main(["fit", *reward_flags, f"--run_dir={run}"]) == 0
    return run


def module(path, train="full", advantage="gae", reward="my_rewards.letters", is_checkpointed=False, **kwargs):
    names = {f.name for f in fields(PPOSettings)}
    settings = {"epochs": 2, "whiten_advantages": True, **{k: kwargs.pop(k) for k in names & kwargs.keys()}}
    defaults = {
        "kl_control": FixedKL(KL_WEIGHT),
        "sampling": Sampling(ROOM, stop=STOP),
        "optimizer": lambda p: torch.optim.SGD(p, lr=LR),
        "critic_optimizer": lambda p: torch.optim.SGD(p, lr=LR / 2),
        "max_grad_norm": CLIP_NORM,
        "responses_per_prompt": 1 if advantage == "gae" else 3,
    }
    lora = LoraSettings(r=4, alpha=8, dropout=0.0)
    backbone = Backbone(str(path), train=train, lora=lora, gradient_checkpointing=is_checkpointed)
    return PPOModule(backbone, reward, ppo=PPOSettings(**settings), advantage=advantage, **{**defaults, **kwargs})


class Shaken(Callback):
    """Moves policy and critic away from the reference before training, so that KL and values are there; takes notes."""

    def __init__(self, scale=0.1):
        self.scale, self.figures, self.start_answers, self.answers = scale, [], [], []

    def on_fit_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(1)
        for p in pl_module.policy.trainable_state().values():
            p += self.scale * torch.randn(p.shape, generator=generator)
        self.start = weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batch = batch
        self.figures.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_validation_end(self, trainer, pl_module):
        self.answers.append(pl_module.answers)
        self.start_answers.append(pl_module.start_answers)


def fit(model, pairs_file, cache, *callbacks, steps=1, epochs=1, num_prompts=4, **kwargs):
    seed_everything(0, verbose=False)
    data = PromptDataModule(
        *(str(pairs_file),), max_length=64, prompts_per_step=num_prompts, steps_per_epoch=steps, num_val_prompts=5,
        val_prompts_per_batch=2, cache_dir=cache,
    )  # fmt: skip
    settings = {"limit_val_batches": 0, "max_epochs": epochs, "log_every_n_steps": 1, **kwargs}
    trainer("run", *callbacks, **settings).fit(model, data)
    return data


@pytest.mark.parametrize(("role", "name"), [("policy", "optimizer"), ("critic", "critic_optimizer")])
def test_a_gradient_that_is_not_finite_ends_the_run_before_a_step(tiny_model_dir, pairs_file, cache, role, name):
    model, changed = module(tiny_model_dir), {}

    class Breaks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            changed.update(weights(pl_module))
            pl_module.policy.parameters_of(role)[0].register_hook(lambda grad: grad * math.inf)

    with pytest.raises(UserError) as error:
        fit(model, pairs_file, cache, Breaks())
    assert error.value.problems == [
        f"train: got a gradient norm of nan for the {role} in step 0; lower model.{name}.init_args.lr, or look for the "
        "cause with --config debug/anomaly.yaml"
    ]
    assert all(torch.equal(changed[n], p) for n, p in weights(model).items())


def weights(model):
    return {k: v.detach().clone() for k, v in model.policy.trainable_state().items()}


def close(one, other, atol):
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=atol) for k in one)


class Oracle:
    """One step, row by row, with plain transformers, lists and autograd.

    Args:
        path: of the pretrained model.
        start: trained weights before the step, by the module's names.
    """

    def __init__(self, path, start):
        self.plain = AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.ends = {self.tokenizer.eos_token_id, *(self.tokenizer(text).input_ids[-1] for text in STOP)}
        self.leaves = {name: p.clone().requires_grad_() for name, p in start.items()}

    def of(self, role):
        return {
            name: p
            for name, p in self.leaves.items()
            if ("critic" in name or "value_head" in name) == (role != "policy")
        }

    def policy_weights(self):
        own, made = self.of("policy"), dict(self.plain.named_parameters())
        for name, p in own.items():
            if ".lora_A." in name:
                layer = name.split("base_model.model.")[1].split(".lora_A.")[0]
                change = 8 / 4 * own[name.replace("lora_A", "lora_B")] @ p
                made[f"model.{layer}.weight"] = made[f"model.{layer}.weight"] + change
            elif ".lora_B." not in name:
                made[name.removeprefix("lm.")] = p
        return made

    def logits(self, named, ids):
        return functional_call(self.plain, named, (), {"input_ids": torch.tensor([ids])}).logits[0]

    def respond(self, named, prompt, numbers):
        ids = []
        with torch.no_grad():
            while len(ids) < ROOM and not (ids and ids[-1] in self.ends):
                cumulated = self.logits(named, [*prompt, *ids])[-1].double().softmax(-1).cumsum(-1)
                ids.append(int((cumulated <= float(numbers[len(ids)])).sum()))
        return ids, ids[-1] in self.ends

    def text(self, ids, has_ended):
        return self.tokenizer.decode(ids[:-1] if has_ended else ids, skip_special_tokens=True).strip()

    def logps(self, named, row):
        logits = self.logits(named, row["prompt"] + row["ids"])[len(row["prompt"]) - 1 : -1]
        return logits.log_softmax(-1)

    def values(self, row):
        body = {k.removeprefix("others.critic."): p for k, p in self.of("critic").items() if k.startswith("others")}
        ids = torch.tensor([row["prompt"] + row["ids"]])
        hidden = functional_call(self.plain.model, body, (), {"input_ids": ids}).last_hidden_state[0]
        head = [self.leaves["value_head.weight"], self.leaves["value_head.bias"]]
        return torch.nn.functional.linear(hidden, *head)[len(row["prompt"]) - 1 : -1, 0]

    def rows(self, batch, group):
        numbers = uniform_numbers((0, "train", 0), len(batch.prompts) * group, ROOM)
        named, made = self.policy_weights(), []
        for i, prompt in enumerate(p for p in batch.prompts for _ in range(group)):
            ids, has_ended = self.respond(named, prompt.ids, numbers[i])
            row = {"prompt": prompt.ids, "ids": ids, "has_ended": has_ended}
            row["reward"] = letters([prompt.turns], [self.text(ids, has_ended)])[0]
            at = torch.arange(len(ids)), torch.tensor(ids)
            row["old"] = self.logps(named, row)[at].detach()
            row["kl"] = row["old"] - self.logps(dict(self.plain.named_parameters()), row)[at]
            made.append(row)
        return made

    def add_advantages(self, rows, group):
        scores = [row["reward"] - (0 if row["has_ended"] else 1.0) for row in rows]
        totals = [score - KL_WEIGHT * float(row["kl"].sum()) for score, row in zip(scores, rows, strict=True)]
        for i, row in enumerate(rows):
            if group > 1:
                others = [totals[j] for j in range(len(rows)) if j // group == i // group and j != i]
                row["advantage"] = torch.full((len(row["ids"]),), totals[i] - sum(others) / len(others))
                continue
            row["value"], row["advantage"] = self.values(row).detach(), torch.zeros(len(row["ids"]))
            for t in range(len(row["ids"])):
                for u in range(t, len(row["ids"])):
                    is_last = u + 1 == len(row["ids"])
                    following = 0.0 if is_last else row["value"][u + 1]
                    reward = -KL_WEIGHT * row["kl"][u] + (scores[i] if is_last else 0.0)
                    row["advantage"][t] += 0.95 ** (u - t) * (reward + following - row["value"][u])
            row["returns"] = row["advantage"] + row["value"]
        flat = torch.cat([row["advantage"] for row in rows])
        for row in rows:
            row["advantage"] = (row["advantage"] - flat.mean()) / flat.std(correction=0)

    def step(self, batch, group, epochs=2):
        rows = self.rows(batch, group)
        self.add_advantages(rows, group)
        num_tokens = sum(len(row["ids"]) for row in rows)
        optimizers = {"policy": torch.optim.SGD(self.of("policy").values(), lr=LR)}
        if group == 1:
            optimizers["critic"] = torch.optim.SGD(self.of("critic").values(), lr=LR / 2)
        for _ in range(epochs):
            losses = dict.fromkeys(optimizers, torch.zeros(()))
            for row in rows:
                logp = self.logps(self.policy_weights(), row)[torch.arange(len(row["ids"])), torch.tensor(row["ids"])]
                ratio = (logp - row["old"]).exp()
                gain = torch.minimum(ratio * row["advantage"], ratio.clamp(0.8, 1.2) * row["advantage"])
                losses["policy"] = losses["policy"] - gain.sum() / num_tokens
                if group == 1:
                    value, old, target = self.values(row), row["value"], row["returns"]
                    near = old + (value - old).clamp(-0.2, 0.2)
                    worse = torch.maximum((value - target) ** 2, (near - target) ** 2)
                    losses["critic"] = losses["critic"] + worse.sum() / 2 / num_tokens
            for role, optimizer in optimizers.items():
                optimizer.zero_grad()
                losses[role].backward()
                parameters = list(self.of(role).values())
                norm = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))
                for p in parameters:
                    p.grad *= min(1.0, CLIP_NORM / norm)
                optimizer.step()
        return rows


@pytest.mark.parametrize(("train", "advantage"), [("lora", "rloo"), ("full", "gae")])
def test_a_step_is_that_of_plain_transformers_and_autograd(tiny_model_dir, pairs_file, cache, train, advantage):
    model, notes = module(tiny_model_dir, train, advantage, tokens_per_batch=100), Shaken()
    fit(model, pairs_file, cache, notes)
    oracle = Oracle(tiny_model_dir, notes.start)
    rows = oracle.step(notes.batch, model.responses_per_prompt)
    (figures,) = notes.figures
    for name, of in {
        "reward": lambda row: row["reward"],
        "kl": lambda row: float(row["kl"].sum()),  # what the oracle took off the rewards
        "length": lambda row: len(row["ids"]),
        "eos_rate": lambda row: row["has_ended"],
    }.items():
        assert figures[f"train/{name}"] == pytest.approx(sum(map(of, rows)) / len(rows), abs=1e-4), name
    assert abs(figures["train/kl"]) > 0.01 and 0 < figures["train/eos_rate"] < 1
    found, leaves = weights(model), oracle.leaves
    assert close(found, leaves, atol=2e-5)
    assert not close({k: notes.start[k] for k in found}, leaves, atol=1e-2)


KNOBS = {
    "epochs": 1,
    "minibatches": 2,
    "clip_range": 1e-3,
    "value_clip_range": 1e-3,
    "gamma": 0.7,
    "gae_lambda": 0.5,
    "whiten_advantages": False,
    "missing_eos_penalty": 0.0,
}


def test_every_setting_changes_what_is_learnt(tiny_model_dir, pairs_file, cache):
    assert KNOBS.keys() == {f.name for f in fields(PPOSettings)}

    def learnt(**knobs):
        model = module(tiny_model_dir, **knobs)
        fit(model, pairs_file, cache, Shaken())
        return weights(model)

    before = learnt()
    assert close(before, learnt(), atol=0)  # so that whatever changes is the knob's doing
    for name, value in KNOBS.items():
        assert not close(before, learnt(**{name: value}), atol=1e-4), name


@pytest.mark.parametrize(("train", "advantage"), [("lora", "grpo"), ("full", "gae")])
def test_token_budgets_change_nothing(tiny_model_dir, pairs_file, cache, train, advantage):
    found = []
    for budget in (1, 10_000):
        model = module(tiny_model_dir, train, advantage, minibatches=2, tokens_per_batch=budget,
                       tokens_per_sampling_batch=budget)  # fmt: skip
        fit(model, pairs_file, cache, Shaken())
        found.append(weights(model))
    assert close(*found, atol=1e-5)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_gradient_checkpointing_changes_no_step(tiny_model_dir, pairs_file, cache, train):
    """A backward pass that computes the states again has to find the adapter of its role in place."""
    found = []
    for is_checkpointed in (False, True):
        model = module(tiny_model_dir, train, is_checkpointed=is_checkpointed)
        fit(model, pairs_file, cache, Shaken())
        found.append(weights(model))
    assert any("critic" in name for name in found[0])
    assert close(*found, atol=1e-6)


@pytest.fixture(scope="module")
def sft_runs(tiny_model_dir, pairs_file, cache, tmp_path_factory):
    """Folders of runs of sft.yaml, by how they trained."""
    runs = {train: tmp_path_factory.mktemp("sft") / train for train in ("lora", "full")}
    for train, run in runs.items():
        assert main([
            *("fit", "--config", "sft.yaml", f"--model.backbone.path={tiny_model_dir}", f"--run_dir={run}"),
            *(f"--model.backbone.train={train}", "--model.backbone.lora.r=4", "--model.backbone.lora.alpha=8"),
            *("--model.optimizer.init_args.lr=3e-2", f"--data.path={pairs_file}", f"--data.cache_dir={cache}"),
            *("--data.seed_fraction=0.3", "--data.max_length=64", "--trainer.max_epochs=1"),
            *("--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
        ]) == 0  # fmt: skip
    return runs


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("has_start", [False, True])
def test_the_first_step_has_no_kl(tiny_model_dir, pairs_file, cache, sft_runs, train, has_start):
    model = module(sft_runs[train] if has_start else tiny_model_dir, train)
    notes = Shaken(scale=0.0)
    fit(model, pairs_file, cache, notes, steps=2)
    assert notes.figures[0]["train/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(notes.figures[1]["train/kl"]) > 1e-4  # by the second one it has learnt something
    if has_start:  # and the start was no other than what fine-tuning had made of the model
        bare, ids = Oracle(tiny_model_dir, {}), notes.batch.prompts[0].ids
        with torch.no_grad():
            logits = model.policy.head("reference")(
                model.policy.eval().hidden("reference", Padded(torch.tensor([ids]), torch.ones(1, len(ids)).long()))
            )
        assert not torch.allclose(logits[0], bare.logits(bare.policy_weights(), ids), atol=0.1)


@pytest.mark.parametrize("train", ["lora", *slow("full")])
def test_held_out_prompts_are_answered_alike_each_time(tiny_model_dir, pairs_file, cache, train):
    model, notes = module(tiny_model_dir, train, judge="my_rewards.vowels"), Shaken(scale=0.0)
    watch = PolicyWatch(num_samples=0)
    kwargs = {"epochs": 2, "limit_val_batches": 1.0, "num_sanity_val_steps": -1}
    data = fit(model, pairs_file, cache, notes, watch, **kwargs)
    ids = [prompt.prompt_id for prompt in data.val_prompts]
    assert len(ids) == 5 and all(answers.prompt_id.tolist() == ids for answers in notes.answers)
    start = notes.answers[0]
    assert all(before is notes.start_answers[0] for before in notes.start_answers)
    oracle, numbers = Oracle(tiny_model_dir, {}), uniform_numbers((0, "val"), 5, ROOM)
    for i, prompt in enumerate(data.val_prompts):  # the policy has not moved yet
        response, has_ended = oracle.respond(oracle.policy_weights(), prompt.ids, numbers[i])
        for answers in (start, notes.start_answers[0]):
            assert answers.responses[i] == oracle.text(response, has_ended)
            assert (int(answers.num_tokens[i]), bool(answers.has_ended[i])) == (len(response), has_ended)
            assert float(answers.reward[i]) == pytest.approx(letters([prompt.turns], [answers.responses[i]])[0])
            assert float(answers.judge[i]) == pytest.approx(vowels([prompt.turns], [answers.responses[i]])[0])
    assert torch.allclose(start.kl, torch.zeros(5), atol=1e-5) and notes.answers[-1].kl.abs().max() > 1e-3
    assert [row.step for row in watch.rows] == [0, 1, 2]
    assert watch.rows[0].win_rate == 0.5
    steps = Path("run/steps.csv").read_text()
    again = module(tiny_model_dir, train, judge="my_rewards.vowels")
    fit(
        again, pairs_file, cache, Shaken(scale=0.0), PolicyWatch(num_samples=0), **{**kwargs, "num_sanity_val_steps": 0}
    )
    assert Path("run/steps.csv").read_text() == steps
    assert close(weights(model), weights(again), atol=0)


def test_policy_and_reward_model_of_one_base_read_the_same_ids(tiny_model_dir):
    prompts = [[{"role": "user", "content": "What is 2 plus 2?"}], [{"role": "user", "content": "Hm?\nWhy?"}]]
    for path in (str(tiny_model_dir), "world_lm"):
        tokenizer = load_tokenizer(Backbone(path))
        rows = encode_prompts(tokenizer, prompts, 100)
        for row, prompt, text in zip(rows, prompts, ("It is 4.", "No."), strict=True):
            sampled = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            [found] = encode_candidates(tokenizer, [prompt], [[text]], 100)
            assert found.rows == [row + sampled], path


@pytest.mark.parametrize("reading", ["[mean@1,judge@1]", *slow(None)])
def test_a_reward_model_on_the_policys_base_is_shared_and_judges_as_by_itself(
    tiny_model_dir, pairs_file, cache, reward_run, reward_flags, reading
):
    sizes, kwargs = {}, {"limit_val_batches": 1.0, "steps": 2}
    if reading:
        reward_run = Path("reads")
        assert main(["fit", *reward_flags, f"--model.reading={reading}", "--run_dir=reads"]) == 0
    for reward in ("my_rewards.letters", str(reward_run)):
        model = module(tiny_model_dir, "lora", reward=reward)
        data = fit(model, pairs_file, cache, Shaken(), **kwargs)
        sizes[reward] = sum(p.numel() for p in model.policy.parameters())
    (file,) = reward_run.glob("rounds/0/model.pt")
    saved = torch.load(file, weights_only=True)["weights"]
    assert sizes[str(reward_run)] - sizes["my_rewards.letters"] == sum(
        p.numel() for name, p in saved.items() if "lora" in name
    )
    alone = load_reward(str(reward_run))([prompt.turns for prompt in data.val_prompts], model.answers.responses)
    assert torch.allclose(model.answers.reward, alone, atol=1e-5) and alone.std() > 0


@pytest.fixture
def foreign_reward(tiny_model_dir, tmp_path) -> Path:
    """A classifier of another template, whose tokenizer gives every token another id than the policy's."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<q>", "<a>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<a>' if m['role'] == 'assistant' else '<q>' }}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "reward")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, pad_token_id=0, num_labels=1, reward_temperature=0.1, reward_zero=0.05,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


def test_a_reward_model_may_have_another_tokenizer_and_template(tiny_model_dir, pairs_file, cache, foreign_reward):
    model = module(tiny_model_dir, "lora", reward=str(foreign_reward))
    data = fit(model, pairs_file, cache, Shaken(), limit_val_batches=1.0)
    tokenizer = AutoTokenizer.from_pretrained(foreign_reward)
    plain = AutoModelForSequenceClassification.from_pretrained(foreign_reward).eval()
    for i, prompt in enumerate(data.val_prompts):
        ids = tokenizer(f"<q>{prompt.turns[0]['content']}<a>{model.answers.responses[i]}").input_ids
        expected = (plain(input_ids=torch.tensor([ids])).logits.item() - 0.05) / 0.1
        assert float(model.answers.reward[i]) == pytest.approx(expected, abs=1e-4)


def test_responses_that_are_too_long_for_the_reward_model_are_counted(
    tiny_model_dir, pairs_file, cache, tiny_tokenizer, tmp_path, monkeypatch
):
    turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": "two"}]
    [ids] = tiny_tokenizer.apply_chat_template([turns], return_dict=False)
    save_reward_model(tmp_path / "rm", tiny_tokenizer, len(ids), reward_zero=0.1, reward_temperature=0.5)
    seen, judge = [], ModelReward.__call__
    monkeypatch.setattr(ModelReward, "__call__", lambda self, p, texts: seen.extend(texts) or judge(self, p, texts))
    notes = Shaken()
    what, fix = r"responses are longer than its max_length of \d+ tokens", r"here model\.sampling\.max_new_tokens"
    with pytest.warns(UserWarning, match=f"{what}.*{fix}"):
        fit(module(tiny_model_dir, "full", "rloo", str(tmp_path / "rm")), pairs_file, cache, notes)
    lengths = [len(tiny_tokenizer(text).input_ids) for text in seen]
    assert notes.figures[0]["train/cut_share"] == pytest.approx(sum(n > 3 for n in lengths) / len(lengths))
    assert 0 < notes.figures[0]["train/cut_share"] < 1


def test_a_reward_run_may_have_another_template(tiny_model_dir, pairs_file, cache, reward_flags):
    assert main(["fit", *reward_flags, "--model.backbone.template=paper", "--run_dir=paper"]) == 0
    model = module(tiny_model_dir, "lora", reward="paper")
    data = fit(model, pairs_file, cache, Shaken(), limit_val_batches=1.0)
    alone = load_reward("paper")
    assert alone.tokenizer.chat_template != model.tokenizer.chat_template
    rewards = alone([prompt.turns for prompt in data.val_prompts], model.answers.responses)
    assert torch.allclose(model.answers.reward, rewards, atol=1e-5) and rewards.std() > 0


@pytest.fixture
def flags(tiny_model_dir, pairs_file, cache):
    """`fit` of ppo.yaml on the tiny model: two epochs of two steps."""
    return [
        *("fit", "--config", "ppo.yaml", "--model.reward_model=my_rewards.letters", "--model.judge=my_rewards.vowels"),
        *(f"--model.backbone.path={tiny_model_dir}", f"--data.path={pairs_file}", f"--data.cache_dir={cache}"),
        *(f"--model.sampling.max_new_tokens={ROOM}", f"--model.sampling.stop={STOP}", "--data.max_length=64"),
        *("--data.prompts_per_step=4", "--data.steps_per_epoch=2", "--data.num_val_prompts=5"),
        *("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
    ]


@pytest.fixture
def lora_flags(flags):
    return [*flags, "--model.backbone.train=lora", "--model.backbone.lora.r=4", "--model.backbone.lora.dropout=0.1"]


def same(one, other):
    """Whether nested dictionaries, lists and tensors are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Killed(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.current_epoch == 1:
            raise KeyError("killed")


@pytest.mark.parametrize("sanity_steps", [-1, *slow(0)])
def test_a_broken_run_goes_on_as_if_it_had_never_stopped(lora_flags, monkeypatch, sanity_steps):
    flags = [*lora_flags, f"--trainer.num_sanity_val_steps={sanity_steps}", "--run_dir"]
    assert main([*flags, "whole"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(PPOModule, "configure_callbacks", lambda self: [Killed()])
        with pytest.raises(KeyError, match="killed"):
            main([*flags, "broken"])
    assert len(Path("broken/steps.csv").read_text().splitlines()) == 3  # the names, the start and the first epoch
    torch.rand(5)  # whatever the process drew in the meantime
    assert main([*flags, "broken", "--ckpt_path", "last"]) == 0
    one, other = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=False) for run in ("whole", "broken"))
    for key in ("state_dict", "optimizer_states", "rl", "epoch", "global_step"):
        assert same(one[key], other[key]), key
    assert len(one["optimizer_states"]) == 2
    assert one["rl"]["step"] == 4 and one["rl"]["kl_control"]["weight"] != 0.1
    names = {path.name for path in Path("whole").glob("samples/*")}
    assert names == {"2.jsonl", "4.jsonl"}
    for name in ("steps.csv", *(f"samples/{name}" for name in names)):
        assert Path("whole", name).read_text() == Path("broken", name).read_text()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_checkpoint_holds_policy_and_critic_alone(tiny_model_dir, pairs_file, cache, reward_run, train):
    model = module(tiny_model_dir, train, reward=str(reward_run))
    fit(model, pairs_file, cache)
    state = torch.load("run/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    num_base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_model_dir).parameters())
    num_head = 259 * 16  # of the language model, which the critic has none of
    num_adapter = sum(p.numel() for p in model.policy.parameters_of("policy"))
    expected = 2 * num_adapter if train == "lora" else 2 * num_base - num_head
    assert sum(p.numel() for p in state.values()) == expected + 17  # the value head's 16 weights and a bias
    if train == "lora":
        assert all(".policy." in name or ".critic." in name or "value_head" in name for name in state)
    else:
        assert all(name.startswith(("_policy.lm.", "_policy.others.critic.", "_policy.value_head.")) for name in state)


def _without_eos(model_dir):
    """Copies the model without any word of its EOS."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    lm.config.eos_token_id = lm.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "")
    lm.save_pretrained("no_eos")
    tokenizer.save_pretrained("no_eos")


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        (["--model.reward_model=runs/nothing"], ["reward runs/nothing: got no such folder; give the run folder"]),
        (["--model.reward_model=my_rewards.nans"], ["reward my_rewards.nans: got NaN for 5 of 5 responses"]),
        pytest.param(
            ["--model.judge=my_rewards.nans"],
            ["reward my_rewards.nans: got NaN for 5 of 5 responses"],
            marks=pytest.mark.slow,
        ),
        (["--model.reward_model=my_rewards.too_few"], ["reward my_rewards.too_few: got 4 scores for 5 responses"]),
        (
            ["--model.reward_model=runs/nothing", "--model.judge=my_rewards.no"],
            ["reward runs/nothing: got no such folder", "reward my_rewards.no: got neither a folder nor"],
        ),
        (
            ["--model.backbone.path=no_eos", "--model.sampling.stop=[]"],
            ["backbone.path: got a policy without EOS (no_eos), whose answers never end; name the token"],
        ),
        (["--model.advantage=rlo"], ["model.advantage (command line): got 'rlo'"]),
        (["--model.advantage=rloo"], ["model.responses_per_prompt: got 1 for rloo, whose baseline is the other"]),
        (
            ["--model.advantage=grpo", "--model.ppo.epochs=0", "--model.max_grad_norm=0", "--data.steps_per_epoch=0"],
            [
                "ppo.epochs: got 0",
                "model.responses_per_prompt: got 1",
                "model.max_grad_norm: got 0",
                "steps_per_epoch:",
            ],
        ),
        (
            ["--model.ppo.minibatches=5", "--model.kl_control.init_args.horizon=0.5"],
            [
                "kl.horizon: got 0.5; need more than 0.8 for 4 responses",
                "ppo.minibatches: got 5 for 4 responses in a step; use at most as many",
            ],
        ),
        (
            ["--model.sampling.max_new_tokens=500"],
            ["sampling.max_new_tokens: got 500 after prompts of up to 38 tokens for a policy with 512 positions;"],
        ),
    ],
)
def test_wrong_input_is_one_line_each(flags, capsys, tiny_model_dir, more, lines):
    if "--model.backbone.path=no_eos" in more:
        _without_eos(tiny_model_dir)
    found = problems_of(capsys, *flags, *more)
    assert len(found) == len(lines), found
    assert all(any(line.startswith(start) for line in found) for start in lines), found


def test_a_checkpoint_of_another_stage_is_one_line(flags, capsys, reward_flags, reward_run, sft_runs):
    # Without a critic, the weights of one policy would fit into the other.
    flags += ["--model.advantage=rloo", "--model.responses_per_prompt=2", "--model.backbone.train=full"]
    assert main([*flags, "--trainer.max_epochs=1", "--run_dir=ppo"]) == 0
    capsys.readouterr()
    sft = ["fit", "--config", "sft.yaml", "--data.max_length=64", *(flag for flag in flags if "--data.p" in flag)]
    sft = [flag for flag in sft if "prompts_per_step" not in flag] + [flag for flag in flags if "backbone" in flag]
    commands = {"rm": ["fit", *reward_flags], "sft": sft, "ppo": flags}
    runs = {"rm": reward_run, "sft": sft_runs["full"], "ppo": Path("ppo")}
    more = ["--run_dir=new", "--trainer.accelerator=cpu"]
    for own, other in itertools.permutations(commands, 2):
        fix = "give one of such a run"
        if "rm" not in (own, other):
            fix = "to start from its policy, leave --ckpt_path out and set model.backbone.path to its run folder"
        assert problems_of(capsys, *commands[own], *more, f"--ckpt_path={runs[other]}/checkpoints/last.ckpt") == [
            f"checkpoint: got one that no run of {own}.yaml wrote, so it cannot be resumed; {fix}"
        ]


def test_a_reward_model_without_calibration_is_refused_unless_asked_for(flags, capsys, reward_flags):
    without_folds = [
        "--evolution.folds=0",
        "--evolution.rule=ser_lightning.PaperRule",
    ]
    assert main(["fit", *reward_flags, *without_folds, "--run_dir=raw"]) == 0
    (line,) = problems_of(capsys, *flags, "--model.reward_model=raw")
    assert line.startswith("reward raw: got the zero 0 and the temperature 1 of a fit without folds")
    assert main([*flags, "--model.reward_model=raw", "--model.allow_uncalibrated=true", "--trainer.max_epochs=1"]) == 0


def test_the_kl_weight_follows_what_was_measured(tiny_model_dir, pairs_file, cache):
    """`weight *= 1 + clamp(KL / target - 1, +-0.2) * responses / horizon`, applied after each step."""
    model, notes = module(tiny_model_dir, kl_control=AdaptiveKL(0.1, 0.5, 40)), Shaken()
    fit(model, pairs_file, cache, notes, steps=3)
    expected = 0.1
    for figures in notes.figures:
        assert figures["train/kl_weight"] == pytest.approx(expected, rel=1e-5)  # float32, as it was logged
        expected *= 1 + max(-0.2, min(0.2, figures["train/kl"] / 0.5 - 1)) * 4 / 40
    assert model.kl_control.weight == pytest.approx(expected, rel=1e-4)
