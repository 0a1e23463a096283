"""The page of a run: figures, escaping, gaps, one file, several runs."""

import copy
import hashlib
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.report import figures as report_figures
from ser_lightning.report.data import Round, Run, flow_of, read_run
from ser_lightning.report.figures import draw_accuracy, draw_reliability, flow_counts
from ser_lightning.report.page import pictures_of, write_report
from ser_lightning.report.tables import asked_for, cost_table, reading_table
from ser_lightning.runs.files import write_rounds
from tests.helpers import read_csv
from tests.report_pages import Page, page_of
from tests.report_runs import CONFIG, card, notes, row, write_run

NAN = float("nan")


@pytest.fixture
def run():
    return write_run(
        "run", [row(0), row(1, True, kept=3, flipped=1, test_accuracy=0.8)], notes(), [[1, 1, 0, 0], [1, 0, 1, 1]]
    )


def test_the_page_holds_what_rounds_csv_holds(run):
    header, *lines = page_of(run).tables["Rounds"]
    for line, recorded in zip(lines, read_csv(run / "rounds.csv"), strict=True):
        cells = dict(zip(header, line, strict=True))
        for name, column in {"round": "round", "pool pairs": "scored", "kept": "kept", "flipped": "flipped"}.items():
            assert cells[name] == recorded[column]
        for name, column in {
            "kept labels correct": "pseudo_label",
            "pool labels correct": "pool",
            "seed, out of fold": "seed_oof",
            "test": "test",
        }.items():
            assert cells[name].split()[0] == f"{float(recorded[f'{column}_accuracy']):.3f}"
        assert (cells["calibration error"], cells["length correlation"]) == ("0.051", "-0.123")


def test_forecasts_stand_beside_what_came():
    ahead = {"predicted_gain": 0.0123, "predicted_last_round": 2.0}
    past = {"forecast_accuracy": 0.6, "forecast_low": 0.5, "forecast_high": 0.7, "forecast_error": -0.05}
    page = page_of(write_run("seen", [row(0, **ahead), row(1, True, net_label_change=-0.02, **past, **ahead)], notes()))
    header, first, second = page.tables["Forecasts"]
    assert header == [
        "round",
        "forecast",
        "out of fold",
        "error",
        "net label change",
        "predicted gain",
        "predicted last round",
    ]
    assert first == ["0", "–", "0.550", "–", "–", "+0.0123", "2"]
    cells = [" ".join(cell.split()) for cell in second]
    assert cells == ["1", "0.600 0.500–0.700", "0.550", "-0.050", "-0.020", "+0.0123", "2"]


def test_a_run_from_before_there_were_forecasts_has_a_page(run):
    lines = [line.split(",")[:14] for line in (run / "rounds.csv").read_text().splitlines()]
    (run / "rounds.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    (run / "checksums.json").unlink()  # they wrote none
    page = page_of(run)
    assert "Forecasts" not in page.tables and len(page.tables["Rounds"]) == 3


def test_intervals_are_wilson_intervals_of_the_noted_number_of_labels(run):
    header, _, last = page_of(run).tables["Rounds"]
    # By hand, n = 100, p = 0.8, z = 1.96: centre (0.8 + 0.019208) / 1.038416, half width 0.0783.
    assert last[header.index("test")].split() == ["0.800", "0.711–0.867"]


def test_the_outcome_stands_at_the_top_and_the_table_has_the_difference_from_the_seed_model(run):
    page = page_of(run)
    top = page.text[: page.text.index("tiny-model")]
    assert "paired difference +0.100, 95 % interval -0.020 to +0.200, which includes 0." in top
    assert "It beats both baselines. Baselines: take the longer response 0.440" in top
    header, _, last = page.tables["Rounds"]
    assert last[header.index("test, less seed model")].split() == ["+0.100", "-0.020", "to", "+0.200"]


def test_a_learning_status_has_a_column_where_the_rule_tells_statuses_apart(run):
    assert "learning status" not in page_of(run).text
    page = page_of(write_run("paper", [row(0), row(1, True, status=2)], notes()))
    header, _, last = page.tables["Rounds"]
    assert last[header.index("learning status")] == "2" and "2 where it sees a clear difference" in page.text


@pytest.mark.usefixtures("real_pictures")
def test_an_unjudged_round_is_said_to_be_unjudged():
    text = page_of(write_run("run", [row(0, True, seed_oof_accuracy=float("nan"))], notes())).text
    assert "the delivered round is bold, the last round, unjudged: there were no folds." in text
    other = page_of(write_run("other", [row(0, True)], notes())).text
    assert "the delivered round is bold, chosen out of fold on the seed." in other


def test_accuracies_out_of_fold_of_a_seed_that_has_grown_are_said_to_be_of_other_pairs(run):
    assert "The seed has grown" not in page_of(run).text
    noted = notes(labels={"seed_oof_accuracy": 31, "test_accuracy": 100})
    (run / "rounds/1/report.json").write_text(json.dumps(noted))
    assert "The seed has grown (20, 31 pairs by round)" in page_of(run).text


def test_how_many_prompts_are_behind_each_split_is_said(run):
    assert "20 seed of 13 prompts, 4 pool of 4 prompts, 100 test of 90 prompts" in page_of(run).text


def test_contents_lead_to_every_part(run):
    page = page_of(run)
    ids = {attributes["id"] for tag, attributes in page.tags if tag == "h2"}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == len(page.headings) == len(ids) > 6 and {f"#{name}" for name in ids} == set(links)


def test_accuracy_by_length_and_of_evaluation_sets(run):
    page = page_of(run)
    assert page.tables["Test pairs by length"][1] == ["much shorter", "25", "0.700  0.500–0.850"]
    assert "Evaluation sets" not in page.tables
    group = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "pairs": 8}
    found = {"pairs": 16, "accuracy": 0.75, "accuracy_low": 0.5, "accuracy_high": 0.9, "length_correlation": NAN}
    (run / "evaluation-test.json").write_text(json.dumps({"hard": {**found, "by_category": {"law": group}}}))
    lines = page_of(run).tables["Evaluation sets"][1:]
    assert lines == [["hard", "16", "0.750  0.500–0.900"], ["law", "8", "0.500  0.250–0.750"]]


@pytest.mark.usefixtures("real_pictures")
def test_the_training_loss_is_drawn_with_the_ends_of_rounds(run):
    assert "Training loss" not in page_of(run).text
    lines = ["step,train/loss,select/round", "9,0.75,", "19,0.5,", "24,,0", "29,0.25,", "34,,1"]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    found = read_run(run)
    assert found.losses.tolist() == [[9, 0.75], [19, 0.5], [29, 0.25]] and found.round_ends == [24, 34]
    pictures = {picture.title: picture.alt for picture in pictures_of(found)}
    assert pictures["Training loss"] == "Training loss over 3 logged steps, from 0.750 to 0.250."


@pytest.mark.usefixtures("real_pictures")
def test_rounds_stand_at_whole_numbers(monkeypatch):
    made, plain = [], report_figures.Figure
    monkeypatch.setattr(
        report_figures, "Figure", lambda *args, **kwargs: made.append(plain(*args, **kwargs)) or made[-1]
    )
    one = read_run(write_run("one", [row(0, True)], notes()))
    many = read_run(write_run("many", [row(n, n == 0) for n in range(30)], notes()))
    for run in (one, many):
        report_figures.draw_accuracy(run)
    ticks = [figure.axes[0].get_xticks().tolist() for figure in made]
    assert ticks == [[0], [*range(0, 30, 3)]]


def test_the_flow_from_round_to_round(run):
    header, first, second = page_of(run).tables["From round to round"]
    assert dict(zip(header, first, strict=True)) == {
        **{"round": "0", "kept": "2", "kept again": "0", "newly kept": "2", "no longer kept": "0", "flipped": "0"},
        **{"left out": "2"},
    }
    assert dict(zip(header, second, strict=True)) == {
        **{"round": "1", "kept": "3", "kept again": "1", "newly kept": "2", "no longer kept": "1", "flipped": "1"},
        **{"left out": "1"},
    }
    found = read_run(run)
    counts = {name: list(pairs) for name, _, pairs in flow_counts(found, found.rounds)}
    assert counts == {
        **{"kept": [2, 2], "kept, label flipped": [0, 1], "left out, label flipped": [0, 0], "left out": [2, 1]}
    }


def test_pairs_that_have_arrived_since_have_no_past():
    now = {
        "pair_id": np.array([1, 2]),
        "label": np.array([1, 0]),
        "kept": np.array([True, True]),
    }
    before = {"pair_id": np.array([2, 3]), "label": np.array([1, 1]), "kept": np.array([True, True])}
    flow = flow_of(now, before)
    assert flow.flipped.tolist() == flow.kept_before.tolist() == [False, True]


def test_cost_adds_up(run):
    lines = page_of(run).tables["Cost by round"]
    assert lines[1:] == [
        ["0", "12 345", "2.5", "4 938"],
        ["1", "12 345", "2.5", "4 938"],
        ["all", "24 690", "5.0", "4 938"],
    ]


def test_cost_is_split_by_what_it_went_for():
    cost = {
        "train_folds": {"tokens": 8000, "seconds": 1.5},
        "train_main": {"tokens": 4000, "seconds": 0.75},
        "score_pool": {"tokens": 345, "seconds": 0.25},
        "other": {"tokens": 0, "seconds": 0.5},
    }
    write_run("run", [row(0, True), row(1)], cost=cost)
    Path("run/rounds/1/cost.json").unlink()  # as of a run that an earlier version began
    run = read_run(Path("run"))
    table = cost_table(run)
    assert table.headers == [
        *("round", "folds, training", "main, training", "labelling", "other"),
        *("tokens", "seconds", "tokens a second"),
    ]
    assert table.rows == [
        ["0", "8 000\n1.5 s", "4 000\n0.8 s", "345\n0.2 s", "0\n0.5 s", "12 345", "3.0", "4 115"],
        ["1", "–", "–", "–", "–", "12 345", "2.5", "4 938"],
        ["all", "8 000\n1.5 s", "4 000\n0.8 s", "345\n0.2 s", "0\n0.5 s", "24 690", "5.5", "4 489"],
    ]


def test_what_was_asked_is_in_short(run):
    text = page_of(run).text
    for asked in (
        "pairs.jsonl",
        "0.15",
        "tiny-model",
        "train lora",
        "seed_everything 7",
        "TopShareRule, share 0.25",
        "20 seed",
    ):
        assert asked in text


def test_what_has_no_part_in_a_head_that_is_solved_is_not_said():
    flat = {"model.backbone.train": "head", "model.optimizer.lr": 0.1, "model.reading": "auto", "evolution.folds": 5}
    flat |= {"evolution.rule.class_path": "ser_lightning.CalibratedRule", "evolution.seed_epochs": 9}
    said, solved = (dict(asked_for(flat, is_solved)) for is_solved in (False, True))
    assert said["training"] == "train head, reading auto, lr 0.1" and said["rounds"] == "seed_epochs 9, folds 5"
    assert solved["training"] == "train head, reading auto" and solved["rounds"] == "folds 5"


def test_the_choice_of_readings_stands_in_a_table_with_the_chosen_one_bold():
    row = {"penalty": 1.0, "accuracy": 0.7, "log_loss": 0.6, "advantage": 0.0, "standard_error": 0.0}
    first = row | {"readings": "mean@6, judge@8", "is_chosen": False}
    second = row | {"readings": "last@12", "is_chosen": True, "advantage": 0.21, "standard_error": 0.05}
    run = Run("x", Path("x"), {}, "", [Round({"delivered": 1}, None, {"readings": [first, second]})])
    table = reading_table(run)
    assert table.rows == [
        ["mean@6, judge@8", "1", "0.700", "0.6000", "–"],
        ["last@12", "1", "0.700", "0.6000", "+0.2100 ± 0.0500"],
    ]
    assert table.strong == {1}


@pytest.mark.usefixtures("real_pictures")
def test_what_a_response_holds_shows_as_text():
    evil = '<script>alert("1")</script> <img src=x onerror=alert(2)> </div> {{ 7 * 7 }} &amp; $x$'
    cards = {"most": [card(prompt=evil, response_a=evil)], "least": [], "flipped": []}
    config = copy.deepcopy(CONFIG)
    config["data"]["init_args"]["path"] = "</pre><script>alert(3)</script>"
    run = write_run("run<b>$x$", [row(0, True)], notes(cards=cards, versions={"<i>": evil}), config=config)
    page = page_of(run)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "i", "b", "iframe", "object"}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert page.text.count(evil) == 3
    several = page_of(run, write_run("other", [row(0, True)]))
    assert "script" not in {tag for tag, _ in several.tags}
    assert "</pre><script>alert(3)</script>" in several.text


@pytest.mark.usefixtures("real_pictures")
def test_it_is_one_file_that_needs_no_network_and_no_script(run):
    for page in (page_of(run), page_of(run, write_run("other", [row(0, True)]))):
        links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
        assert links and all(link.startswith(("data:", "#")) for link in links)
        assert "script" not in {tag for tag, _ in page.tags}
        assert not re.search(r"@import|url\(", Path("page.html").read_text())
        pictures = [attributes for tag, attributes in page.tags if tag == "img"]
        assert pictures and all(len(picture["alt"]) > 20 for picture in pictures)


@pytest.mark.usefixtures("real_pictures")
def test_the_same_run_gives_the_same_bytes(run):
    page_of(run, to="one.html")
    page_of(run, to="two.html")
    assert Path("one.html").read_bytes() == Path("two.html").read_bytes()


@pytest.mark.usefixtures("real_pictures")
def test_changing_a_figure_changes_its_picture(run):
    before = read_run(run)
    other = write_run("other", [row(0), row(1, True, test_accuracy=0.79)], notes())
    assert draw_accuracy(read_run(other)) != draw_accuracy(before)
    surer = write_run("surer", [row(0, True)], notes(reliability=[{"pairs": 20, "confidence": 0.9, "right": 15}]))
    assert draw_reliability(read_run(surer).rounds[0]) != draw_reliability(before.rounds[0])


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.slow
def test_no_label_of_an_axis_is_cut_off(monkeypatch):
    made, plain = [], report_figures.Figure
    monkeypatch.setattr(
        report_figures, "Figure", lambda *args, **kwargs: made.append(plain(*args, **kwargs)) or made[-1]
    )
    labels = dict.fromkeys(notes()["labels"], 100)
    for number, share in enumerate(np.linspace(0.3, 0.99, 24)):
        rows = [row(0, test_accuracy=share), row(1, True, test_accuracy=share + 0.007)]
        runs = [read_run(write_run(f"{number}{name}", rows, notes(labels=labels))) for name in "ab"]
        report_figures.draw_comparison(runs, ["one", "two"], "test_accuracy", "test pairs")
    assert len(made) == 24
    for figure in made:
        for axes in figure.axes:
            box = axes.yaxis.label.get_window_extent()  # as Agg measures text, which is not quite how SVG does
            assert -3 < box.x0 < box.x1 < figure.bbox.width + 3


@pytest.mark.usefixtures("real_pictures")
def test_a_round_that_keeps_nothing_and_figures_that_are_not_defined():
    gaps = dict.fromkeys(["pseudo_label_accuracy", "pool_accuracy", "seed_oof_accuracy", "test_accuracy"], NAN)
    rows = [row(0, True, kept=0, status=0, calibration_error=NAN, length_correlation=NAN, **gaps)]
    none = dict.fromkeys(["pseudo_label_accuracy", "pool_accuracy", "seed_oof_accuracy", "test_accuracy"], 0)
    empty = {
        "labels": none,
        "test": {},
        "baselines": {},
        "reliability": [],
        "length": [],
        "cards": {k: [] for k in ("most", "least", "flipped")},
    }
    page = page_of(write_run("run", rows, notes(**empty), [[0, 0, 0, 0]]))
    assert page.tables["Rounds"][1] == ["0", "4", "0", "0", *["–"] * 7]
    assert "nan" not in page.text.replace("tenant", "")
    assert "only round 0, the seed model, has been trained" in page.text and "there are no test pairs" in page.text


@pytest.mark.usefixtures("real_pictures")
def test_a_run_without_notes_or_audits_still_has_a_page():
    run = write_run("run", [row(0), row(1, True)])
    for file in run.glob("rounds/*/audit.parquet"):
        file.unlink()
    (run / "config.yaml").unlink()
    page = page_of(run)
    assert page.tables["Rounds"][2][7] == "0.700"
    assert "Pairs to read" not in page.text and "Confidence" not in page.text


def test_hashes_are_of_the_files(run):
    text = page_of(run).text
    for name in ("config.yaml", "rounds.csv", "rounds/1/audit.parquet"):
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() in text
    assert "da7a" in text and "7e3917" in text and "torch 9.9.9" in text
    assert unescape((run / "config.yaml").read_text()) in text


def test_guards_stand_in_a_table_and_what_fired_on_top(run):
    quiet = {"guard": "flips", "value": None, "limit": 0.35, "fired": False, "level": "rollback"}
    quiet |= {"meaning": "it <contradicts> itself", "action": "wait"}
    loud = {**quiet, "value": 0.5, "fired": True}
    for number, found in enumerate((quiet, loud)):
        (run / f"rounds/{number}/guards.json").write_text(json.dumps([found]))
    page = page_of(run)
    assert page.tables["Guards"] == [
        ["guard", "round 0", "round 1"],
        ["flips", "–", "! rollback: 0.500  at most 0.350"],
    ]
    line = "Guard flips (rollback) fired in round 1: it <contradicts> itself. To do: wait."
    assert line in page.text and "<contradicts>" not in Path("page.html").read_text()


def test_a_guard_that_fired_in_several_rounds_is_said_once():
    found = {
        "guard": "shift",
        "value": 0.5,
        "limit": 0.35,
        "fired": True,
        "level": "warn",
        "meaning": "m",
        "action": "a",
    }
    run = write_run("run", [row(0), row(1), row(2, True)], notes())
    for number in range(3):
        (run / f"rounds/{number}/guards.json").write_text(json.dumps([found]))
    assert page_of(run).text.count("Guard shift (warn) fired in rounds 0, 1 and 2: m. To do: a.") == 1


def test_the_command_writes_where_it_says(run, capsys):
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out == "Report: run/report.html\n"
    assert main(["report", "run", "run", "--to", "deep/both.html"]) == 0
    assert Page("deep/both.html").tables["Side by side"]


def test_the_page_of_several_runs_does_not_replace_another(run, capsys):
    page = Path("report.html")
    page.write_text("mine")
    assert main(["report", "run", "run"]) == 2
    assert (
        "the page of several runs: got report.html, which exists; give another file, or --overwrite"
        in capsys.readouterr().err
    )
    assert page.read_text() == "mine"
    assert main(["report", "run", "run", "--overwrite"]) == 0
    assert Page("report.html").tables["Side by side"]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: (run / "rounds.csv").unlink(), "has no rounds.csv; give the folder of a fit"),
        (lambda run: write_rounds(run, []), "rounds.csv has no line; give the folder"),
        (lambda run: (run / "rounds.csv").write_text("round,kept\n"), "its checksum is not the one in checksums.json"),
        (lambda run: (run / "rounds" / "0" / "report.json").write_text("{"), "report.json (JSONDecodeError: Expecting"),
    ],
)
def test_a_folder_without_a_readable_round_is_the_users_to_mend(run, damage, line, capsys):
    damage(run)
    with pytest.raises(UserError, match=re.escape(line)):
        write_report([run], Path("page.html"))
    assert main(["report", "run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and line in said and said.count("\n") == 1
    assert not Path("page.html").exists()


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.browser
@pytest.mark.parametrize(("width", "kind"), [(1280, "wide"), (360, "narrow")])
def test_a_browser_shows_it(run, width, kind, tmp_path_factory):
    """`make test-browser`; the screenshots lie in the folder that it prints."""
    import shutil

    from playwright.sync_api import sync_playwright

    write_report([run], Path("page.html"))
    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_context(viewport={"width": width, "height": 800}, offline=True).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        page.goto(Path("page.html").absolute().as_uri())
        widths = page.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth, i.clientWidth])")
        assert len(widths) == 5 and all(drawn > 0 and 200 < shown <= width for drawn, shown in widths)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert all(image.is_visible() for image in page.locator("img").all())
        shot = tmp_path_factory.getbasetemp() / f"report-{kind}.png"
        page.screenshot(path=shot, full_page=True)
        browser.close()
    assert not said
    assert shot.stat().st_size > 10_000
    print(shot)
