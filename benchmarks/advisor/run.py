"""How far off is the forecast of what more labels gain, and what do unlabelled pairs add to an evaluation?

    python -m benchmarks.advisor.run --states FOLDER   # makes the runs that are missing; FOLDER: of benchmarks.readings
    python -m benchmarks.tables                        # writes the tables into docs/forecast.md and docs/evaluation.md

A setting is a data set and a frozen body, whose states the study of readings has computed. A random seed draws half of
the prompts to test on and the order in which the other half gets its labels. The forecast sees the first labels alone;
then the next 100 or 200 are added and the head, its penalty chosen anew, is held against the test half. The second part
takes some test pairs as labelled and the others as the pool, and asks for the accuracy on all of them.
"""

from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from benchmarks.readings.states import StudyPairs
from benchmarks.shared.results import Results, Run, versions
from benchmarks.shared.runs import run_missing, study_arguments
from ser_lightning.evaluation.calibration import fit_temperature, prob_a_wins
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.prediction_powered import expected_change, expected_credit, powered_mean
from ser_lightning.evolution.learning_curve import LearningCurve, label_gain, learning_curve
from ser_lightning.models.readings import Reading, standard_reading
from ser_lightning.training.linear_head import choose_penalty, difference_scale, fit_linear_head
from ser_lightning.training.reading_choice import candidate_sets

SEED_SIZES, MORE = (50, 100, 200, 400), (100, 200)
MODELS = {"usual_50": ("usual", 50), "usual_200": ("usual", 200), "standard_200": ("standard", 200)}
COMPARISONS = (("usual_50", "usual_200"), ("standard_200", "usual_200"))
NUM_LABELLED, NUM_DRAWS = (60, 200), 10


@cache
def differences_of(file: Path, kind: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """(N, D) scaled differences at the usual or the standard reading, (N,) labels, (N,) prompts."""
    pairs = StudyPairs.load(file)
    usual: Sequence[Reading] = candidate_sets(pairs.num_layers)[0]
    readings = usual if kind == "usual" else [standard_reading(pairs.num_layers)]
    states = pairs.at(readings)
    found = (states[:, 0] - states[:, 1]).flatten(1)
    return found / difference_scale([found], len(readings)), pairs.label.double(), pairs.group


def halves(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to test on, and rows to learn from in the order of their labels: prompts in a random order, cut in two."""
    _, number = np.unique(group, return_inverse=True)
    place = np.random.default_rng(seed).permutation(number.max() + 1)[number]
    order = np.argsort(place, kind="stable")
    is_test = place[order] < (number.max() + 1) // 2
    return order[is_test], order[~is_test]


class Learner:
    """Heads on the first labels of a half, and what the test half says of them.

    Args:
        file: of states.
        kind: `usual` or `standard`.
        seed: of the halves.
    """

    def __init__(self, file: Path, kind: str, seed: int) -> None:
        self.x, self.target, self.group = differences_of(file, kind)
        self.test, self.train = halves(self.group, seed)
        self._heads: dict[int, tuple[Tensor, float, float]] = {}

    def rows(self, num_labels: int) -> np.ndarray:
        """The first so many rows of the half to learn from."""
        return self.train[:num_labels]

    def head(self, num_labels: int) -> tuple[Tensor, float, float]:
        """Weights, penalty and temperature with so many labels."""
        if num_labels not in self._heads:
            rows = self.rows(num_labels)
            choice = choose_penalty(self.x[rows], self.target[rows], self.group[rows].tolist())
            weight = fit_linear_head(self.x[rows], self.target[rows], choice.penalty)
            self._heads[num_labels] = weight, choice.penalty, fit_temperature(choice.margin, self.target[rows])
        return self._heads[num_labels]

    def margin(self, num_labels: int) -> Tensor:
        """Of the test half."""
        return self.x[self.test].double() @ self.head(num_labels)[0]

    def credit(self, num_labels: int) -> Tensor:
        """Of the test half."""
        return half_credit(self.margin(num_labels), self.target[self.test])


def free_power_law(curve: LearningCurve, labels: int) -> float:
    """The forecast with an exponent that the curve's four points choose, between 0.05 and 1.5."""
    accuracy, start = curve.credit.mean(1).numpy(), curve.num_labels
    found = least_squares(
        lambda p: p[0] - p[1] * curve.sizes ** -p[2] - accuracy,
        [float(accuracy[-1]), 0.5, 0.5],
        bounds=([0, 0, 0.05], [1, 3, 1.5]),
    ).x
    return float(found[1] * (start ** -found[2] - (start + labels) ** -found[2]))


def labels_part(learner: Learner, seed: int) -> list[Run]:
    """Forecast and result for every size of the seed and number of labels that are added."""
    found = []
    for size in SEED_SIZES:
        rows = learner.rows(size)
        curve = None
        for more in (more for more in MORE if size + more <= len(learner.train)):
            if curve is None:
                penalty, group = learner.head(size)[1], learner.group[rows].tolist()
                curve = learning_curve(learner.x[rows], learner.target[rows], group, penalty, seed)
            change = learner.credit(size + more) - learner.credit(size)
            forecast = label_gain(curve, more, seed)
            figures = {
                "gain": float(change.mean()),
                "test_error": float(change.std()) / len(change) ** 0.5,
                **{name: getattr(forecast, name) for name in ("low", "high")},
                "forecast": forecast.gain,
                "free": free_power_law(curve, more),
            }
            found.append({"size": size, "more": more, **{k: round(v, 5) for k, v in figures.items()}})
    return found


def powered_part(file: Path, seed: int) -> list[Run]:
    """Width and coverage with some test pairs labelled: accuracies of models, and differences of two."""
    learners = {kind: Learner(file, kind, seed) for kind in ("usual", "standard")}
    usual = learners["usual"]
    prompt, target = usual.group[usual.test], usual.target[usual.test]
    margin = {name: learners[kind].margin(size) for name, (kind, size) in MODELS.items()}
    prob = {name: prob_a_wins(margin[name], learners[k].head(size)[2]) for name, (k, size) in MODELS.items()}
    credit = {name: half_credit(one, target) for name, one in margin.items()}
    asked = {name: (credit[name], expected_credit(prob[name])) for name in MODELS}
    for a, b in COMPARISONS:
        asked[f"{b} - {a}"] = credit[b] - credit[a], expected_change(prob[a], prob[b])
    generator, found = np.random.default_rng(seed), []
    for num_labelled, (name, (outcome, prediction)) in product(NUM_LABELLED, asked.items()):
        truth, rows = float(outcome.mean()), []
        for _ in range(NUM_DRAWS):
            order = generator.permutation(len(target))
            some, rest = order[:num_labelled], order[num_labelled:]
            one = powered_mean(outcome[some], prediction[some], prediction[rest], prompt[some], prompt[rest])
            covers = one.low <= truth <= one.high, one.labels_low <= truth <= one.labels_high
            rows.append((one.width_ratio, one.power, *covers))
        names = ("width_ratio", "power", "covered", "labels_covered")
        figures = {k: round(float(v), 4) for k, v in zip(names, np.nanmean(np.array(rows, float), 0), strict=True)}
        found.append({"asked": name, "labelled": num_labelled, **figures})
    return found


def run_one(setting: str, seed: int, states: Path) -> Run:
    """Both parts on a data set and a body."""
    torch.set_num_threads(1)
    file = states / f"{setting.replace('/', '-')}.pt"
    learner = Learner(file, "usual", seed)
    found = {"setting": setting, "seed": seed, "test_pairs": len(learner.test), "versions": versions("torch", "scipy")}
    return {**found, "labels": labels_part(learner, seed), "powered": powered_part(file, seed)}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, Path(__file__).parent / "results.jsonl", "runs/benchmark/advisor")
    parser.add_argument("--states", type=Path, default=Path("runs/benchmark/readings"), help="folder of DATA-BODY.pt")
    parser.add_argument("--settings", nargs="+", required=True, metavar="DATA/BODY")
    # On random seeds 1 to 20, 101 to 125 and 201 to 225 the exponent, its range and the scatter were chosen.
    parser.set_defaults(seeds=[*range(301, 326)])
    args = parser.parse_args()
    tasks = product(args.settings, args.seeds)
    run_missing(Results(args.out, "setting", "seed"), tasks, partial(run_one, states=args.states), args.jobs)


if __name__ == "__main__":
    main()
