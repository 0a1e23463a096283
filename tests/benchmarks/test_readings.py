"""The study of readings: heads on cached states, their evolution, queries and tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.readings import states as states_module
from benchmarks.readings import tables as study
from benchmarks.readings.answer_table import answer_table
from benchmarks.readings.answers import compute_answers, usual_view
from benchmarks.readings.heads import Round, evolve, make_task, make_view
from benchmarks.readings.loss_table import loss_table
from benchmarks.readings.queries import STRATEGIES, Question, ask, greedy_information, margin_variance
from benchmarks.readings.run import delivered_rounds, run_one
from benchmarks.readings.states import NUM_FIFTHS, StudyPairs, compute_states
from ser_lightning.data.encode import encode_conversations
from ser_lightning.evolution.pairwise_judge import PairwiseJudge
from ser_lightning.evolution.selection import CalibratedRule, TopShareRule
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.readings import QUESTION, parse_readings
from ser_lightning.training.linear_head import fit_linear_head

READINGS = ["last@6", "mean@3", "last@4", "judge@4"]
USUAL = parse_readings(["mean@3", "judge@4"], 6)


@pytest.fixture(scope="module")
def pairs():
    """300 pairs of 60 prompts whose label a direction of the mean and one of the judge's state tell, with noise."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(300, 2, 4, 12, generator=generator)
    signal = (states[:, 0, 1, :3] - states[:, 1, 1, :3]).sum(1) + (states[:, 0, 3, 0] - states[:, 1, 3, 0])
    label = (signal + torch.randn(300, generator=generator) > 0).long()
    prompt = [f"{i // 5 * 16**12 // 60:012x}" for i in range(300)]
    return StudyPairs(
        states.bfloat16(), READINGS, label, prompt, torch.randint(5, 50, (300, 2), generator=generator), [*range(300)]
    )


def test_states_are_those_of_plain_transformers(tiny_model_dir, tmp_path):
    rows = [
        {"prompt": f"Say {word}.", "chosen": f"{word} it is.", "rejected": f"No {word}, never, {word}!"}
        for word in ("one", "two", "three")
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    found = compute_states([file], tiny_model_dir, None, tmp_path / "partial")
    assert found.states.shape[:3] == (3, 2, 15) and found.states.dtype == torch.bfloat16
    found.save(tmp_path / "cache" / "states.pt")
    again = StudyPairs.load(tmp_path / "cache" / "states.pt")
    assert torch.equal(again.states, found.states) and again.prompt == found.prompt
    tokenizer = load_tokenizer(Backbone(str(tiny_model_dir)))
    body = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).eval().model
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
        [ids] = encode_conversations(tokenizer, [turns])
        with torch.no_grad():
            state = body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        last = found.states[:, :, found.readings.index(f"last@{found.num_layers}")].flatten(0, 1)
        assert (last.float() - state.float()).abs().amax(1).min() < 0.05
        assert (last.float() - state.float()).abs().amax(1).median() > 0.05  # another response's is another state


def test_a_killed_pass_goes_on_behind_its_last_batch(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(states_module, "TOKENS_PER_BATCH", 1)  # a pair a batch
    words = "one", "two", "three"
    rows = [{"prompt": f"Say {word}.", "chosen": f"{word} it is.", "rejected": "no"} for word in words]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [tmp_path / "pairs.jsonl"], tiny_model_dir, None, tmp_path / "partial"
    whole = compute_states(*arguments).states.clone()
    assert (tmp_path / "partial" / "batches.txt").read_text() == "3"
    (tmp_path / "partial" / "batches.txt").write_text("1")
    sevens = torch.full_like(whole, 7)
    (tmp_path / "partial" / "states").write_bytes(sevens.view(torch.uint8).numpy().tobytes())
    resumed = compute_states(*arguments).states
    is_new = (resumed == whole).flatten(1).all(1)
    assert is_new.sum() == 2 and bool((resumed[~is_new] == 7).all())


def test_the_answer_is_that_of_the_plain_language_model(tiny_model_dir, tmp_path):
    row = {"prompt": "Say one.", "chosen": "one it is.", "rejected": "never."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    pairs = compute_states([tmp_path / "pairs.jsonl"], tiny_model_dir, None, tmp_path / "partial")
    found, label = compute_answers(tiny_model_dir, pairs), int(pairs.label[0])
    tokenizer = load_tokenizer(Backbone(str(tiny_model_dir)))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    wanted = []
    for response in (row["chosen"], row["rejected"]):
        contents = row["prompt"], response, QUESTION
        turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), contents, strict=True)]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        wanted.append(float(logits[yes] - logits[no]))
    assert found[0].tolist() == pytest.approx(wanted[:: 1 if label else -1], abs=0.02)  # states are in bfloat16
    assert abs(wanted[0]) > 0.1  # which a state of another place, or an answer of other words, would not give


def test_an_answer_that_tells_the_labels_is_followed(pairs):
    """With few labels a head finds one telling number where it finds no direction among many."""
    task = make_task(pairs, 0, 20, 1)
    tells = torch.stack([pairs.label, 1 - pairs.label], 1) + 0.1 * torch.randn(300, 2) + 7
    right = {}
    for name, answers in (("without", None), ("with", tells)):
        view = usual_view(task, answers)
        margin = view.differences[task.test] @ view.seed_weight(task)
        right[name] = float(((margin > 0) == (task.target[task.test] > 0.5)).double().mean())
    assert right["with"] > 0.95 > right["without"]


def test_prompts_and_their_labels_stay_together(pairs):
    task = make_task(pairs, 2, 0.25, 1)
    parts = [{pairs.prompt[i] for i in rows.tolist()} for rows in (task.seed, task.pool, task.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert len(task.seed) == pytest.approx(0.25 * len(task.train), abs=5) and len(parts[2]) == 60 / NUM_FIFTHS
    more = make_task(pairs, 2, 100, 1)
    assert len(more.seed) == 100 and torch.isin(task.seed, more.seed).all()


def test_fewer_numbers_give_the_same_margins(pairs):
    """The head on the span of the training differences against the one on all numbers of the same pairs."""
    task = make_task(pairs, 0, 60, 1)
    few = replace(task, train=torch.cat([task.seed[:15], task.test[:0]]), seed=task.seed[:15])
    view = make_view(few, USUAL, penalty=1.0)
    assert view.differences.shape[1] == 15 < 24
    states = pairs.at(USUAL).flatten(2)
    difference = (states[:, 0] - states[:, 1]).double()
    x = difference / (difference[few.train].square().mean(0).sqrt() * 12**0.5)
    weight = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        margin = x[few.seed] @ weight
        value = torch.nn.functional.softplus(-margin * (2 * few.target[few.seed] - 1)).sum() + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    own = view.differences[few.seed] @ view.seed_weight(few)
    torch.testing.assert_close(own, (x[few.seed] @ weight).detach(), rtol=1e-4, atol=1e-4)


def test_no_out_of_fold_margin_knows_the_labels_of_its_fold(pairs):
    task = make_task(pairs, 0, 80, 1)
    fold = task.folds(4, 1)
    view = make_view(task, USUAL, penalty=1.0)
    turned = pairs.label.clone()
    turned[task.seed[fold == 2]] ^= 1
    other = replace(task, pairs=replace(pairs, label=turned))
    first, second = (evolve(one, [view], TopShareRule(1.0, 0.0), fold, max_rounds=2) for one in (task, other))
    assert len(first) == len(second) == 3
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one.out_of_fold[fold == 2], two.out_of_fold[fold == 2])
        assert not torch.allclose(one.out_of_fold[fold != 2], two.out_of_fold[fold != 2])


def test_evolution_leaves_out_what_views_disagree_on_and_an_ensemble_is_another_model(pairs):
    task = make_task(pairs, 1, 40, 1)
    fold, views = task.folds(4, 1), [make_view(task, [reading]) for reading in USUAL]
    both = evolve(task, views, TopShareRule(1.0), fold)[0]
    sides = [torch.sign(view.differences[task.pool] @ view.seed_weight(task)) for view in views]
    assert both.kept == pytest.approx(float((sides[0] == sides[1]).double().mean())) and 0.3 < both.kept < 0.9
    margin = sum(view.differences[task.test] @ view.seed_weight(task) / view.temperature for view in views) / 2
    torch.testing.assert_close(both.test, margin.float().double(), rtol=1e-4, atol=1e-4)
    one, voted = (evolve(task, views[:1], CalibratedRule(), fold, is_ensemble=e)[0] for e in (False, True))
    torch.testing.assert_close(one.out_of_fold, voted.out_of_fold)
    assert not torch.allclose(one.test, voted.test)


def knowing_judge(pairs, noise=0.2):
    """A judge whose states tell nearly every label."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(300, 6, generator=generator) * noise
    states[:, 0] += 2.0 * pairs.label - 1
    return PairwiseJudge(torch.arange(300), states)


def test_with_a_judge_the_models_of_the_folds_still_know_nothing_of_their_fold(pairs):
    """All that is shared is a scale; with a rule that keeps every label it plays no part in what is kept."""
    task = make_task(pairs, 0, 80, 1)
    fold, view, judge = task.folds(4, 1), make_view(task, USUAL, penalty=1.0), knowing_judge(pairs)
    without, judged = (evolve(task, [view], TopShareRule(1.0, 0.0), fold, judge=j) for j in (None, judge))
    torch.testing.assert_close(judged[0].out_of_fold, without[0].out_of_fold)
    torch.testing.assert_close(judged[0].test, without[0].test)  # what is delivered never uses the judge
    assert judged[0].pool_right > 0.95 > without[0].pool_right
    everything = view.seed_weight(replace(task, seed=task.train))  # a head on all true labels
    wanted = view.differences[task.test] @ everything
    likeness = [float(torch.corrcoef(torch.stack([one[-1].test, wanted]))[0, 1]) for one in (without, judged)]
    assert likeness[1] > 0.99 > 0.96 > likeness[0]


def test_delivery_by_hand():
    """Ten seed pairs; rounds 1 and 2 are right on two more than the seed model, not the same ones."""

    def round_with(credit):
        signs = torch.tensor([1.0 if c == "1" else -1.0 for c in credit], dtype=torch.float64)
        return Round(signs, signs, 0.5, 0.5, 0.5)

    target = torch.ones(10, dtype=torch.float64)
    found = delivered_rounds([round_with("1111110000"), round_with("1111111100"), round_with("1111111010")], target)
    # Gain 0.2, standard error sqrt(0.16 * 10 / 9) / sqrt(10) = 0.133: above one, not above two.
    assert (found["accuracy_0"], found["accuracy_1"], found["accuracy_2"]) == (1, 1, 0)
    assert found["not_worse"] == 2
    same = delivered_rounds([round_with("1111110000"), round_with("1111101000"), round_with("1111000000")], target)
    assert same["accuracy_0"] == same["loss_0"] == 0


def test_a_greedy_batch_raises_the_determinant_as_brute_force_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    x[1] = x[0] * 1.01  # the same pair again says less
    curvature = torch.rand(8, generator=generator, dtype=torch.float64) / 4
    precision = torch.eye(3, dtype=torch.float64)
    expected: list[int] = []
    for _ in range(5):
        gains = [
            -1.0
            if i in expected
            else float(torch.logdet(precision + curvature[i] * torch.outer(x[i], x[i])) - torch.logdet(precision))
            for i in range(8)
        ]
        expected.append(int(np.argmax(gains)))
        precision = precision + curvature[expected[-1]] * torch.outer(x[expected[-1]], x[expected[-1]])
    assert greedy_information(x, curvature, torch.eye(3, dtype=torch.float64), 5).tolist() == expected


def test_strategies_ask_for_other_pairs_and_begin_alike(pairs):
    task = make_task(pairs, 0, 30, 1)
    views = make_view(task, USUAL), [make_view(task, [reading]) for reading in USUAL]
    chosen = {
        name: strategy(Question(task, *views, torch.Generator().manual_seed(1)), 10)
        for name, strategy in STRATEGIES.items()
    }
    assert all(len(set(places.tolist())) == 10 for places in chosen.values())
    assert len({tuple(sorted(places.tolist())) for places in chosen.values()}) == len(STRATEGIES)
    assert chosen["information"][0] == chosen["information_batch"][0]
    prompts = task.group(task.pool[chosen["spread"]])  # 48 to choose from, 6 of them with labels
    assert len(set(prompts)) == 10 and not set(prompts) & set(task.group(task.seed))
    margin = (views[0].differences[task.pool] @ views[0].seed_weight(task)).abs()
    assert margin[chosen["least_sure"]].max() <= margin.sort().values[9]
    found = ask(task, USUAL, STRATEGIES["random"], (50, 100, 1000), 1)
    assert [*found] == [50, 100] and all(len(credit) == len(task.test) for credit in found.values())


@pytest.mark.slow
def test_every_part_of_the_study_runs_and_fills_its_tables(pairs, tmp_path):
    pairs.save(tmp_path / "pandalm-x.pt")
    torch.save(vars(knowing_judge(pairs)), tmp_path / "pandalm-x-comparisons.pt")
    torch.save(torch.rand(300, 2), tmp_path / "pandalm-x-answers.pt")
    tasks = [("15", 1), ("all", 1), ("curve", 1), ("queries", 1), ("judge_15", 1), ("answers", 1)]
    runs = [run_one(f"pandalm/x/{part}", seed, tmp_path) for part, seed in tasks]
    few = run_one("pandalm/x/15", 2, tmp_path, ["standard_calibrated"])
    assert [*few["conditions"]] == ["standard_calibrated"]
    results = study.by_setting(json.loads(json.dumps(runs)))
    assert "| pandalm | x | 1 | " in study.headline(results)
    made = [study.labels_table, study.conditions_table, study.calibration_table, study.queries_table, answer_table]
    assert [len(table(results).splitlines()) - 2 for table in made] == [5, len(study.CONDITIONS), 3, 3, 4]
    assert len(loss_table(results).splitlines()) == 2 + 5
    assert len(study.delivery_table(results).splitlines()) == 2 + len(study.GROUPS) * len(study.DELIVERIES)


@pytest.mark.parametrize(("n", "size"), [(40, 12), (15, 50)])
def test_the_variance_is_that_of_the_dense_posterior(n, size):
    generator = torch.Generator().manual_seed(2)
    x, others = torch.randn(n, size, generator=generator), torch.randn(7, size, generator=generator)
    label = (x[:, 0] + torch.randn(n, generator=generator) > 0).float()
    weight = fit_linear_head(x, label, 0.7)
    chance = torch.sigmoid(x.double() @ weight)
    precision = (x.double().T * (chance * (1 - chance))) @ x.double() + 0.7 * torch.eye(size, dtype=torch.float64)
    expected = (others.double() @ precision.inverse() * others).sum(1)
    assert torch.allclose(margin_variance(x, weight, 0.7, others), expected, rtol=1e-6)
    assert torch.allclose(margin_variance(x, weight, 0.7, -others), expected, rtol=1e-6)


def test_labels_needed_by_hand():
    """0.6 with 10 labels, 0.7 with 1000, and a fall to 0.65 between them that counts for nothing."""
    curve = np.array([[0.6, 0.55, 0.7]])
    wanted = [study.labels_needed([10, 100, 1000], curve, np.array([goal]))[0] for goal in (0.5, 0.65, 0.7, 0.9)]
    assert wanted == pytest.approx([10, 10**2.5, 1000, 1000], rel=1e-3)


def test_calibration_error_is_of_the_joined_bins():
    """Two runs err by 0.2 each way on ten pairs of the same tenth: nothing is left together."""
    bins = [{"pairs": 10, "confidence": 0.65, "right": 4.5}, {"pairs": 10, "confidence": 0.65, "right": 8.5}]
    assert study.pooled_error(bins) == pytest.approx((0.0, 0.65, 0.65))
    apart = [*bins[:1], {"pairs": 10, "confidence": 0.85, "right": 8.5}]
    assert study.pooled_error(apart) == pytest.approx((0.1, 0.75, 0.65))


def share_runs(ours, standard, evolved, fifth=0, seed=1):
    """A run with a share of the labels and one with all: 100 prompts, ten times the same ten credits."""
    way = {"kept": [0.5], "kept_right": [0.7], "delivered": dict.fromkeys(("not_worse", "accuracy_0"), 1)}
    conditions = {"ours_calibrated": {**way, "credit": [ours * 10, evolved * 10]}}
    where = {"fifth": fifth, "prompt": [*range(100)], "seed": seed}
    return [
        {**where, "setting": "x/y/15", "labels": 15, "conditions": conditions},
        {**where, "setting": "x/y/all", "labels": 80, "credit": {"ours": "1111111110", "standard": standard * 10}},
    ]


def test_a_condition_is_held_against_all_labels_of_both_readings():
    first, whole = share_runs("1111100000", "1111111000", "1111110000")
    whole["credit"]["ours"] *= 10
    found = study.compared(study.by_setting([first, whole])["x/y"], "15", "ours_calibrated")
    assert (found.gain.mean, found.over_standard_all.mean) == pytest.approx((0.1, -0.1))
    # 0.1 of the 0.4 to all labels with the same reading.
    assert found.share.mean == pytest.approx(0.25) and found.seed_over_standard_all.mean == pytest.approx(-0.2)


def test_what_log_loss_delivers_is_held_against_what_accuracy_delivers():
    """Two random seeds on the same ten pairs, whose rounds have 5, 6 and 8 right."""
    rounds = ["1111100000", "1111110000", "1111111100"]

    def run(seed, by_accuracy, by_loss):
        way = {"credit": rounds, "delivered": {"accuracy_0": by_accuracy, "loss_0": by_loss}}
        where = {"setting": "x/y/15", "seed": seed, "fifth": 0, "prompt": [*range(10)]}
        return {**where, "conditions": {"ours_calibrated": way, "ours_paper": {**way, "delivered": first}}}

    first = {"accuracy_0": 0, "loss_0": 0}
    runs = [run(1, 1, 2), run(2, 2, 2)]
    found = study.by_setting(runs)
    alone, every = ([*map(str.strip, line.strip("| ").split("|"))] for line in loss_table(found).splitlines()[2:])
    # Accuracy delivers 0.6 and 0.8, log loss 0.8 twice, and the seed model has 0.5.
    assert alone[:8] == ["x", "y", "15 %", "`auto`, `CalibratedRule`", "2", "50%", "+0.2000", "+0.3000"]
    assert alone[8].startswith("0.100 [0.000, ")
    # The other rule delivers the seed model under both criteria: half of it.
    assert every[3:8] == ["`auto` and two views, every rule", "2", "25%", "+0.1000", "+0.1500"]
    assert every[8].startswith("0.050 [0.000, ")
    del runs[0]["conditions"]["ours_paper"]  # the first run has fewer conditions
    assert [line.split("|")[5].strip() for line in loss_table(found).splitlines()[2:]] == ["2", "1"]
