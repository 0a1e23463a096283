"""More data for a finished run: its record, the scores that it has, and how far the new pairs have drifted."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from ser_lightning.errors import UserError
from ser_lightning.evaluation.metrics import half_credit, ks_distance, wilson_interval
from ser_lightning.evolution.selection import SelectionContext, SelectionResult
from ser_lightning.records import PairScores
from ser_lightning.runs.files import ROUNDS, round_files, rounds_folder, run_above, write_json
from ser_lightning.runs.pair_tables import read_audit
from ser_lightning.training.scoring import complete_and_unique, concatenate
from ser_lightning.utils.terminal import new_table, say

if TYPE_CHECKING:  # it loads every kind of model
    from ser_lightning.datamodules.preference import PreferenceDataModule

SIDES = ("old", "new", "unseen")


def go_on_with_arrivals(evolution: Any, trainer: Trainer, pl_module: LightningModule) -> None:
    """Rounds after those of a finished run: its delivered model labels what arrived, and evolution goes on.

    Only new pairs are scored here, and the test pairs for the drift; the scores of the others are in the audit of
    the delivered round.

    Args:
        evolution: the `EvolutionCallback`, with the state of the finished run.
        pl_module: is the delivered model.
    """
    data, state, delivered = trainer.datamodule, evolution.state, evolution.state.delivered
    earlier = earlier_rounds(Path(str(trainer.ckpt_path)))
    if trainer.is_global_zero:
        copy_rounds(earlier, rounds_folder(trainer.default_root_dir))
    trainer.strategy.barrier("evolution: rounds of the earlier run")
    old = audited_scores(round_files(trainer.default_root_dir, delivered).audit, data)
    new = evolution.score(trainer, "arrived_pool", f"round {delivered} | labelling what arrived")
    known = torch.cat([old.pair_id, new.pair_id])
    if not torch.isin(data.pair_ids("pool"), known).all():  # the delivered round is older than what arrived before
        whole = evolution.score(trainer, "pool", f"round {delivered} | labelling the pool")
        old = whole[~torch.isin(whole.pair_id, new.pair_id)]
    new_seed = evolution.score(trainer, "arrived_seed", f"round {delivered} | scoring the labels that arrived")
    # A pair that came out of the pool may have trained the model, with the model's own label.
    new_seed = new_seed[~torch.isin(new_seed.pair_id, torch.cat([s.pair_id for s in state.history]))]
    pool = complete_and_unique(concatenate([old, new]), data.pair_ids("pool"))
    context = evolution.context(trainer, [state.seed_scores[delivered], new_seed])
    labelling, seen = evolution.with_judge(trainer, pool, context)
    result, selection = evolution.select(trainer, seen, labelling)
    unseen = evolution.score(trainer, "test", f"round {delivered} | scoring the test pairs")
    figures = drift_figures(old, pool, result, context, new_seed, unseen)
    publish_drift(trainer, round_files(trainer.default_root_dir, state.rows[-1].round + 1).drift, figures)
    rank_zero_info(f"Round {delivered}, with what arrived: {result.message}.")
    state.history.append(selection)
    state.earlier_label, state.pool_label = None, result.label
    data.accept(selection)
    state.finished, state.phase_index = False, 0
    state.round = state.first_round = state.rows[-1].round + 1
    evolution.begin_phase(trainer, pl_module)
    # Lightning has loaded the training pairs of the finished phase by now, and would use them for an epoch.
    trainer.fit_loop._last_train_dl_reload_epoch = float("-inf")


def earlier_rounds(checkpoint: Path) -> Path:
    """The `rounds/` of the run that a checkpoint lies in.

    Raises:
        UserError: it lies in no run that has finished a round.
    """
    run = run_above(checkpoint, ROUNDS, levels=2)
    if run is None:
        raise UserError(
            f"--ckpt_path: got {checkpoint}, beside which there are no rounds; to go on with new pairs, give "
            "checkpoints/last.ckpt of the finished run"
        )
    return rounds_folder(run)


def copy_rounds(old: Path, new: Path) -> None:
    """Take the record of an earlier run over into the folder of the one that continues it."""
    if old.resolve() != new.resolve():
        shutil.copytree(old, new, dirs_exist_ok=True)


def audited_scores(path: Path, data: "PreferenceDataModule") -> PairScores:
    """The scores of an audit file, of the pairs that are still in the pool."""
    audit = read_audit(path)
    assert audit is not None
    pair_id, reward_a, reward_b = (torch.from_numpy(audit[k].copy()) for k in ("pair_id", "reward_a", "reward_b"))
    keep = torch.isin(pair_id, data.pair_ids("pool"))
    tokens_a, tokens_b = data.num_tokens(pair_id[keep]).unbind(-1)
    return PairScores(pair_id[keep], reward_a[keep], reward_b[keep], tokens_a, tokens_b)


def drift_figures(
    old: PairScores,
    pool: PairScores,
    result: SelectionResult,
    context: SelectionContext,
    fresh_seed: PairScores,
    unseen: PairScores,
) -> dict[str, float]:
    """How the pairs that arrived differ from those that the model was evolved on, as scored by the same model.

    Args:
        old: scores of the earlier pool pairs.
        pool: (N,) scores of all pool pairs.
        result: (N,) the rule's result for them.
        context: scores and labels of the whole seed by models that had not seen them.
        fresh_seed: of these, the pairs that arrived.
        unseen: scores of earlier pairs that the model was never trained on (the test pairs; no label is read). On pool
            pairs it is surer because it has learnt its own labels of them.
    """
    is_old = torch.isin(pool.pair_id, old.pair_id)
    figures: dict[str, float] = {}
    for name, mask in (("old", is_old), ("new", ~is_old)):
        if mask.any():
            figures[f"{name}_pairs"] = int(mask.sum())
            figures[f"{name}_confidence"] = float(result.confidence[mask].mean())
            figures[f"{name}_kept_share"] = float(result.keep[mask].float().mean())
            figures[f"{name}_tokens"] = float((pool.tokens_a + pool.tokens_b)[mask].float().mean() / 2)
    new, tokens = pool[~is_old], (pool.tokens_a + pool.tokens_b).float()
    samples = {"tokens": (tokens[is_old], tokens[~is_old]), "margin": (unseen.margin.abs(), new.margin.abs())}
    for name, (one, other) in samples.items():
        if len(one) and len(other):
            figures[f"{name}_ks"], figures[f"{name}_ks_by_chance"] = ks_distance(one, other, p_value=0.05)
    for name, scores in (("old", old), ("new", new), ("unseen", unseen)):
        if len(scores):
            figures[f"{name}_margin"] = float(scores.margin.abs().mean())
    arrived = torch.isin(context.scores.pair_id, fresh_seed.pair_id)
    credit = half_credit(context.scores.margin, context.target)
    for name, mask in (("old", ~arrived), ("new", arrived)):
        if mask.any():
            figures[f"{name}_labels"] = int(mask.sum())
            figures[f"{name}_label_accuracy"] = float(credit[mask].mean())
    return figures


def publish_drift(trainer: Trainer, path: Path, figures: dict[str, float]) -> None:
    """Log the figures, write them as JSON, and print them as a table with a line on what stands out."""
    for logger in trainer.loggers:
        logger.log_metrics({f"drift/{name}": value for name, value in figures.items()}, step=trainer.global_step)
    if not trainer.is_global_zero:
        return
    write_json(path, figures)
    table = new_table("", "before", "arrived", "unseen", title="Drift: what arrived, seen by the delivered model")
    rows = {
        "pool pairs": ("pairs", "{:.0f}"),
        "mean size of the margin": ("margin", "{:.2f}"),
        "mean confidence": ("confidence", "{:.3f}"),
        "share kept": ("kept_share", "{:.3f}"),
        "mean tokens of a response with its prompt": ("tokens", "{:.0f}"),
        "human labels that it had not seen": ("labels", "{:.0f}"),
        "of them right": ("label_accuracy", "{:.3f}"),
    }
    for title, (key, form) in rows.items():
        table.add_row(title, *(form.format(figures[k]) if (k := f"{side}_{key}") in figures else "-" for side in SIDES))
    note = "Unseen: test pairs, which it never trained on. Of pool pairs it has learnt its own labels."
    say(table, note, *warnings_of(figures))


def warnings_of(figures: dict[str, float]) -> list[str]:
    """One sentence for each figure that has drifted by more than chance explains."""
    found = []
    names = {"margin": "margins of the arrived and of unseen", "tokens": "lengths of the arrived and of earlier"}
    for key, name in names.items():
        distance, by_chance = figures.get(f"{key}_ks", 0.0), figures.get(f"{key}_ks_by_chance", 1.0)
        if distance > by_chance:
            found.append(
                f"The {name} pairs differ: KS distance {distance:.2f}, by chance below {by_chance:.2f} 19 times in 20."
            )
    if {"old_labels", "new_labels"} <= figures.keys():
        num_new = int(figures["new_labels"])
        low, high = wilson_interval(figures["new_label_accuracy"] * num_new, num_new)
        if not low <= figures["old_label_accuracy"] <= high:
            found.append(
                f"On the arrived labels the model is right in {figures['new_label_accuracy']:.3f} (95 % interval "
                f"{low:.3f} to {high:.3f}), before in {figures['old_label_accuracy']:.3f}: its confidence may not hold."
            )
    return found or ["Nothing has drifted by more than chance explains."]
