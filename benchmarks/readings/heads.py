"""Heads on cached states, and their evolution on their own labels: the method of `callbacks/evolution.py` on tensors.

Shapes: n pairs, C readings, H the size of a state, D numbers of a view, V views.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.readings.states import StudyPairs
from ser_lightning.datamodules.splitting import assign_folds, take_dialogues
from ser_lightning.evaluation.calibration import fit_temperature
from ser_lightning.evolution.pairwise_judge import JudgeHead, PairwiseJudge, hold_vote
from ser_lightning.evolution.selection import SelectionContext, SelectionResult, SelectionRule
from ser_lightning.models.readings import Reading
from ser_lightning.records import PairScores, Selection
from ser_lightning.training.linear_head import PENALTIES, choose_penalty, difference_scale, fit_linear_head
from ser_lightning.training.reading_choice import ReadingChoice, candidate_sets, choose_readings

MAX_ROUNDS = 3


@dataclass(frozen=True)
class Task:
    """A data set whose test pairs are one fifth of the prompts, and what of the rest has a label: rows of pairs."""

    pairs: StudyPairs
    train: Tensor
    test: Tensor
    seed: Tensor

    @property
    def pool(self) -> Tensor:
        """Rows whose label is hidden."""
        return self.train[~torch.isin(self.train, self.seed)]

    @property
    def target(self) -> Tensor:
        """(n,) float64 labels."""
        return self.pairs.label.double()

    def group(self, rows: Tensor) -> np.ndarray:
        """Prompt of each row."""
        return self.pairs.group[rows.numpy()]

    def folds(self, num_folds: int, seed: int) -> Tensor:
        """Fold of each seed pair, whole prompts each."""
        group = self.group(self.seed)
        return torch.from_numpy(assign_folds(group, min(num_folds, len(set(group.tolist()))), seed))


def make_task(pairs: StudyPairs, fifth: int, num_labels: float, seed: int) -> Task:
    """Test on a fifth of the prompts, and draw a seed of so many labels (a share, if below 1) from the others."""
    is_test = pairs.fifth == fifth
    train = torch.from_numpy(np.flatnonzero(~is_test))
    share = num_labels if num_labels <= 1 else num_labels / len(train)
    is_seed = take_dialogues(pairs.group[train.numpy()], min(1.0, share), seed, "seed")
    return Task(pairs, train, torch.from_numpy(np.flatnonzero(is_test)), train[torch.from_numpy(is_seed)])


@dataclass(frozen=True)
class View:
    """States of all pairs at a set of readings, as a head takes them, and the penalty that it is fitted with."""

    first: Tensor
    """(n, D) float64, of the responses a: scaled, with a mean of 0 over the training pairs."""
    second: Tensor
    """(n, D) float64, of the responses b."""
    readings: list[str]
    penalty: float = 1.0
    temperature: float = 1.0
    """Of the seed model's margins, out of fold."""

    @property
    def differences(self) -> Tensor:
        """(n, D) float64."""
        return self.first - self.second

    def seed_weight(self, task: Task) -> Tensor:
        """(D,) the head on a task's labels."""
        return fit_linear_head(self.differences[task.seed], task.target[task.seed], self.penalty)

    def rewards(self, weight: Tensor, rows: Tensor) -> Tensor:
        """(rows, 2) by a head."""
        return torch.stack([self.first[rows] @ weight, self.second[rows] @ weight], 1)


def make_view(task: Task, readings: Sequence[Reading], penalty: float | None = None) -> View:
    """Read somewhere; no label of the pool or the test is used.

    Args:
        task: whose pairs.
        readings: where.
        penalty: None = chosen out of fold on the seed.
    """
    states = task.pairs.at(readings).flatten(2)
    train = states[task.train]
    scale = difference_scale([train[:, 0] - train[:, 1]], len(readings))
    states = (states - train.mean((0, 1))) / scale
    difference = states[task.train, 0].double() - states[task.train, 1].double()
    first, second = states.double().unbind(1)
    if len(difference) < difference.shape[1]:  # no head leaves their span: the same fits, on fewer numbers
        axes = torch.linalg.qr(difference.T)[0]
        first, second = first @ axes, second @ axes
    x = (first - second)[task.seed]
    target = task.target[task.seed]
    found = choose_penalty(x, target, task.group(task.seed).tolist(), penalties=(penalty,) if penalty else PENALTIES)
    return View(first, second, [*map(str, readings)], found.penalty, fit_temperature(found.margin, target))


def choose_view(task: Task) -> tuple[ReadingChoice, View]:
    """What `model.reading: auto` reads."""
    sets = candidate_sets(task.pairs.num_layers)
    options = list(dict.fromkeys(reading for readings in sets for reading in readings))
    states = task.pairs.at(options)
    differences = states[task.seed, 0] - states[task.seed, 1]
    choice = choose_readings(differences, options, sets, task.target[task.seed], task.group(task.seed).tolist())
    return choice, make_view(task, choice.chosen.readings)


@dataclass
class Chain:
    """Models that have never seen some pairs of the seed: their human labels, and what they have labelled themselves.

    Attributes:
        rows: of the seed.
        weights: V heads, of the latest round.
        history: what each round has selected.
    """

    rows: Tensor
    weights: list[Tensor] = field(default_factory=list)
    history: list[Selection] = field(default_factory=list)

    def fit(self, views: Sequence[View], target: Tensor) -> None:
        """The next round's heads, on the seed and the latest labels of the pool."""
        rows, labels = self.rows, target[self.rows]
        if self.history:
            rows, labels = torch.cat([rows, self.history[-1].pair_id]), torch.cat([labels, self.history[-1].label])
        self.weights = [fit_linear_head(view.differences[rows], labels, view.penalty) for view in views]

    def rewards(self, views: Sequence[View], rows: Tensor) -> Tensor:
        """(V, rows, 2) of each view by itself, in units of its temperature where there are several."""
        return torch.stack([v.rewards(w, rows) / _unit(views, v) for v, w in zip(views, self.weights, strict=True)])


def _unit(views: Sequence[View], view: View) -> float:
    return view.temperature if len(views) > 1 else 1.0


@dataclass(frozen=True)
class Round:
    """A round of evolution, with the models' margins and what was selected after it."""

    test: Tensor
    """Margins of the test pairs."""
    out_of_fold: Tensor
    """Margins of the seed pairs, each by models that never saw its label."""
    kept: float
    """Share of the pool that was selected."""
    kept_right: float
    """Share of these labels that are right; NaN where none was kept."""
    pool_right: float
    """Share of all labels of the pool that are right."""


def evolve(
    task: Task,
    views: Sequence[View],
    rule: SelectionRule,
    fold: Tensor,
    is_ensemble: bool = False,
    max_rounds: int = MAX_ROUNDS,
    judge: PairwiseJudge | None = None,
) -> list[Round]:
    """Up to `max_rounds` rounds after the seed model; of several views the mean counts, and pairs on which they agree.

    Args:
        task: pairs and seed.
        views: what the heads read.
        rule: selects.
        fold: of each seed pair.
        is_ensemble: the models of the folds, averaged, take the place of the one that has seen all of the seed.
        max_rounds: after the seed model.
        judge: helps to label the pool, where the seed speaks for it.
    """
    folds = [Chain(task.seed[fold != k]) for k in range(int(fold.max()) + 1)]
    main, rounds = Chain(task.seed), list[Round]()
    target = task.target[task.seed]
    head = None if judge is None else judge_head(task, judge)

    def scores_of(chain: Chain, rows: Tensor) -> Tensor:
        chains = folds if is_ensemble and chain is main else [chain]
        return torch.stack([one.rewards(views, rows) for one in chains]).mean(0)

    while True:
        for chain in (*folds, main):
            chain.fit(views, task.target)
        out_of_fold = torch.zeros(len(task.seed), 2, dtype=torch.float64)
        for k, chain in enumerate(folds):
            out_of_fold[fold == k] = chain.rewards(views, task.seed[fold == k]).mean(0)
        context = SelectionContext(_scores(task.seed, out_of_fold), target)
        vote = None if head is None else hold_vote(_by_pair_id(task, context), head)
        results = []
        for chain in (*folds, main):
            rewards, past = scores_of(chain, task.pool), replace(context, history=chain.history)
            if head is not None and vote is not None and vote.is_used:
                left_out = None if chain is main else pair_ids(task, task.seed[~torch.isin(task.seed, chain.rows)])
                logits = head.logits(pair_ids(task, task.pool), left_out)
                rewards = rewards / vote.temperature + torch.stack([logits, -logits], 1) / 2
                past = replace(vote.context, history=chain.history)
            results.append(_select(task.pool, rewards, rule, past))
        result, test = results[-1], scores_of(main, task.test).mean(0)
        is_right = result.label == task.target[task.pool]
        shares = [float(one.double().mean()) for one in (result.keep, is_right[result.keep], is_right)]
        rounds.append(Round(test[:, 0] - test[:, 1], out_of_fold[:, 0] - out_of_fold[:, 1], *shares))
        if result.converged or not result.keep.any() or len(rounds) > max_rounds:
            return rounds
        for chain, own in zip((*folds, main), results, strict=True):
            labels, sure = own.label[own.keep], own.confidence[own.keep]
            chain.history.append(Selection(task.pool[own.keep], labels, sure, own.status, len(rounds) - 1))


def pair_ids(task: Task, rows: Tensor) -> Tensor:
    """Ids of the pairs in some rows."""
    return torch.tensor(task.pairs.pair_id)[rows]


def _by_pair_id(task: Task, context: SelectionContext) -> SelectionContext:
    """The same with the pairs' own ids in place of rows."""
    return replace(context, scores=replace(context.scores, pair_id=pair_ids(task, context.scores.pair_id)))


def judge_head(task: Task, judge: PairwiseJudge) -> JudgeHead:
    """A judge that has learnt the labels of a task."""
    seed, group = pair_ids(task, task.seed), task.group(task.seed).tolist()
    return judge.learn(seed, task.target[task.seed], group, pair_ids(task, task.pool))


def _scores(rows: Tensor, rewards: Tensor) -> PairScores:
    """Of rewards (rows, 2); rules read no lengths."""
    nothing = torch.zeros(len(rows), dtype=torch.int64)
    return PairScores(rows, *rewards.float().unbind(1), nothing, nothing)


def _select(rows: Tensor, rewards: Tensor, rule: SelectionRule, context: SelectionContext) -> SelectionResult:
    """What the rule says of the views' mean, without the pairs on which they disagree.

    Args:
        rows: of the pool.
        rewards: (V, rows, 2).
        rule: selects.
        context: the seed, out of fold.
    """
    found = rule.select(_scores(rows, rewards.mean(0)), context)
    side = torch.sign(rewards[..., 0] - rewards[..., 1])
    keep = found.keep & (side == side[0]).all(0)
    return SelectionResult(found.prob_a, keep, found.status, found.converged, found.message)


def seed_scores(task: Task, view: View, fold: Tensor) -> PairScores:
    """Of the seed pairs, under their own ids, by heads that were fitted without their fold."""
    margin = out_of_fold_margins(task, view, fold)
    return _scores(pair_ids(task, task.seed), torch.stack([margin, -margin], 1) / 2)


def out_of_fold_margins(task: Task, view: View, fold: Tensor) -> Tensor:
    """(seed,) margins of the seed pairs, each by a head that was fitted without its fold."""
    margins, x, target = torch.zeros(len(task.seed), dtype=torch.float64), view.differences, task.target
    for k in range(int(fold.max()) + 1):
        kept, left_out = task.seed[fold != k], task.seed[fold == k]
        margins[fold == k] = x[left_out] @ fit_linear_head(x[kept], target[kept], view.penalty)
    return margins
