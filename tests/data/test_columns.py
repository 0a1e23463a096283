"""Mapped columns: by name, inside other columns, and those that are read only where they are mapped."""

import pytest

from ser_lightning.data.columns import absent_columns, check_mapping, unread_columns, with_paths
from ser_lightning.data.formats import parse_candidates, parse_prompt, parse_row
from ser_lightning.errors import UserError

ROW = {"info": {"post": "Tea?"}, "texts": [{"text": "Yes."}, {"text": "No."}], "id": 3}
PATHS = {"prompt": "info.post", "chosen": "texts.0.text", "rejected": "texts.1.text"}


def test_a_column_inside_another_one_is_found():
    pair = parse_row(ROW, PATHS, "here")
    assert (pair.prompt[0]["content"], {pair.response_a, pair.response_b}) == ("Tea?", {"Yes.", "No."})
    assert parse_prompt(ROW, PATHS, "here")[0]["content"] == "Tea?"
    assert parse_candidates(ROW, PATHS, "here")[1:] == (["Yes."], ["No."])
    assert ROW.keys() == {"info", "texts", "id"}  # the row itself stays


def test_a_column_with_a_dot_in_its_name_comes_before_one_inside_another():
    assert with_paths({"info.post": "flat", "info": {"post": "deep"}}, PATHS)["info.post"] == "flat"


@pytest.mark.parametrize("path", ["info.title", "texts.2.text", "texts.first.text", "texts.-1.text", "id.x", "gone.x"])
def test_a_path_that_leads_nowhere_is_no_column(path):
    row = with_paths(ROW, {"prompt": path})
    assert row is ROW
    assert absent_columns({"prompt": path}, row) == [f"columns: got {{prompt: {path}}}; the file has info, texts, id"]


def test_what_is_inside_may_be_null():
    assert with_paths({"info": {"post": None}}, PATHS)["info.post"] is None


def test_mappings_are_checked():
    assert check_mapping({**PATHS, "system": "s", "annotator": "w", "score_a": "x", "score_b": "y"}) == []
    assert check_mapping({"score_b": "x"}) == ["columns: got score_b alone; name the columns of score_a and score_b"]
    [problem] = check_mapping({"promt": "x"})
    assert problem.startswith("columns: got the unknown name 'promt'; use prompt, chosen,") and "annotator" in problem


def test_a_column_that_is_read_in_part_counts_as_read():
    row = {**ROW, "winner": "a"}
    sides = {"response_a": "texts.0.text", "response_b": "texts.1.text", "prompt": "info.post"}
    assert unread_columns(row, sides) == "; no column label; columns not read: winner"
    assert unread_columns(row, PATHS) == ""  # chosen and rejected say who is better
    assert unread_columns({**row, "said": {"best": 1}}, {**sides, "label": "said.best"}) == ""


def test_a_list_of_answers_says_how_to_name_two_of_them():
    row = {
        "prompt": "Tea?",
        "answers": [{"model": "m", "answer": "It is made of leaves."}, {"model": "n", "answer": "x"}],
    }
    with pytest.raises(
        UserError, match="answers is a list of 2: for all its pairs, columns: {responses: answers..*.answer}, where"
    ) as found:
        parse_row(row, {}, "here")
    assert found.value.problems[0].endswith("{response_a: answers.0.answer, response_b: answers.1.answer}")
    for name, worth in (("rank", "ranks"), ("score", "scores"), ("Rating", "scores")):
        given = {**row, "answers": [{**answer, name: 1} for answer in row["answers"]]}
        with pytest.raises(
            UserError, match=rf"{{responses: answers\.\*\.answer, {worth}: answers\.\*\.{name}}}, where"
        ):
            parse_row(given, {}, "here")
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(UserError, match="rejected: ...}$"):
        parse_row({"messages": turns}, {}, "here")


PAIR = {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "system": "Be brief."}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_a_system_column_is_read_where_it_is_mapped():
    assert [turn["role"] for turn in parse_row(PAIR, {}, "here").prompt] == ["user"]
    mapped = {"system": "system"}
    assert parse_row(PAIR, mapped, "here").prompt == [SYSTEM, {"role": "user", "content": "Tea?"}]
    assert parse_prompt(PAIR, mapped, "here")[0] == parse_candidates(PAIR, mapped, "here")[0][0] == SYSTEM
    for nothing in (None, "", " \n"):
        assert len(parse_row({**PAIR, "system": nothing}, mapped, "here").prompt) == 1
    whole = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    other = [*whole[:1], {"role": "assistant", "content": "No."}]
    assert parse_row({"chosen": whole, "rejected": other, "system": "Be brief."}, mapped, "x").prompt[0] == SYSTEM
    assert parse_row({**PAIR, "prompt": ""}, mapped, "here") == "empty"
    with pytest.raises(UserError, match="here: got system beside a prompt that begins with a turn of the system"):
        parse_row({**PAIR, "prompt": [SYSTEM, *whole[:1]]}, mapped, "here")
