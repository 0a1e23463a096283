"""`python -m ser_lightning plan`: what a `fit` will take, before the weights of a pretrained model are loaded.

Takes the command line of `fit`. Only the tokenizer and the pairs are read, which end up in the cache of encoded pairs.
"""

import json
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer

from ser_lightning.cli.arguments import Arguments
from ser_lightning.cli.commands import COMMANDS, add_flags
from ser_lightning.cli.diagnosis import null_problems
from ser_lightning.cli.lightning import SerCLI
from ser_lightning.data.layouts import Layout
from ser_lightning.datamodules.base import PairFiles
from ser_lightning.datamodules.label_firewall import SplitName
from ser_lightning.datamodules.preference import PreferenceDataModule
from ser_lightning.datamodules.prompts import PromptDataModule
from ser_lightning.datamodules.responses import ResponseDataModule
from ser_lightning.errors import UserError, problems_of, raise_problems
from ser_lightning.evolution.comparison_states import comparison_length
from ser_lightning.models.masks import choose_layout
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.modules.generate import GenerateModule
from ser_lightning.modules.ppo import PPOModule
from ser_lightning.modules.reward import RewardModule
from ser_lightning.modules.sft import SFTModule
from ser_lightning.planning.budgets import policy_budget, rl_budgets
from ser_lightning.planning.checks import device_checks, ranks_of, reward_checks
from ser_lightning.planning.memory import CPU_TOKENS, Weights, count_weights, device_bytes, device_of
from ser_lightning.planning.policy import (
    count_steps,
    count_validations,
    held_out_answers,
    models_among,
    rl_memory,
    rl_work,
    role_weights,
    sft_memory,
    sft_work,
)
from ser_lightning.planning.reward import reward_memory
from ser_lightning.planning.text import as_text
from ser_lightning.planning.workload import RoundWork, Tokens, count_tokens, judge_work, read_rate, rounds_of
from ser_lightning.training.features import feature_bytes
from ser_lightning.training.reading_choice import ReadingPlan, plan_readings
from ser_lightning.training.strategies import strategy_kind, strategy_problems
from ser_lightning.utils.atomic import output_problems, write_text_atomically
from ser_lightning.utils.terminal import say

SPLITS: tuple[SplitName, ...] = ("seed", "val", "pool", "test", "all")


class PlanCLI(SerCLI):
    """The command line of `fit` that makes everything but the trainer, and starts nothing."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what only `plan` takes."""
        super().add_arguments_to_parser(parser)
        add_flags(parser, COMMANDS["plan"].flags)

    def before_instantiate_classes(self) -> None:
        """Check for nulls as `fit` does; no run folder is chosen and no logger made."""
        self.settings = self.config[self.subcommand]
        parts = Namespace({key: self.settings.get(key) for key in ("model", "data", "evolution")})
        raise_problems([*null_problems(parts), *null_problems(self.settings.trainer, "trainer", Trainer)])
        self.settings.trainer.logger = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """None; the evolution and the strategy are there."""
        settings = self._get(self.config_init, "trainer")
        self.settings.trainer.strategy = settings.strategy
        self.evolution = self._get(self.config_init, "evolution")
        return cast(Trainer, None)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing runs."""


def main(arguments: Arguments) -> None:
    """Run the command with the command line of a `fit`."""
    if arguments.model_class() == GenerateModule.__name__:
        raise UserError("plan: got GenerateModule, which trains nothing; give rm.yaml, sft.yaml or ppo.yaml")
    cli = PlanCLI(arguments)
    if cli.settings.json:
        data = cli.settings.data.init_args
        read = [data.get(key) for key in ("path", "pool_path", "test_path", "new_data_path", "prompt_path", "teacher")]
        inputs = [path for one in read if one for path in ([one] if isinstance(one, str) else one)]
        inputs += (data.get("eval_sets") or {}).values()
        inputs += [*cli.arguments.configs, cli.model.backbone.path, *filter(None, [cli.settings.like])]
        raise_problems(output_problems("--json", cli.settings.json, inputs, cli.settings.overwrite))
    plan, problems = make_plan(cli)
    say(as_text(plan))
    if cli.settings.json:
        write_text_atomically(Path(cli.settings.json), json.dumps(plan, indent=2) + "\n")
    raise_problems(problems)


# What will be


def make_plan(cli: PlanCLI) -> tuple[dict[str, Any], list[str]]:
    """All figures of a run, and what is known to be wrong with its strategy.

    Raises:
        UserError: what `fit` would stop at before its first step.
    """
    module, data = cli.model, cli.datamodule
    if isinstance(module, RewardModule) and isinstance(data, PreferenceDataModule):
        return _reward_plan(cli, module, data)
    if isinstance(module, SFTModule) and isinstance(data, ResponseDataModule):
        return _sft_plan(cli, module, data)
    if isinstance(module, PPOModule) and isinstance(data, PromptDataModule):
        return _rl_plan(cli, module, data)
    raise UserError(
        f"plan: got {type(module).__name__} with {type(data).__name__}; it knows RewardModule with "
        "PreferenceDataModule, SFTModule with ResponseDataModule and PPOModule with PromptDataModule"
    )


def _reward_plan(cli: PlanCLI, module: RewardModule, data: PreferenceDataModule) -> tuple[dict[str, Any], list[str]]:
    settings = cli.settings
    device = device_of(settings.trainer.accelerator)
    tokenizer = module.tokenizer
    reward_model = load_reward_model(module.backbone, "meta")
    module.check_judge(reward_model)
    judge_length = comparison_length(reward_model, data.max_length) if module.compares else None
    layout = choose_layout(settings.model.init_args.layout, reward_model.model, device, "model.layout")
    reading = plan_readings(reward_model, tokenizer, module.reading, module.question, data.max_length)
    if reading.usual:
        layout = replace(layout, header=reading.tokens.header, question=reading.tokens.question)
        reward_model.read_at(reading.usual, reading.tokens)
        reward_model.drop_unread_layers()
    data.tokenizer = tokenizer
    data.prepare_data()
    data.setup("fit")
    evolution = cli.evolution
    if evolution is not None:
        every = settings.trainer.reload_dataloaders_every_n_epochs
        evolution.setup(SimpleNamespace(reload_dataloaders_every_n_epochs=every, datamodule=data), module, "fit")
        if folds := evolution.settings.folds:
            data.data.rows("seed", 0, folds)  # `UserError` where the seed has too few dialogues for them
    store, tokens = data.data.store, _tokens(data)
    is_whole = strategy_kind(settings.trainer.strategy) != "fsdp"
    is_cached = module.backbone.train == "head" and reward_model.is_decoder and is_whole
    cached = _cached(reward_model, reading, data, tokens["all"].total) if is_cached else None
    rounds = [] if evolution is None else rounds_of(evolution.settings.settled(is_cached), tokens, data.pairs_per_step)
    judged = None if judge_length is None else asdict(judge_work(tokenizer, store, judge_length))
    is_read_first = reading.is_open and is_whole and cached is None
    choosing = int(store.num_tokens[data.data.rows("seed")].sum()) if is_read_first else None
    plan = {
        "model": {"path": module.backbone.path, **_weights(count_weights(reward_model))},
        "memory": _on(
            device,
            reward_memory(
                module,
                reward_model,
                (store, data.data.rows("all")),
                layout,
                (data.tokens_per_batch, data.tokens_per_scoring_batch),
                data.pairs_per_step,
                str(settings.trainer.precision or "32-true"),
                device,
                None if is_whole else ranks_of(settings.trainer),
            ),
        ),
        "data": _data(data, tokens, layout),
        "rounds": {**_rounds(rounds, settings, cached), "pairwise_judge": judged, "choice_tokens": choosing},
        "checks": [*map(asdict, module.start_findings(data.max_length)), *device_checks(settings.trainer, device)],
    }
    return plan, strategy_problems(settings.trainer.strategy, module.backbone.train, module.backbone.quantize)


# Policies


def _sft_plan(cli: PlanCLI, module: SFTModule, data: ResponseDataModule) -> tuple[dict[str, Any], list[str]]:
    trainer = cli.settings.trainer
    device, num_ranks = _set_up(cli)
    responses, per_step = data.responses, data.responses_per_step
    memory = sft_memory(
        module,
        _optimizers(module)[0],
        responses.lengths,
        ceil(per_step / num_ranks),
        cast(int, data.tokens_per_batch),
        str(trainer.precision or "32-true"),
        device,
    )
    steps = count_steps(trainer, len(data.train_dataloader()))
    val_pairs = len(data.data.rows("val"))
    read = {"of": "responses", "splits": {"seed": _lengths(responses.lengths)}, "val_pairs": val_pairs}
    done = {
        **asdict(steps),
        "validations": count_validations(trainer, steps) if val_pairs else 0,
        "work": sft_work(steps, responses.lengths, responses.num_response_tokens, per_step),
    }
    return _policy_plan(cli, module, data, device, memory, read, done)


def _rl_plan(cli: PlanCLI, module: PPOModule, data: PromptDataModule) -> tuple[dict[str, Any], list[str]]:
    trainer = cli.settings.trainer
    device, num_ranks = _set_up(cli)
    raise_problems(problems_of(data.val_dataloader))  # held-out prompts need room for a response as well
    raise_problems(module.step_problems(data.prompts_per_step))
    prompts = {"train": data.train_prompts, "val": data.val_prompts}
    lengths = {name: np.array([len(prompt.ids) for prompt in some]) for name, some in prompts.items()}
    optimizers = _optimizers(module)
    memory = rl_memory(
        module,
        optimizers,
        np.concatenate([*lengths.values()]),
        ceil(data.prompts_per_step / num_ranks),
        min(data.val_prompts_per_batch, ceil(len(data.val_prompts) / num_ranks)),
        choose_layout(cli.settings.model.init_args.layout, module.policy.lm, device, "model.layout"),
        cast(tuple[int, int], module.token_settings),
        str(trainer.precision or "32-true"),
        device,
    )
    updates = module.ppo.epochs * module.ppo.minibatches * len(optimizers)
    steps = count_steps(trainer, len(data.train_dataloader()), updates)
    validations = count_validations(trainer, steps)
    at_once = data.val_prompts_per_batch * num_ranks
    answers = held_out_answers(trainer, len(data.val_prompts), at_once, validations)
    held_out = {} if answers is None else {"answers to held-out prompts": {"all": answers}}
    work = rl_work(steps, data.prompts_per_step, module) | held_out
    read = {"of": "prompts", "splits": {name: _lengths(some) for name, some in lengths.items()}}
    done = {**asdict(steps), "validations": validations, "work": work}
    return _policy_plan(cli, module, data, device, memory, read, done)


def _set_up(cli: PlanCLI) -> tuple[str, int]:
    """Models on the meta device and encoded data, as before the first step of a fit; the device and how many.

    Raises:
        UserError: the problems of both.
    """
    settings, module, data = cli.settings, cli.model, cli.datamodule
    if settings.like or settings.pairs_per_second is not None:
        name = "--like" if settings.like else "--pairs_per_second"
        raise UserError(f"{name}: got {settings[name[2:]]}; no rate is known of a policy, leave it out")
    num_ranks = ranks_of(settings.trainer)
    # What data modules ask a trainer for.
    asked = {"reload_dataloaders_every_n_epochs": settings.trainer.reload_dataloaders_every_n_epochs}
    asked |= {"lightning_module": module, "global_rank": 0, "world_size": num_ranks, "current_epoch": 0}
    data.trainer = SimpleNamespace(**asked, state=SimpleNamespace(fn="fit"), strategy=settings.trainer.strategy)

    def set_up_data() -> None:
        data.prepare_data()
        data.setup("fit")

    device = device_of(settings.trainer.accelerator)
    raise_problems(problems_of(set_up_data) + problems_of(module.to("meta").configure_model))
    _settle_auto(module, data, str(settings.trainer.precision or "32-true"), device)
    raise_problems(problems_of(data.train_dataloader))  # which asks the module whether prompts fit
    return device, num_ranks


def _settle_auto(module: Any, data: Any, precision: str, device: str) -> None:
    """Put numbers in the place of `auto` for tokens in a batch, as a fit finds them on this device."""
    place = module.policy, module.backbone, precision
    there = device_bytes(device)[1]
    if isinstance(module, PPOModule):
        auto = rl_budgets(*place, device, there, module.sampling.max_new_tokens, True, module.models_beside)
        settled = [own if given == "auto" else given for given, own in zip(module.token_settings, auto, strict=True)]
        module.tokens_per_batch, module.tokens_per_sampling_batch = settled
    elif data.tokens_per_batch == "auto":
        data.tokens_per_batch = policy_budget(*place, there) if device == "cuda" else CPU_TOKENS[0]


def _optimizers(module: SFTModule | PPOModule) -> list[Optimizer]:
    made = module.configure_optimizers()
    return made if isinstance(made, list) else [made]


def _lengths(num_tokens: np.ndarray) -> dict[str, int]:
    median, high = np.percentile(num_tokens, (50, 95)) if len(num_tokens) else (0, 0)
    return {"number": len(num_tokens), "median": int(median), "high": int(high), "total": int(num_tokens.sum())}


def _policy_plan(
    cli: PlanCLI,
    module: SFTModule | PPOModule,
    data: PairFiles,
    device: str,
    memory: dict[str, Any],
    read: dict[str, Any],
    steps: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    trainer = cli.settings.trainer
    rewards = models_among(module.rewards.values()) if isinstance(module, PPOModule) else []
    plan = {
        "model": {"path": module.backbone.path, **_weights(role_weights(module.policy, rewards))},
        "memory": _on(device, memory),
        "data": read | _rows_read(data, len(data.data.rows("all"))),
        "steps": steps,
        "checks": [
            *map(asdict, module.start_findings(data.max_length)),
            *reward_checks(module),
            *device_checks(trainer, device),
        ],
    }
    return plan, strategy_problems(trainer.strategy, "policy", module.backbone.quantize)


# Parts


def _weights(found: dict[str, Weights]) -> dict[str, Any]:
    kinds = {kind: weights for kind, weights in found.items() if weights.trained + weights.frozen}
    columns = ([getattr(w, name) for w in kinds.values()] for name in ("trained", "frozen", "num_bytes"))
    return {"kinds": {kind: asdict(w) for kind, w in kinds.items()}, "all": asdict(Weights(*map(sum, columns)))}


def _on(device: str, memory: dict[str, Any]) -> dict[str, Any]:
    owner, there = device_bytes(device)
    return {"device": device, "memory_of": owner, "device_bytes": there, **memory}


def _tokens(data: PreferenceDataModule) -> dict[str, Tokens]:
    """Of every split, and of what another run has taught."""
    store = data.data.store
    rows: dict[str, np.ndarray] = {name: data.data.rows(name) for name in SPLITS}
    rows["seed"] = np.concatenate([rows["seed"], data.data.ties()])  # trained on as well
    rows["taught"] = data.data.rows_of(data.accepted.pair_id.tolist())
    return {name: count_tokens(store.num_tokens[r], store.num_shared[r]) for name, r in rows.items()}


def _data(data: PreferenceDataModule, tokens: dict[str, Tokens], layout: Layout) -> dict[str, Any]:
    splits = {
        name: {**asdict(t), "prompt_share": round(t.prompt_share, 4), "saved_share": round(t.saved_share, 4)}
        for name, t in tokens.items()
        if t.pairs
    }
    return {"splits": splits, **_rows_read(data, tokens["all"].pairs), "shares_prompts": layout.shares_prompts}


def _rows_read(data: PairFiles, num_pairs: int) -> dict[str, int]:
    read = data.report.read.values()
    rows, cut = (sum(counts[name] for counts in read) for name in ("rows", "cut"))
    return {"rows": rows, "dropped": rows - num_pairs, "cut": cut}


def _cached(
    reward_model: RewardModel, reading: ReadingPlan, data: PreferenceDataModule, num_tokens: int
) -> dict[str, int]:
    """What a frozen body computes once, and what its states take on the disk at most: `auto` may choose fewer."""
    num_bytes = feature_bytes(reward_model, len(data.data.store), max(map(len, reading.sets)))
    if reading.is_open:
        num_bytes += feature_bytes(reward_model, len(data.pair_ids("seed")), len(reading.seed_readings))
    return {"tokens": num_tokens, "bytes": num_bytes}


def _rounds(rounds: list[RoundWork], settings: Namespace, cached: dict[str, int] | None) -> dict[str, Any]:
    """Tokens of the rounds, and seconds where a rate is known.

    Args:
        cached: what a frozen body computes once, and never again in a round; None where it is trained.
    """
    pairs_per_second, like = settings.pairs_per_second, settings.like
    if pairs_per_second is not None and pairs_per_second <= 0:
        raise UserError(f"--pairs_per_second: got {pairs_per_second}; give a number above 0")
    if pairs_per_second is not None and like:
        raise UserError(f"--like: got {like} with --pairs_per_second, which says the rate; give one of them")
    rate: float | None = None
    source = None
    if pairs_per_second is not None:
        rate, source = pairs_per_second, "pairs a second, as --pairs_per_second says"
    elif like:
        rate, source = read_rate(Path(like)), f"tokens a second, as in {like}"
    found = []
    for work in rounds:
        pairs = [trained + work.scored_pairs for trained in work.trained_pairs]
        amounts = work.tokens if pairs_per_second is None else pairs
        seconds = [n / rate for n in amounts] if rate and cached is None else None
        own = {} if cached is None else {"tokens": (0, cached["tokens"] if work.round == 0 else 0)}
        found.append({**asdict(work), **own, "seconds": seconds})
    return {"rounds": found, "rate": rate, "source": source, "cached": cached}
