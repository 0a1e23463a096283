"""The command `label`: what it asks for, and the files that it makes."""

import json
import logging
import re
import shlex
import signal
import sys
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ser_lightning.__main__ import main
from ser_lightning.cli.commands import COMMANDS
from ser_lightning.cli.query import query
from ser_lightning.data.formats import canonical, parse_row
from ser_lightning.evolution.query import MostUncertain
from ser_lightning.labelling.command import _OF_PAGE
from ser_lightning.labelling.label_file import HumanLabel, LabelFile, read_labels
from ser_lightning.labelling.pairs import PairFile
from tests.command_process import CommandProcess
from tests.helpers import problems_of, read_csv

NUM_PAIRS = 40


@pytest.fixture
def pairs() -> Path:
    """A file of unlabelled pairs, with one that has a label."""
    rows = [
        {"prompt": f"What is {n} plus {n}?", "response_a": f"It is {2 * n}.", "response_b": f"It is {2 * n + 1}."}
        for n in range(NUM_PAIRS)
    ]
    rows.append({"prompt": "Is tea a fruit?", "chosen": "No.", "rejected": "Yes.", "id": "tea"})
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path("pairs.jsonl")


@contextmanager
def server(*argv: str) -> Iterator[tuple[CommandProcess, str]]:
    """The command as a process, and the address that it prints."""
    process = CommandProcess("label", *argv)
    try:
        lines = iter(process.stdout.readline, "")
        yield process, next(line.split()[-1] for line in lines if line.startswith("Label page:"))
    finally:
        process.kill()
        process.communicate()


def call(url: str, path: str, body: dict | None = None) -> dict:
    """A request of the page."""
    base, _, token = url.partition("/?token=")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"x-label-token": token})
    with urllib.request.urlopen(request) as reply:
        return json.loads(reply.read())


@pytest.mark.slow  # three processes, one of them killed
def test_a_killed_server_goes_on_where_it_was_and_ends_with_the_next_command(pairs):
    asked = []
    for kill in (signal.SIGKILL, signal.SIGINT):
        with server(str(pairs)) as (process, url):
            state = call(url, "/state")
            assert (state["done"], state["total"]) == (len(asked), NUM_PAIRS)
            for _ in range(3):
                asked.append(state["pair"]["id"])
                state = call(url, "/answer", {"pair": asked[-1], "choice": "left", "seconds": 1.0})
            process.send_signal(kill)
            rest, errors = process.communicate()
            assert (process.returncode, errors) == ((0, "") if kill == signal.SIGINT else (-9, ""))
    assert f"6 of {NUM_PAIRS} pairs are done" in rest
    assert "python -m ser_lightning label pairs.jsonl --export labelled.jsonl" in rest
    assert len(set(asked)) == 6
    assert [str(label.pair_id) for label in read_labels(Path("pairs.labels"))["me"]] == asked


def test_the_next_command_names_what_this_one_named(pairs):
    rows = [json.loads(line) for line in pairs.read_text().splitlines()[:2]]
    renamed = [{"question": row.pop("prompt"), **row} for row in rows]
    Path("my pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    with server("my pairs.jsonl", "--columns={prompt: question}", "--to=there") as (_, url):
        command = call(url, "/state")["next_command"]
    label_all(Path("there"), PairFile("my pairs.jsonl", {"prompt": "question"}, None).unlabelled())
    assert main(shlex.split(command)[3:]) == 0
    rows = [json.loads(line) for line in Path("labelled.jsonl").read_text().splitlines()]
    assert [row["ser_label"] for row in rows].count(None) == 0 and len(rows) == 2


def pair_id_of(line: str) -> int:
    """The id of the pair in a line of a file."""
    return canonical(parse_row(json.loads(line), {}, "here")).pair_id


def label_all(folder: Path, pairs: list, annotator: str = "me", **special: str) -> None:
    """Right sums are better, but for pairs at the places `p3="tie"`."""
    with LabelFile(folder, annotator) as file:
        for place, pair in enumerate(pairs):
            number = int(pair.prompt[0]["content"].split()[2])
            right = "a" if pair.response_a == f"It is {2 * number}." else "b"
            file.add(HumanLabel(pair.pair_id, special.get(f"p{place}", right), "a", 1.0))


def test_what_is_exported_goes_into_fit(pairs, tiny_run, capsys):
    asked = PairFile(str(pairs), {}, None).unlabelled()
    assert len(asked) == NUM_PAIRS  # not the one about tea
    label_all(Path("pairs.labels"), asked[:30], p3="tie", p7="skip")
    assert main(["label", str(pairs), "--export", "labelled.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "30 labelled pairs, 1 of them ties: labelled.jsonl" in said  # and tea
    assert "11 pairs without a label" in said and "Left out" not in said
    rows = [json.loads(line) for line in Path("labelled.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows if row["prompt"][0]["content"] == "Is tea a fruit?"] == ["tea"]
    for row in rows:
        pair = parse_row(row, {}, "here")
        if pair.label in (0, 1) and "plus" in pair.prompt[0]["content"]:
            number = int(pair.prompt[0]["content"].split()[2])
            assert (pair.response_a if pair.label else pair.response_b) == f"It is {2 * number}."
    flags = [flag for flag in tiny_run if not flag.startswith("--data.path")]
    assert main(["fit", *flags, "--data.path=labelled.jsonl", "--run_dir=run"]) == 0
    assert int(read_csv("run/rounds.csv")[0]["scored"]) == 11  # the pool is what has no label


def test_no_label_and_no_row_of_a_changed_file_is_lost_silently(pairs, capsys):
    asked = PairFile(str(pairs), {}, None).unlabelled()
    label_all(Path("pairs.labels"), asked[:10], p9="skip")
    places = [int(pair.prompt[0]["content"].split()[2]) for pair in asked]
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for place in places[:4]:
        rows[place]["prompt"] += " "
    rows[places[4]]["response_a"] = ""
    rows[places[5]]["response_a"] = rows[places[5]]["response_b"]
    rows[places[6]]["label"], rows[places[7]]["label"] = 0, 1  # the right sum is response_a
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()

    assert main(["label", str(pairs), "--export=out.csv"]) == 2
    assert "--export: got out.csv, but the file holds JSON lines" in capsys.readouterr().err
    assert main(["label", str(pairs), "--export=out.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "4 labelled pairs" in said and "35 pairs without a label" in said  # the file's own three, and one
    smallest = min(pair.pair_id for pair in asked[:6])
    assert f"Left out: the labels of 6 pairs that are not in pairs.jsonl, such as {smallest}; they stay in" in said
    assert "Left out: the labels of 1 pairs that pairs.jsonl labels otherwise" in said
    assert "Left out: 1 rows, empty prompt or response" in said and "Left out: 1 rows, identical responses" in said
    assert len(Path("out.jsonl").read_text().splitlines()) + 2 == len(rows)

    assert main(["label", str(pairs), "--export=tool.json", "--form=argilla"]) == 0
    said = capsys.readouterr().out
    assert "Left out: the labels of 8 pairs that are not among the pairs of pairs.jsonl without a label" in said
    assert "Left out: 1 rows, identical responses" in said
    assert main(["label", str(pairs), "--to=other", "--import=tool.json"]) == 0
    assert "Left out: 1 rows, identical responses" in capsys.readouterr().out
    process = CommandProcess("label", str(pairs))
    lines = [process.stdout.readline() for _ in range(3)]
    process.kill()
    process.communicate()
    assert lines[:2] == ["Left out: 1 rows, empty prompt or response\n", "Left out: 1 rows, identical responses\n"]


def test_several_annotators_agree_and_are_merged(pairs, capsys):
    asked = PairFile(str(pairs), {}, None).unlabelled()
    label_all(Path("pairs.labels"), asked[:10], "ana")
    label_all(Path("pairs.labels"), asked[:10], "ben", p0="tie", p1="skip")
    assert main(["label", str(pairs), "--agreement"]) == 0
    line = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("ana, ben"))
    assert line[2:4] == ["9", "0.89"]
    assert main(["label", str(pairs), "--export=out.jsonl"]) == 0
    assert "Left out: 1 pairs on which the annotators are divided" in capsys.readouterr().out


def test_votes_that_a_file_has_are_exported_as_what_most_of_them_say(load, capsys):
    """`fit` reads the export as it reads the file; the export knows no annotators, whose rows would contradict."""
    votes = {1: "aab", 2: "ab", 3: "bbb", 4: "a"}
    rows = [
        {"prompt": f"Q{n}?", "response_a": "yes", "response_b": f"no {n}", "label": vote, "worker": f"w{place}"}
        for n, given in votes.items()
        for place, vote in enumerate(given)
    ]
    rows += [{**rows[0]}, {"prompt": "Another?", "response_a": "x", "response_b": "y"}]  # a vote twice, and none
    Path("votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = PairFile("votes.jsonl", {"annotator": "worker"}, None).unlabelled()
    with LabelFile(Path("votes.labels"), "me") as file:
        file.add(HumanLabel(asked[0].pair_id, "tie"))
    assert main(["label", "votes.jsonl", "--columns={annotator: worker}", "--export=out.jsonl"]) == 0
    assert "5 labelled pairs, 2 of them ties: out.jsonl" in capsys.readouterr().out
    found = []
    for file, columns in (("votes.jsonl", {"annotator": "worker"}), ("out.jsonl", None)):
        data = load(file, columns=columns, seed_fraction=1.0, test_fraction=0.0).data
        labels = data.store.read_labels().tolist()
        found.append({i: label for i, label in zip(data.store.pair_id.tolist(), labels, strict=True) if label >= 0})
    assert found[1] == {**found[0], asked[0].pair_id: 0.5} and len(found[0]) == 4


@pytest.mark.parametrize("form", ["argilla", "label_studio"])
def test_other_tools_take_pairs_and_give_labels_back_once(pairs, form, capsys):
    asked = PairFile(str(pairs), {}, None).unlabelled()
    label_all(Path("pairs.labels"), asked[:4], "ana")
    assert main(["label", str(pairs), "--export=tool.json", f"--form={form}"]) == 0
    assert len(json.loads(Path("tool.json").read_text())) == NUM_PAIRS
    said = capsys.readouterr().out
    assert ("<Choices name=" in said) == (form == "label_studio")
    for added in (4, 0):
        assert main(["label", str(pairs), "--to=other", "--import=tool.json"]) == 0
        assert f"{added} labels added, {4 - added} were there" in capsys.readouterr().out
    [given] = read_labels(Path("other")).values()
    assert [(one.pair_id, one.answer) for one in given] == [
        (one.pair_id, one.answer) for one in read_labels(Path("pairs.labels"))["ana"]
    ]


def test_of_a_run_what_query_chooses_is_asked_first(tiny_fit, tiny_run, capsys, monkeypatch):
    tiny_fit()
    chosen, opened = query(Path("run"), 3, MostUncertain()), []

    def answer_all(app, listener):
        [url] = opened
        address, _, token = url.partition("/?token=")
        assert address == "http://127.0.0.1:{1}".format(*listener.getsockname())
        page = TestClient(app, base_url=address, headers={"x-label-token": token})
        for pair in chosen:
            state = page.get("/state").json()
            assert state["pair"]["id"] == str(pair.pair_id) and state["total"] == 3
            page.post("/answer", json={"pair": state["pair"]["id"], "choice": "left"})
        state = page.get("/state").json()
        assert state["pair"] is None and state["evidence"][0].startswith("The run of 20")
        raise KeyboardInterrupt

    log = logging.getLogger("lightning.pytorch")  # which the command makes quiet
    monkeypatch.setattr(log, "setLevel", lambda level: None)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr("ser_lightning.labelling.server.serve", answer_all)
    assert main(["label", "--run=run", "--n=3", "--strategy=MostUncertain", "--open"]) == 0
    assert "3 of 3 pairs are done: " in capsys.readouterr().out
    assert main(["label", "--run=run", "--export=more.jsonl"]) == 0
    assert "--ckpt_path run/checkpoints/last.ckpt" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("more.jsonl").read_text().splitlines()]
    assert {int(row["id"]) for row in rows} == {pair.pair_id for pair in chosen}
    before = int(read_csv("run/rounds.csv")[-1]["scored"])
    last = ["--ckpt_path=run/checkpoints/last.ckpt", "--data.new_data_path=more.jsonl"]
    assert main(["fit", *tiny_run, *last, "--run_dir=on"]) == 0
    assert int(read_csv("on/rounds.csv")[-1]["scored"]) == before - 3


def test_what_counts_as_not_given_is_what_the_command_line_fills_in():
    flags = COMMANDS["label"].flags
    assert {name: flags[f"--{name}"].get("default", False) for name in _OF_PAGE} == _OF_PAGE


def test_what_cannot_work_is_one_line(pairs, capsys):
    file = str(pairs)
    assert problems_of(capsys, "label") == [
        "label: got neither of a file of pairs and --run; give one of them",
    ]
    assert problems_of(capsys, "label", file, "--run=run", "--n=0") == [
        "label: got both of a file of pairs and --run; give one of them",
        "--n: got 0; use at least 1",
    ]
    assert problems_of(capsys, "label", "--run=run", "--columns={prompt: question}") == [
        "label: got --columns or --labels with --run, whose config has them; leave them out",
    ]
    [line] = problems_of(capsys, "label", file, "--n=99")
    assert line == f"--n: got 99; need 1 to {NUM_PAIRS}, the pairs of pairs.jsonl without a label"
    [line] = problems_of(capsys, "label", file, "--annotator=../x")
    assert line.startswith("--annotator: got '../x'; use letters")
    [line] = problems_of(capsys, "label", file, "--agreement")
    assert line == "label: got no labels in pairs.labels; label some first, or name their folder with --to"
    [line] = problems_of(capsys, "label", file, "--export=o.jsonl", "--agreement")
    assert line == "label: got --agreement and --export; give one at a time"
    [line] = problems_of(capsys, "label", file, "--strategy=MostUncertain")
    assert line == "--strategy: got MostUncertain without --run, from whose pool it chooses; leave it out"
    [line] = problems_of(capsys, "label", file, "--form=argilla")
    assert line == "--form: got argilla without --export, whose file it is of; give both"
    for does in ("--agreement", "--export=o.jsonl", "--import=tool.json"):
        [line] = problems_of(capsys, "label", file, does, "--annotator=ana", "--n=3")
        told = "got it with --n and --annotator, which the page alone uses; leave one side out"
        assert line == f"{does.partition('=')[0]}: {told}"
    label_all(Path("pairs.labels"), PairFile(file, {}, None).unlabelled()[:1])
    [line] = problems_of(capsys, "label", file, f"--export={file}", "--overwrite")
    assert line == "--export: got pairs.jsonl, which this command reads; give another file"
    [line] = problems_of(capsys, "label", file, "--export=pairs.labels/out.jsonl")
    told = "but every .jsonl in pairs.labels is an annotator's; give a file outside of it"
    assert line == f"--export: got pairs.labels/out.jsonl, {told}"
    Path("labelled.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    [line] = problems_of(capsys, "label", "labelled.jsonl")
    assert line == "labelled.jsonl: got 1 pairs, none without a label; give a file of pairs to label"
    Path("single.jsonl").write_text('{"prompt": "p", "response": "c"}\n')
    [line] = problems_of(capsys, "label", "single.jsonl")
    assert line == "single.jsonl: got single responses; give pairs, with response_a and response_b"


def test_imported_labels_of_other_pairs_are_said(pairs, capsys):
    label_all(Path("pairs.labels"), PairFile(str(pairs), {}, None).unlabelled()[:4], "ana")
    assert main(["label", str(pairs), "--export=tool.json", "--form=argilla"]) == 0
    lines = pairs.read_text().splitlines(keepends=True)
    labelled = [label.pair_id for label in read_labels(Path("pairs.labels"))["ana"]]
    one = next(n for n in range(NUM_PAIRS) if pair_id_of(lines[n]) == labelled[0])
    for kept, known in ((lines[one : one + 1], 1), ([line for line in lines if pair_id_of(line) not in labelled], 0)):
        Path("others.jsonl").write_text("".join(kept))
        capsys.readouterr()
        assert main(["label", "others.jsonl", "--import=tool.json"]) == (0 if known else 2)
        said = capsys.readouterr()
        assert f"{4 - known} labelled rows are of other pairs, such as tool.json, row " in said.out
        told = "error: --import: got no label of these pairs in tool.json; is it the file of these pairs?\n"
        assert said.err == ("" if known else told)


def test_an_export_destroys_nothing_that_it_reads(pairs, pairs_file, tiny_fit, capsys):
    text = pairs.read_text()
    tiny_fit()
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(pairs_file), "pair*.jsonl"))
    label_all(Path("there"), PairFile(str(pairs), {}, None).unlabelled()[:1])
    for pairs_of in (["pai?s.jsonl"], ["--run=run"]):
        for form in ("training", "argilla", "label_studio"):
            more = ["--to=there", f"--form={form}", "--export=pairs.jsonl", "--overwrite"]
            [line] = problems_of(capsys, "label", *pairs_of, *more)
            assert line == "--export: got pairs.jsonl, which this command reads; give another file"
    assert pairs.read_text() == text


def test_without_the_extra_it_says_what_to_install(pairs, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ser_lightning.labelling.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    [line] = problems_of(capsys, "label", str(pairs))
    assert line == "label: got no package uvicorn, which the page needs; pip install 'ser-lightning[label]'"


@pytest.mark.browser
def test_a_browser_gives_thirty_labels_through_a_reload_and_a_kill(pairs):
    """`make test-browser`."""
    import shutil

    from playwright.sync_api import Page, expect, sync_playwright

    keys = {"1": "left", "2": "right", "0": "tie", "s": "skip"}
    given: list[tuple[str, str]] = []
    said: list[str] = []

    def press(page: Page, count: int) -> None:
        """Label by key, each time when another pair than the last one stands there."""
        for _ in range(count):
            key = "12012s"[len(given) % 6]
            prompt = page.inner_text("#prompt .text")
            texts = {side: page.inner_text(f"#{side}") for side in ("left", "right")}
            given.append((prompt, texts.get(keys[key], keys[key])))
            page.keyboard.press(key)
            expect(page.locator("#progress")).to_have_text(re.compile(f"^{len(given)} of "))

    def press_undo(page: Page) -> None:
        page.keyboard.press("u")
        given.pop()
        expect(page.locator("#progress")).to_have_text(re.compile(f"^{len(given)} of "))

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_context().new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        with server(str(pairs), "--n=30") as (process, url):
            page.goto(url)
            page.wait_for_selector("#prompt .text")
            press(page, 7)
            press_undo(page)
            press(page, 4)
            page.reload()
            page.wait_for_selector("#prompt .text")
            press(page, 5)
            process.kill()
            process.communicate()
            before = page.inner_text("#prompt .text")
            page.keyboard.press("1")
            page.wait_for_selector("#alarm:visible")
            assert "the server does not answer" in page.inner_text("#alarm")
            assert page.inner_text("#prompt .text") == before  # what was not saved is still asked
        with server(str(pairs), "--n=30") as (process, url):
            page.goto(url)
            page.wait_for_selector("#prompt .text")
            assert page.inner_text("#prompt .text") == before
            press(page, 15)
            page.wait_for_selector("#end:visible")
            assert "label pairs.jsonl --export labelled.jsonl" in page.inner_text("#next")
        browser.close()
    assert not said and len(given) == 30
    texts = {pair.pair_id: pair for pair in PairFile(str(pairs), {}, None).unlabelled()}
    labels = read_labels(Path("pairs.labels"))["me"]
    assert len({label.pair_id for label in labels}) == 30
    recorded = []
    for label in labels:
        pair = texts[label.pair_id]
        answer = {"a": pair.response_a, "b": pair.response_b}.get(label.answer, label.answer)
        recorded.append((pair.prompt[0]["content"], answer))
    assert recorded == given
