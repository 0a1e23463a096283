"""Every row of the tables in `docs/datasets.md` is read with the flags beside it, and does what its last cell says."""

import json
import random
import re
from pathlib import Path

import pytest
import yaml

from ser_lightning.data.columns import check_mapping
from ser_lightning.data.formats import DROPS, parse_row, parse_rows
from ser_lightning.data.labels import check_labels
from ser_lightning.errors import UserError
from ser_lightning.inference.scoring_rows import RowCounts, column_problems, open_source, read_rows
from ser_lightning.records import PreferencePair

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


def tables() -> dict[str, list[list[str]]]:
    """Heading -> rows of the table below it, cells as text."""
    found: dict[str, list[list[str]]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        found[section.splitlines()[0]] = [re.split(r" \| ", line.strip("| ")) for line in lines[1:]]
    return found


LISTS = [row for heading, rows in tables().items() if heading == "Ranked lists" for row in rows]
OTHERS = ("Not read", "Ranked lists")
READ = [row for heading, rows in tables().items() if not heading.startswith(OTHERS) for row in rows]
REFUSED = [row for heading, rows in tables().items() if heading.startswith("Not read") for row in rows]


def flags_of(cell: str) -> dict[str, dict]:
    """The mappings of a cell such as "`columns: {a: b}`, `labels: {0: a}`"."""
    return (
        {}
        if cell == "none"
        else {k: v for code in re.findall(r"`([^`]+)`", cell) for k, v in yaml.safe_load(code).items()}
    )


def row_of(cell: str) -> dict:
    return json.loads(cell.strip("`"))


def test_the_tables_hold_what_is_asked_for_most():
    assert len(READ) >= 20 and len(REFUSED) >= 5
    names = " ".join(row[0] for row in READ + REFUSED)
    for name in ("HH", "UltraFeedback", "HelpSteer2", "summarize_from_feedback", "PKU-SafeRLHF", "Skywork", "Nectar",
                 "RewardBench", "Chatbot Arena", "SHP", "WebGPT"):  # fmt: skip
        assert name in names


@pytest.mark.parametrize(("name", "row", "flags", "outcome"), READ, ids=[row[0] for row in READ])
def test_a_row_is_read_as_the_page_says(name, row, flags, outcome, tmp_path):
    given = flags_of(flags)
    columns, labels = given.pop("columns", {}), given.pop("labels", None)
    assert not given and not check_mapping(columns) and not check_labels(labels or {})
    pair = parse_row(row_of(row), columns, "here", labels)
    what, _, votes = outcome.partition(", ")
    if what.startswith("dropped: "):
        assert DROPS[pair] == what.removeprefix("dropped: ")
        return
    assert len(pair.votes) == {"": 0, "one vote": 1}.get(votes) if votes in ("", "one vote") else int(votes.split()[0])
    assert [turn["role"] for turn in pair.prompt][-1] == "user" and "tea" in pair.prompt[-1]["content"]
    assert ("system" in columns) == (pair.prompt[0]["role"] == "system")
    if what == "a tie":
        assert pair.label == 0.5
    else:
        [better] = re.fullmatch(r"`(.*)` is better", what).groups()
        assert (pair.response_a if pair.label == 1 else pair.response_b).strip() == better
    # `score` and `compare` read the same, on the sides of the file.
    (tmp_path / "rows.jsonl").write_text(json.dumps(row_of(row)))
    [scored] = read_rows(open_source(str(tmp_path / "rows.jsonl")), columns, RowCounts(), labels=labels)
    same_side = scored.pair.response_a == pair.response_a
    assert scored.pair.label == (pair.label if same_side else 1 - pair.label)
    assert {scored.pair.response_a, scored.pair.response_b} == {pair.response_a, pair.response_b}


def outcome_of(pair) -> str:
    """A pair as the table of lists writes it; nothing of its order is left where nobody won."""
    if not isinstance(pair, PreferencePair):
        return f"dropped: {DROPS[pair]}"
    texts = [f"`{text}`" for text in (pair.response_a, pair.response_b)]
    if pair.label is None or pair.label == 0.5:
        return (" ties " if pair.label else " and ").join(sorted(texts)) + ("" if pair.label else " without a label")
    return " over ".join(texts if pair.label == 1 else texts[::-1])


def written(cell: str) -> list[str]:
    """The outcomes of a cell, those without a winner in the order of their texts."""
    found = []
    for part in cell.split(", "):
        a, how, b, more = re.fullmatch(r"(`[^`]+`) (over|ties|and) (`[^`]+`)(.*)|.*", part).groups()
        found.append(part if how in (None, "over") else f"{min(a, b)} {how} {max(a, b)}{more}")
    return sorted(found)


@pytest.mark.parametrize(("name", "row", "flags", "outcome"), LISTS, ids=[row[0] for row in LISTS])
def test_a_list_is_read_as_the_pairs_of_the_page(name, row, flags, outcome):
    columns = flags_of(flags)["columns"]
    assert not check_mapping(columns)
    pairs = list(parse_rows(row_of(row), columns, "here"))
    assert sorted(map(outcome_of, pairs)) == written(outcome)
    texts = [pair for pair in pairs if isinstance(pair, PreferencePair)]
    assert all("tea" in pair.prompt[-1]["content"] for pair in texts)
    assert len({json.dumps(pair.prompt) for pair in texts}) <= 1
    assert "which data.columns of fit alone takes" in column_problems(columns)[0]


@pytest.mark.parametrize(("name", "row", "message", "advice"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_row_that_is_not_read_gets_the_message_of_the_page(name, row, message, advice):
    with pytest.raises(UserError) as error:
        parse_row(row_of(row), {}, "here")
    assert message.strip("`") in error.value.problems[0]
    if flags := flags_of(advice if advice.startswith("`labels") else "none"):
        assert parse_row(row_of(row), {}, "here", flags["labels"]).label is not None


def test_labels_that_are_spread_over_columns_are_named_where_labels_are_missing(load, write_jsonl, make_rows):
    rows = make_rows(30)
    for row in rows:
        row["winner_model_a"] = row.pop("label")
    with pytest.raises(UserError, match="need at least 8; .*no column label; columns not read: winner_model_a"):
        load(write_jsonl("arena.jsonl", rows), stage="fit")


def test_a_file_of_nested_columns_goes_through_a_data_module_and_a_path_that_no_row_has_stops_it(load, write_jsonl):
    rows = [
        {"info": {"post": f"Story {i}"}, "summaries": [{"text": f"Tea {i}."}, {"text": f"No {i}."}], "choice": i % 2}
        for i in range(40)
    ]
    columns = {"prompt": "info.post", "response_a": "summaries.0.text", "response_b": "summaries.1.text"}
    given = {"columns": {**columns, "label": "choice"}, "labels": {0: "a", 1: "b"}, "seed_fraction": 0.5}
    data = load(write_jsonl("comparisons.jsonl", rows), **given)
    assert sum(data.report.splits[split][2] for split in ("seed", "pool", "test")) == 40
    with pytest.raises(UserError, match=r"columns: got {prompt: info.title}; the file has info, summaries, choice"):
        load(
            write_jsonl("comparisons.jsonl", rows), **{**given, "columns": {**given["columns"], "prompt": "info.title"}}
        )


LISTED = {"prompt": "q", "responses": "answers.*.text", "ranks": "answers.*.place"}


def ranked_rows(number, length=4):
    """Lists whose pairs are known: of two, the one with the lower number in its text is better; the last two tie."""
    return [
        {
            "q": f"Is number {i} a fruit?",
            "answers": [
                {"text": f"{i}-{k}", "place": min(k, length - 2)}
                for k in random.Random(i).sample(range(length), length)
            ],
        }
        for i in range(number)
    ]


def test_all_pairs_of_a_list_come_into_one_split_with_their_labels_and_ties(load, write_jsonl):
    file = write_jsonl("lists.jsonl", ranked_rows(40))
    data = load(file, columns=LISTED, seed_fraction=0.5)
    assert {name: counts["rows"] for name, counts in data.report.read.items()}["path"] == 40 * 6
    split_of = {}
    for split in ("seed", "pool", "test"):
        for pair in data.data.store.read_texts(data.data.rows(split)):
            split_of.setdefault(pair.prompt[-1]["content"], set()).add(split)
    assert len(split_of) == 40 and all(len(splits) == 1 for splits in split_of.values())
    assert {split for splits in split_of.values() for split in splits} == {"seed", "pool", "test"}
    rows = data.data.rows("seed")
    pairs, labels = data.data.store.read_texts(rows), data.data.seed_labels(rows)
    assert len(pairs) == 5 * len({json.dumps(pair.prompt) for pair in pairs})  # the sixth is the tie
    for pair, label in zip(pairs, labels.tolist(), strict=True):
        assert label == (pair.response_a < pair.response_b)
    assert len(data.data.ties()) == len(pairs) // 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": "Yes."}, "got a str in answers; give a list, one entry for each response"),
        ({"answers": ["a", "b"], "s": [1]}, "got 1 scores in s for 2 responses in answers; give one each"),
        ({"answers": ["a", "b"]}, "got no column s; give a list"),
        ({"answers": ["a", "b"], "s": [1, "good"]}, "got 'good' in s 2; give a number"),
        ({"answers": ["a", "b"], "s": [1, None]}, "got no s 2 beside the other score; give both, or neither"),
        ({"answers": ["a"] * 201, "s": [1] * 201}, "got 201 entries in answers; at most 200 are read"),
    ],
)
def test_lists_that_do_not_fit_are_refused(row, message):
    with pytest.raises(UserError, match=f"here: {message}"):
        list(parse_rows({"prompt": "Tea?", **row}, {"responses": "answers", "scores": "s"}, "here"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ranks": "r"}, "got ranks without responses; name the column that lists the responses"),
        ({"responses": "r", "chosen": "c"}, "got responses beside chosen; map a list of responses or two of them"),
        ({"responses": "r", "scores": "s", "ranks": "t"}, "got scores and ranks; map one of them"),
    ],
)
def test_mappings_of_lists_are_checked(columns, message):
    assert check_mapping(columns) == [f"columns: {message}"]
