"""Which pairs to ask a person about: strategies, and the accuracy that their labels bring.

Shapes: m pairs to choose from, s labelled pairs, D numbers of a view.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.readings.heads import Task, View, make_view
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.models.readings import Reading

FIRST_LABELS = 25


@dataclass(frozen=True)
class Question:
    """What a strategy may know.

    Attributes:
        task: its labelled pairs are those so far.
        both: view of all readings, its head and penalty chosen on the labels so far.
        single: a view for each reading by itself.
        generator: of random numbers.
    """

    task: Task
    both: View
    single: list[View]
    generator: torch.Generator

    def probability(self, view: View) -> Tensor:
        """(m,) calibrated, that a wins."""
        return torch.sigmoid(view.differences[self.task.pool] @ view.seed_weight(self.task) / view.temperature)


Strategy = Callable[[Question, int], Tensor]
"""From what is known and a number to places in the pool."""


def at_random(question: Question, number: int) -> Tensor:
    """What the others have to beat."""
    return torch.randperm(len(question.task.pool), generator=question.generator)[:number]


def spread_prompts(question: Question, number: int) -> Tensor:
    """At random, but always from the prompts that have the fewest labels so far."""
    task = question.task
    order = torch.randperm(len(task.pool), generator=question.generator)
    num_labels = Counter(task.group(task.seed).tolist())
    level = torch.zeros(len(order), dtype=torch.int64)
    for i, prompt in enumerate(task.group(task.pool[order]).tolist()):
        level[i] = num_labels[prompt]
        num_labels[prompt] += 1
    return order[level.argsort(stable=True)[:number]]


def least_sure(question: Question, number: int) -> Tensor:
    """Margins closest to 0."""
    return (question.probability(question.both) - 0.5).abs().argsort(stable=True)[:number]


def most_informative(question: Question, number: int) -> Tensor:
    """Most expected information, each pair by itself: p (1 - p) times the margin's variance (Laplace)."""
    task, view = question.task, question.both
    x, weight = view.differences, view.seed_weight(task)
    chance = torch.sigmoid(x[task.pool] @ weight)
    variance = margin_variance(x[task.seed], weight, view.penalty, x[task.pool])
    return (chance * (1 - chance) * variance).argsort(descending=True, stable=True)[:number]


def margin_variance(differences: Tensor, weight: Tensor, penalty: float, others: Tensor) -> Tensor:
    """(m,) float64, variance of the margins of other pairs under the Laplace posterior of the weights.

    The posterior is a normal distribution around the fitted weights with the precision X' R X + penalty I, R the
    diagonal of s(x w) s(-x w) (MacKay 1992, "The evidence framework applied to classification networks"). Its
    inverse is found among the n pairs (Woodbury), which are fewer than the numbers.

    Args:
        differences: (n, D), scaled, that the weights were fitted on.
        weight: (D,), fitted.
        penalty: it was fitted with.
        others: (m, D), scaled.
    """
    x, others = differences.double(), others.double()
    chance = torch.sigmoid(x @ weight.double())
    rows = x * (chance * (1 - chance)).sqrt()[:, None]
    known = rows @ others.T
    among = rows @ rows.T + penalty * torch.eye(len(rows), dtype=torch.float64)
    return (others.square().sum(1) - (known * torch.linalg.solve(among, known)).sum(0)) / penalty


def informative_batch(question: Question, number: int) -> Tensor:
    """Most expected information together: greedy, the posterior takes in every pair that is chosen."""
    task, view = question.task, question.both
    x, weight = view.differences, view.seed_weight(task)
    chance = torch.sigmoid(x @ weight)
    curvature = chance * (1 - chance)
    labelled = x[task.seed]
    precision = (labelled.T * curvature[task.seed]) @ labelled
    precision += view.penalty * torch.eye(len(precision), dtype=torch.float64)
    return greedy_information(x[task.pool], curvature[task.pool], torch.linalg.inv(precision), number)


def greedy_information(x: Tensor, curvature: Tensor, covariance: Tensor, number: int) -> Tensor:
    """Greedy maximum of log det of the posterior's precision: each pair adds log(1 + curvature x' covariance x).

    Args:
        x: (m, D) differences.
        curvature: (m,) p (1 - p).
        covariance: (D, D) of the weights.
        number: at most m.
    """
    known = x @ covariance
    variance = (known * x).sum(1)
    chosen: list[int] = []
    for _ in range(number):
        gain = curvature * variance
        gain[chosen] = -1.0
        place = int(gain.argmax())
        chosen.append(place)
        shared = known @ x[place]
        step = curvature[place] / (1 + curvature[place] * variance[place])
        known = known - step * torch.outer(shared, known[place])
        variance = variance - step * shared.square()
    return torch.tensor(chosen)


def views_differ(question: Question, number: int) -> Tensor:
    """The largest differences between the probabilities of the views."""
    first, second = (question.probability(view) for view in question.single)
    return (first - second).abs().argsort(descending=True, stable=True)[:number]


STRATEGIES: dict[str, Strategy] = {
    "random": at_random,
    "spread": spread_prompts,
    "least_sure": least_sure,
    "information": most_informative,
    "information_batch": informative_batch,
    "views": views_differ,
}


def ask(
    start: Task, readings: Sequence[Reading], strategy: Strategy, sizes: Sequence[int], seed: int
) -> dict[int, Tensor]:
    """The (test,) credit of the model at each number of labels.

    Args:
        start: with the first labels.
        readings: what the model reads, two of them.
        strategy: chooses all others.
        sizes: numbers of labels, ascending; the penalty is chosen anew at each.
        seed: of what is random.
    """
    task, view, found = start, make_view(start, readings), {}
    generator = torch.Generator().manual_seed(seed)
    for size in (size for size in sizes if len(start.seed) < size <= len(start.train)):
        question = Question(task, view, [make_view(task, [one]) for one in readings], generator)
        places = strategy(question, size - len(task.seed))
        task = replace(task, seed=torch.cat([task.seed, task.pool[places]]))
        view = make_view(task, readings)
        margin = view.differences[task.test] @ view.seed_weight(task)
        found[size] = half_credit(margin, task.target[task.test])
    return found
