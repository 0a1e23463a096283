"""Every row of the tables in `docs/datasets.md` is read with the flags beside it, and does what its last cell says."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ser_lightning.data.columns import check_mapping
from ser_lightning.data.formats import DROPS, parse_row
from ser_lightning.data.labels import check_labels
from ser_lightning.data.scoring_rows import RowCounts, open_source, read_rows
from ser_lightning.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


def tables() -> dict[str, list[list[str]]]:
    """Heading -> rows of the table below it, cells as text."""
    found: dict[str, list[list[str]]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        found[section.splitlines()[0]] = [re.split(r" \| ", line.strip("| ")) for line in lines[1:]]
    return found


READ = [row for heading, rows in tables().items() if not heading.startswith("Not read") for row in rows]
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
