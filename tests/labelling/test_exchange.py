"""Files of Label Studio and Argilla, in the shapes that their own clients write (label-studio-sdk 2.1, argilla 2.8)."""

import json
import math
from pathlib import Path

import pytest

from ser_lightning.errors import UserError
from ser_lightning.labelling.exchange import argilla_records, dump, label_studio_tasks, prompt_text, read_foreign
from ser_lightning.labelling.label_file import HumanLabel, LabelFile, read_labels
from tests.labelling.people import pair

PAIRS = [pair(n) for n in range(3)]
KNOWN = {one.pair_id for one in PAIRS}
GIVEN = {
    "ana": [HumanLabel(PAIRS[0].pair_id, "a", "b", 3.0), HumanLabel(PAIRS[1].pair_id, "skip", "a", 1.0)],
    "ben": [HumanLabel(PAIRS[0].pair_id, "tie", "a", 2.0)],
}


def read(rows, annotators=(), columns=None, labels=None):
    Path("rows.json").write_text(rows if isinstance(rows, str) else dump(rows))
    return read_foreign(Path("rows.json"), KNOWN, annotators, columns or {}, labels)


def answers(found):
    return {name: [(label.pair_id, label.answer) for label in labels] for name, labels in found.labels.items()}


def test_tasks_have_the_fields_of_label_studio():
    first, second, third = label_studio_tasks(PAIRS, GIVEN)
    assert first["data"] == {
        "id": str(PAIRS[0].pair_id),
        "prompt": "What is 0 plus 0?",
        "response_a": PAIRS[0].response_a,
        "response_b": PAIRS[0].response_b,
    }
    value = {"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": ["a"]}}
    assert first["annotations"][0] == {"result": [value], "was_cancelled": False, "lead_time": 3.0}
    assert first["annotations"][1]["result"][0]["value"] == {"choices": ["tie"]}
    assert second["annotations"] == [{"result": [], "was_cancelled": True, "lead_time": 1.0}]
    assert third["annotations"] == []
    assert answers(read([first, second, third])) == {
        "label-studio": [(PAIRS[0].pair_id, "a"), (PAIRS[0].pair_id, "tie"), (PAIRS[1].pair_id, "skip")]
    }


def test_records_have_the_fields_of_argilla_and_come_back_by_name():
    rows = argilla_records(PAIRS, GIVEN)
    assert rows[0].keys() == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    assert rows[0]["fields"]["response_a"] == PAIRS[0].response_a
    assert [one["value"] for one in rows[0]["responses"]["preference"]] == ["a", "tie"]
    assert answers(read(rows, annotators=["ana", "ben"])) == {
        "ana": [(PAIRS[0].pair_id, "a")],
        "ben": [(PAIRS[0].pair_id, "tie")],
    }
    [ana, ben] = rows[0]["responses"]["preference"]
    assert answers(read(rows)) == {
        f"argilla-{ana['user_id'][:8]}": [(PAIRS[0].pair_id, "a")],
        f"argilla-{ben['user_id'][:8]}": [(PAIRS[0].pair_id, "tie")],
    }


def texts(one, turned):
    sides = [one.response_a, one.response_b]
    first, second = reversed(sides) if turned else sides
    return {"question": one.prompt[0]["content"], "answer1": first, "answer2": second}


COLUMNS = {"prompt": "question", "response_a": "answer1", "response_b": "answer2"}


def task(data, *annotations):
    """A task as the JSON export of Label Studio has it."""
    return {"id": 4, "data": data, "annotations": list(annotations), "predictions": [], "project": 1, "meta": {}}


def pairwise(selected, **more):
    region = {"id": "x", "from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": selected}}
    return {"id": 9, "completed_by": 3, "was_cancelled": False, "result": [region], "lead_time": 4.2, **more}


@pytest.mark.parametrize("turned", [False, True])
def test_a_project_of_ones_own_is_read_by_its_texts(turned):
    mails = {"id": 1, "email": "jo@x.org"}
    rows = [
        task(
            texts(PAIRS[0], turned),
            pairwise("left", created_at="2026-01-01T00:00:00Z"),
            pairwise("right", completed_by=mails),
        ),
        task(texts(PAIRS[1], turned), pairwise("left", was_cancelled=True)),
        task(texts(PAIRS[2], turned)),
    ]
    found = read(rows, columns=COLUMNS)
    left, right = ("b", "a") if turned else ("a", "b")
    assert answers(found) == {
        "label-studio-3": [(PAIRS[0].pair_id, left), (PAIRS[1].pair_id, "skip")],
        "label-studio-jo@x.org": [(PAIRS[0].pair_id, right)],
    }
    label = found.labels["label-studio-3"][0]
    assert (label.seconds, label.time, label.left) == (4.2, "2026-01-01T00:00:00Z", None)


def test_answers_by_another_name_are_said():
    region = {"from_name": "c", "to_name": "t", "type": "choices", "value": {"choices": ["First one"]}}
    row = task({**texts(PAIRS[0], False)}, {"result": [region]})
    with pytest.raises(UserError, match="row 1: got the answer 'First one'; say what it means: --labels"):
        read([row], columns=COLUMNS)
    found = read([row], columns=COLUMNS, labels={"first one": "a", "no idea": None})
    assert answers(found) == {"label-studio": [(PAIRS[0].pair_id, "a")]}


@pytest.mark.parametrize("lead_time", ["3.5", -1, math.nan, None, True, 2])
def test_only_a_time_goes_into_the_file_of_labels(lead_time):
    given = task({"id": str(PAIRS[0].pair_id)}, pairwise("left", lead_time=lead_time))
    [label] = read([given]).labels["label-studio-3"]
    assert label.seconds == (2 if lead_time == 2 else None)
    with LabelFile(Path(), "ana") as file:
        file.add(label)
    assert read_labels(Path())["ana"][0].pair_id == PAIRS[0].pair_id


def test_a_byte_order_mark_is_no_damage():
    assert answers(read("\ufeff" + dump(label_studio_tasks(PAIRS, GIVEN)))) == answers(
        read(label_studio_tasks(PAIRS, GIVEN))
    )


def test_labels_of_other_pairs_are_counted():
    found = read(
        [task(texts(pair(77), False), pairwise("left")), task(texts(PAIRS[0], False), pairwise("left"))],
        columns=COLUMNS,
    )
    assert found.unknown == {"rows.json, row 1"} and len(found.labels) == 1


def test_ten_causes_are_enough():
    rows = [task(texts(PAIRS[0], False), pairwise(f"answer {26 * chr(65 + i)}")) for i in range(26)]
    with pytest.raises(UserError) as error:
        read(rows, columns=COLUMNS)
    assert [line.split(":")[0] for line in error.value.problems] == [f"rows.json, row {i}" for i in range(1, 11)]


REFUSED = [
    ("{}", "holds no list of rows"),
    ("[]", "holds no list of rows"),
    ("nothing", "which is no JSON"),
    ('[{"prompt": "p", "preference": "a"}]', "row 1: got neither a task of Label Studio"),
    ('[{"data": {}, "annotations": [3]}]', "row 1: got a row that cannot be read"),
    (
        '[{"data": {}, "annotations": [{"result": [{"type": "rating", "value": {"rating": 3}}]}]}]',
        "got 0 answers in the results rating",
    ),
    (
        '[{"fields": {}, "responses": {"one": [], "two": []}}]',
        "got the questions one, two; call the one to read preference",
    ),
    ('[{"data": {}, "data": {}, "annotations": []}]', "rows.json with the key 'data' twice in an object; keep one"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_neither_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        read(text)
    with pytest.raises(UserError, match="which is no file"):
        read_foreign(Path("none.json"), KNOWN, [], {}, None)


def test_a_conversation_is_one_text():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "?"},
    ]
    assert prompt_text(turns) == "User: Hi\n\nAssistant: Hello\n\nUser: ?"
    assert json.loads(dump([{"a": "é"}])) == [{"a": "é"}]
