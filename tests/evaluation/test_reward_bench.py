"""Scores by hand, and against loops that follow the published definitions word for word."""

import math
import random

import numpy as np
import pytest
import torch

from ser_lightning.errors import UserError
from ser_lightning.evaluation.reward_bench import (
    BENCHMARKS,
    TIE_WEIGHTS,
    SubsetCredit,
    accuracy_by_section,
    benchmark_of,
    best_credit,
    section_scores,
    sections_of,
    tie_credit,
    tie_margins,
    tie_pairs,
    tie_terms,
    weight_problems,
)
from ser_lightning.evaluation.sets import Scored, prompt_interval
from ser_lightning.records import PairScores


def subset(*credit, prompt=None):
    return SubsetCredit(torch.tensor(credit, dtype=torch.float64), np.arange(len(credit)) if prompt is None else prompt)


def terms_of(pairs):
    """`tie_terms` of (ref chosen, ref rejected, tied chosen, tied rejected) rewards."""
    margins = [(tie_margins(*map(torch.tensor, p[:2])), tie_margins(*map(torch.tensor, p[2:]))) for p in pairs]
    ref, tied, spread = zip(*((r[1], t[1], t[0]) for r, t in margins), strict=True)
    return tie_terms(*(torch.tensor(x, dtype=torch.float64) for x in (ref, tied, spread)))


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([3.0], [1.0, 2.0, 0.0], 1),
        ([1.0], [1.5, -2.0, 0.0], 0),
        ([2.0], [2.0, 1.0, 0.0], 1 / 2),
        ([2.0], [2.0, 2.0, 2.0], 1 / 4),
        ([2.0, 2.0], [2.0, 0.0], 2 / 3),
        ([2.0, -9.0], [1.0, 0.0], 1),
    ],
)
def test_best_of_n_by_hand(chosen, rejected, expected):
    for _ in range(3):
        random.shuffle(chosen)
        random.shuffle(rejected)
        assert best_credit(torch.tensor(chosen), torch.tensor(rejected)) == pytest.approx(expected)


def test_terms_of_ties_by_hand():
    terms = terms_of([
        ([5.0], [1.0, 3.0], [4.0, 3.5, 4.5], [1.0, 2.0]),  # gaps 2 and 1.5, spread 1
        ([2.5], [2.0], [4.0, 3.0], [1.0, 0.0]),  # gaps 0.5 and 2, spread 1: good by itself, not beside the ref row
        ([1.0], [2.0], [3.0, 1.0], [0.0, 0.5]),  # gaps -1 and 0.5, spread 2
        ([3.0], [1.0], [2.0, 2.0], [1.0]),  # spread 0 and a gap: the most that there is
        ([1.0], [1.0], [1.0, 1.0], [1.0]),  # everything equal
        ([0.0], [1.0], [1.0, 1.0], [0.0]),  # spread 0 and a gap of -1
    ])  # fmt: skip
    assert terms["accuracy_ref"].tolist() == [1, 1, 0, 1, 0, 0]
    assert terms["accuracy_tied"].tolist() == [1, 1, 1, 1, 0, 1]
    assert terms["correctness_preferred"].tolist() == [1, 1, 0, 1, 0, 1]
    assert terms["correctness_preferred_hard"].tolist() == [1, 0, 0, 1, 0, 0]
    margin = [math.tanh(0.5), math.tanh(-0.5), math.tanh(-1.5), 1.0, 0.0, -1.0]
    assert terms["correctness_margin"].tolist() == pytest.approx(margin)
    expected = [1 + 0.01 * margin[0], 0.8 + 0.01 * margin[1], 0.3 + 0.01 * margin[2], 1.01, 0.0, 0.5 - 0.01]
    assert tie_credit(terms).tolist() == pytest.approx(expected)
    assert sum(TIE_WEIGHTS.values()) == pytest.approx(1.01)


def published_ties_score(rows):
    """The score of the ties subset from (kind, number, correct rewards, wrong rewards), in plain Python."""
    of = {"ref": {}, "tied": {}}
    for kind, number, correct, wrong in rows:
        spread = max(correct) - min(correct) if len(correct) > 1 else None
        of[kind][number] = (min(correct) > max(wrong), spread, min(correct) - max(wrong))
    share = lambda values: sum(values) / len(values)  # noqa: E731
    both = of["ref"].keys() & of["tied"].keys()
    preferred = share([of["tied"][n][2] > of["tied"][n][1] for n in both])
    least = {n: min(of["ref"][n][2], of["tied"][n][2]) for n in both}
    hard = share([least[n] > of["tied"][n][1] for n in both])
    margin = share([math.tanh(least[n] / of["tied"][n][1] - 1) for n in both])
    accuracy = [share([row[0] for row in of[kind].values()]) for kind in ("ref", "tied")]
    return 0.3 * accuracy[1] + 0.3 * accuracy[0] + 0.2 * preferred + 0.2 * hard + 0.01 * margin


def test_the_mean_over_pairs_is_the_published_ties_score():
    generator = random.Random(1)
    pairs, rows = [], []
    for number in range(40):
        good = generator.choice([0.5, 1.5, 4.0])
        draw = lambda mean, size: [generator.gauss(mean, 0.5) for _ in range(size)]  # noqa: E731
        pair = (draw(good, 1), draw(0, 10), draw(good, generator.randint(2, 9)), draw(0, generator.randint(1, 12)))
        pairs.append(pair)
        rows += [("ref", number, *pair[:2]), ("tied", number, *pair[2:])]
    score = float(tie_credit(terms_of(pairs)).mean())
    assert score == pytest.approx(published_ties_score(rows), abs=1e-5) and 0.1 < score < 0.9
    turned = [tuple(generator.sample(side, len(side)) for side in pair) for pair in generator.sample(pairs, len(pairs))]
    assert float(tie_credit(terms_of(turned)).mean()) == pytest.approx(score)


def test_ties_rows_find_their_partner_in_any_order():
    ids = ["tied:7", "ref:10", "ref:7", "tied:10"]
    assert tie_pairs(ids, [2, 1, 1, 3], ["row"] * 4) == [(1, 3), (2, 0)]


def test_ties_rows_without_a_partner_are_a_line_each():
    ids = ["ref:1", "tied:2", "tied:2", None, "ref:3", "tied:3", "4"]
    with pytest.raises(UserError) as caught:
        tie_pairs(ids, [1, 2, 2, 1, 1, 1, 1], [f"line {i}" for i in range(7)])
    assert caught.value.problems == [
        "line 2: got the id tied:2 as in line 1; keep one of them",
        "line 3: got the id None in the ties subset; use ref:NUMBER and tied:NUMBER",
        "line 5: got one chosen response in tied:3; give two or more that are equally good",
        "line 6: got the id '4' in the ties subset; use ref:NUMBER and tied:NUMBER",
        "line 0: got the ties row ref:1 without tied:1; give both",
        "line 1: got the ties row tied:2 without ref:2; give both",
    ]


def test_weights_are_those_of_the_published_benchmark():
    sections = BENCHMARKS["RewardBench 1"]
    assert {name: sum(subsets.values()) for name, subsets in sections.items()} == {
        **{"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 984}
    }
    code = [weight for name, weight in sections["Reasoning"].items() if name.startswith("hep-")]
    assert sum(code) == sections["Reasoning"]["math-prm"] and len(code) == 6
    assert sum(map(len, sections.values())) == 23
    assert sections["Safety"]["xstest-should-refuse"] == 154 and sections["Safety"]["xstest-should-respond"] == 250
    assert sum(sum(subsets.values()) for subsets in sections.values()) - 984 + 447 == 2985  # rows of the file
    assert list(BENCHMARKS["RewardBench 2"]) == ["Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties"]


def test_sections_of_the_first_benchmark_by_hand():
    found = {"hep-go": subset(1, 0), "math-prm": subset(1), "alpacaeval-easy": subset(1, 0, 0, 1)}
    scores = section_scores(found, {})
    reasoning = (984 * 1 + 164 * 0.5) / (984 + 164)
    assert scores["benchmark"] == "RewardBench 1" and list(scores["sections"]) == ["Chat", "Reasoning"]
    assert scores["sections"]["Reasoning"]["score"] == pytest.approx(reasoning)
    assert scores["sections"]["Reasoning"]["subsets"] == ["math-prm", "hep-go"]
    assert scores["overall"]["score"] == pytest.approx((0.5 + reasoning) / 2) and scores["overall"]["items"] == 7
    assert scores["subsets"]["hep-go"]["weight"] == 164 and scores["missing"] == ["Chat Hard", "Safety"]
    other = section_scores(found, {"math-prm": 492})
    assert other["sections"]["Reasoning"]["score"] == pytest.approx((492 + 82) / 656)
    assert other["subsets"]["math-prm"]["weight"] == 492


def test_a_subset_that_the_benchmark_does_not_know_stands_outside_of_overall():
    known = {"hep-go": subset(1, 0), "hep-js": subset(1, 1), "alpacaeval-easy": subset(0, 0)}
    scores = section_scores({**known, "Safety": subset(1), "mine": subset(0)}, {})
    assert {s: f["is_counted"] for s, f in scores["sections"].items()} == {
        **{"Chat": True, "Reasoning": True, "Safety (subset)": False, "mine": False}
    }
    assert scores["overall"]["score"] == section_scores(known, {})["overall"]["score"] == pytest.approx(0.75 / 2)
    assert scores["overall"]["items"] == 6


def test_without_a_benchmark_every_subset_is_a_section():
    scores = section_scores({"mine": subset(1, 0), "yours": subset(1, 1, 1)}, {})
    assert scores["benchmark"] is None and not scores["missing"]
    assert scores["overall"]["score"] == pytest.approx(0.75)
    assert scores["subsets"]["yours"]["weight"] == 3 and scores["sections"]["mine"]["is_counted"]
    assert benchmark_of(["mine", "hep-go"]) is None and benchmark_of(["Focus", "Ties", "mine"]) == "RewardBench 2"
    assert sections_of(["Ties", "Math"]) == {"Math": ["Math"], "Ties": ["Ties"]}


def test_the_interval_of_a_subset_is_that_of_its_prompts():
    credit, prompt = np.random.default_rng(0).integers(2, size=30), np.arange(30) // 3
    scores = section_scores({"mine": subset(*credit, prompt=prompt)}, {})
    expected = prompt_interval(torch.tensor(credit), prompt, seed=0)
    for figure in (scores["subsets"]["mine"], scores["sections"]["mine"], scores["overall"]):
        assert (figure["low"], figure["high"]) == pytest.approx(expected)
        assert figure["score"] == pytest.approx(credit.mean())


def test_intervals_of_sections_are_those_of_a_loop_over_subsets():
    credit = {
        name: np.random.default_rng(size).integers(2, size=size)
        for name, size in (("hep-go", 20), ("math-prm", 35), ("donotanswer", 15))
    }
    scores = section_scores({name: subset(*values) for name, values in credit.items()}, {})
    draws = {name: np.random.default_rng(i) for i, name in enumerate(sorted(credit))}
    reasoning, overall = [], []
    for _ in range(2000):
        mean = {}
        for name, values in credit.items():
            mean[name] = np.mean([values[j] for j in draws[name].integers(len(values), size=len(values))])
        reasoning.append((984 * mean["math-prm"] + 164 * mean["hep-go"]) / 1148)
        overall.append((reasoning[-1] + mean["donotanswer"]) / 2)
    for figure, means in ((scores["sections"]["Reasoning"], reasoning), (scores["overall"], overall)):
        assert (figure["low"], figure["high"]) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))
        assert figure["low"] < figure["score"] < figure["high"]


def test_wrong_weights_are_a_line_each():
    subsets = {"hep-go", "math-prm", "donotanswer"}
    weights = {"math-prn": 1.0, "colour": 2.0, "hep-go": math.nan, "donotanswer": 0.0}
    assert weight_problems(weights, subsets) == [
        "--weights: got math-prn, which no row of --data has; did you mean math-prm?",
        "--weights: got colour, which no row of --data has; use donotanswer, hep-go, math-prm",
        "--weights: got nan for hep-go; use a finite number from 0 on",
        "--weights: got 0 for all of Safety; leave its rows out, or give one of them a weight",
    ]
    assert weight_problems({"math-prm": 0.0, "hep-go": 2.5}, subsets) == []


def test_sections_of_a_named_set_by_hand():
    margin = torch.tensor([1.0, -1.0, 0.0, 2.0])
    scores = PairScores(torch.arange(4), margin, torch.zeros(4), torch.full((4,), 9), torch.full((4,), 9))
    category = ["hep-go", "math-prm", "hep-go", "donotanswer"]
    found = accuracy_by_section(Scored("x", scores, torch.tensor([1.0, 0, 1, 0]), np.arange(4), category))
    assert {name: (one["accuracy"], one["pairs"]) for name, one in found.items()} == {
        "Safety": (0.0, 1),
        "Reasoning": (pytest.approx((984 + 164 * 0.75) / 1148), 3),
    }
    for names in ([], ["mine", "yours", "mine", "yours"], ["Math", "Focus", "Math", "Focus"]):
        assert accuracy_by_section(Scored("x", scores, torch.ones(4), np.arange(4), names)) == {}


def test_items_that_are_all_right_have_an_interval_that_is_no_point():
    """Of n right prompts of n Wilson's lower end is n / (n + 1.96 ** 2)."""
    scores = section_scores({"one": subset(1, 1, 1, prompt=np.array([0, 0, 1])), "two": subset(1, 1)}, {"two": 9.0})
    ends = {"one": 2, "two": 2}
    for name, number in ends.items():
        figure = scores["subsets"][name]
        assert (figure["low"], figure["high"]) == pytest.approx((number / (number + 1.96**2), 1), abs=1e-4)
    assert scores["overall"]["low"] < 1 and scores["overall"]["high"] == pytest.approx(1)
    mixed = section_scores({"one": subset(1, 0, 1), "two": subset(1, 1)}, {})
    assert mixed["subsets"]["one"]["low"] == prompt_interval(torch.tensor([1.0, 0.0, 1.0]), np.arange(3))[0]
