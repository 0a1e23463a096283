"""Files of Label Studio and Argilla: pairs and labels out, labels in.

    Label Studio   a list of tasks, each {"data": {...}, "annotations": [{"result": [...], "completed_by": ...}]}: what
                   its JSON export writes and its import takes; `LABEL_STUDIO_CONFIG` is the project's labelling config
    Argilla 2      a list of records, each {"id", "fields", "responses": {question: [{"value", "user_id"}]}, ...}: what
                   `dataset.records.to_json` writes and `from_json` reads

docs/label.md shows both on the other tool's side.
"""

import json
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ser_lightning.data.formats import parse_row
from ser_lightning.data.labels import OWN_LABEL, Labels
from ser_lightning.data.turns import RepeatedName, read_json
from ser_lightning.errors import Causes, UserError, raise_problems
from ser_lightning.labelling.label_file import Answer, HumanLabel, is_duration, latest
from ser_lightning.records import PreferencePair, Turn

QUESTION = "preference"
"""What the labels are called in both tools."""
LABEL_STUDIO_CONFIG = f"""<View>
  <Text name="prompt" value="$prompt"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em; margin: 1em 0">
    <Text name="response_a" value="$response_a"/>
    <Text name="response_b" value="$response_b"/>
  </View>
  <Choices name="{QUESTION}" toName="prompt" choice="single-radio" required="true" showInline="true">
    <Choice value="a" hotkey="1"/>
    <Choice value="b" hotkey="2"/>
    <Choice value="tie" hotkey="0"/>
  </Choices>
</View>
"""
_MEANINGS: Labels = {
    **{"a": "a", "response_a": "a", "left": "a", "1": "a"},
    **{"b": "b", "response_b": "b", "right": "b", "2": "b"},
    **{"tie": "tie", "0": "tie"},
}
"""What an answer in another tool means, by its name in small letters, unless `--labels` says otherwise."""


def label_studio_tasks(
    pairs: Iterable[PreferencePair], labels: Mapping[str, Sequence[HumanLabel]]
) -> list[dict[str, Any]]:
    """Pairs as tasks with an annotation for each label; without annotators' names, which Label Studio would refuse."""
    given = [latest(one) for one in labels.values()]
    return [
        {
            "data": {"id": str(pair.pair_id), **_texts(pair)},
            "annotations": [_annotation(one[pair.pair_id]) for one in given if pair.pair_id in one],
        }
        for pair in pairs
    ]


def _annotation(label: HumanLabel) -> dict[str, Any]:
    choice = {"from_name": QUESTION, "to_name": "prompt", "type": "choices", "value": {"choices": [label.answer]}}
    is_skip = label.answer == "skip"
    return {"result": [] if is_skip else [choice], "was_cancelled": is_skip, "lead_time": label.seconds}


def argilla_records(
    pairs: Iterable[PreferencePair], labels: Mapping[str, Sequence[HumanLabel]]
) -> list[dict[str, Any]]:
    """Pairs as records with a response for each label; skips are left out."""
    given = {name: latest(one) for name, one in labels.items()}
    return [
        {
            "id": str(pair.pair_id),
            "fields": _texts(pair),
            "metadata": {},
            "suggestions": {},
            "responses": {
                QUESTION: [
                    {"value": one[pair.pair_id].answer, "user_id": user_id(name)}
                    for name, one in given.items()
                    if pair.pair_id in one and one[pair.pair_id].answer != "skip"
                ]
            },
            "vectors": {},
        }
        for pair in pairs
    ]


def user_id(annotator: str) -> str:
    """The UUID that stands for an annotator in Argilla's files."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ser-lightning/annotator/{annotator}"))


def _texts(pair: PreferencePair) -> dict[str, str]:
    return {"prompt": prompt_text(pair.prompt), "response_a": pair.response_a, "response_b": pair.response_b}


def prompt_text(prompt: Sequence[Turn]) -> str:
    """A conversation as one text, for tools that show no turns; a single turn of the user as it is."""
    if [turn["role"] for turn in prompt] == ["user"]:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)


@dataclass
class Imported:
    """What a file of another tool holds."""

    labels: dict[str, list[HumanLabel]] = field(default_factory=dict)
    """By annotator, in the order of the file."""
    unknown: set[str] = field(default_factory=set)
    """Places of labelled rows whose pair is not among those asked for."""


def read_foreign(
    file: Path, known: Collection[int], annotators: Iterable[str], columns: Mapping[str, str], labels: Labels | None
) -> Imported:
    """The labels in a file of Label Studio (JSON, not JSON-MIN) or Argilla.

    Args:
        known: ids of the pairs that may be labelled.
        annotators: names that Argilla's user ids may stand for.
        columns: how the file calls prompt, response_a and response_b.
        labels: what its answers mean, where they are not called a, b, tie or left, right.

    Raises:
        UserError: it is neither, or up to ten causes at once.
    """
    rows = _read_list(file)
    names = {user_id(name): name for name in annotators}
    meanings = {**_MEANINGS, **{str(name).strip().lower(): meaning for name, meaning in (labels or {}).items()}}
    found, causes = Imported(), Causes()
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        try:
            texts, answers = _read_row(row, names, where)
            if not answers:
                continue
            pair_id, first_is_a = _pair_of(texts, known, columns, where)
            if pair_id not in known:
                found.unknown.add(where)
                continue
            for name, value, label in answers:
                answer = _meaning(value, meanings, where)
                if not first_is_a:
                    answer = {"a": "b", "b": "a"}.get(answer, answer)  # type: ignore[assignment]
                given = HumanLabel(pair_id, answer, None, label.seconds, label.time)
                found.labels.setdefault(name, []).append(given)
        except UserError as error:
            causes.add(error.problems)
            if causes.is_full:
                break
    raise_problems(causes.lines())
    return found


_Given = tuple[str, str, HumanLabel]
"""Annotator, the answer as the file has it, and a label with the time that it took."""


def _read_list(file: Path) -> list[Any]:
    if not file.is_file():
        raise UserError(f"--import: got {file}, which is no file; give one of Label Studio or Argilla")
    try:
        rows = read_json(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"--import: got {file}, which is no JSON ({error}); export it again, as JSON") from error
    except RepeatedName as error:
        raise UserError(f"--import: got {file} with the key {str(error)!r} twice in an object; keep one") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"--import: got {file}, which holds no list of rows; export it again, as JSON")
    return rows


def _read_row(row: Any, names: Mapping[str, str], where: str) -> tuple[Mapping[str, Any], list[_Given]]:
    """The texts of a row and the answers to it."""
    try:
        if isinstance(row, dict) and "annotations" in row and "data" in row:
            return row["data"], [*_label_studio_answers(row["annotations"], where)]
        if isinstance(row, dict) and "responses" in row and "fields" in row:
            return {"id": row.get("id"), **row["fields"]}, [*_argilla_answers(row["responses"], names, where)]
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{where}: got a row that cannot be read ({error}); export the file again") from error
    raise UserError(
        f"{where}: got neither a task of Label Studio (data, annotations) nor a record of Argilla (fields, responses); "
        "export it as JSON, or give rows with a label to `fit` directly"
    )


def _label_studio_answers(annotations: Iterable[Mapping[str, Any]], where: str) -> Iterator[_Given]:
    for annotation in annotations:
        name = _label_studio_name(annotation.get("completed_by"))
        seconds = annotation.get("lead_time")
        timing = HumanLabel(
            0, "skip", None, seconds if is_duration(seconds) else None, str(annotation.get("created_at") or "")
        )
        values = [_label_studio_value(region) for region in annotation["result"]]
        values = [value for value in values if value is not None]
        if annotation.get("was_cancelled") or not annotation["result"]:
            yield name, "skip", timing
        elif len(values) == 1:
            yield name, str(values[0]), timing
        else:
            kinds = ", ".join(sorted({str(region.get("type")) for region in annotation["result"]}))
            raise UserError(f"{where}: got {len(values)} answers in the results {kinds}; need one Choices or Pairwise")


def _label_studio_value(region: Mapping[str, Any]) -> str | None:
    if region["type"] == "pairwise":
        return str(region["value"]["selected"])
    if region["type"] == "choices":
        return " and ".join(region["value"]["choices"])
    return None


def _label_studio_name(completed_by: Any) -> str:
    who = completed_by.get("email") or completed_by.get("id") if isinstance(completed_by, dict) else completed_by
    return "label-studio" if who is None else f"label-studio-{re.sub(r'[^A-Za-z0-9_.@-]', '_', str(who))[:48]}"


def _argilla_answers(responses: Mapping[str, Any], names: Mapping[str, str], where: str) -> Iterator[_Given]:
    questions = [QUESTION] if QUESTION in responses else list(responses)
    if len(questions) > 1:
        raise UserError(f"{where}: got the questions {', '.join(questions)}; call the one to read {QUESTION}")
    for given in responses[questions[0]] if questions else ():
        who = str(given["user_id"])
        name = names.get(who) or f"argilla-{re.sub(r'[^A-Za-z0-9]', '_', who)[:8]}"
        yield name, str(given["value"]), HumanLabel(0, "skip")


def _pair_of(
    texts: Mapping[str, Any], known: Collection[int], columns: Mapping[str, str], where: str
) -> tuple[int, bool]:
    """The pair of a row, by the id that we gave it or by its texts, and whether its first response is a."""
    own = str(texts.get("id"))
    if own.isdecimal() and int(own) in known:
        return int(own), True
    row = {name: value for name, value in texts.items() if name not in ("label", OWN_LABEL, columns.get("label"))}
    pair = parse_row({**row, "label": 1}, columns, where)
    return (pair.pair_id, pair.label == 1) if isinstance(pair, PreferencePair) else (-1, True)


def _meaning(value: str, meanings: Labels, where: str) -> Answer:
    if value == "skip":
        return "skip"
    meaning = meanings.get(value.strip().lower(), "")
    if meaning == "":
        raise UserError(f"{where}: got the answer {value[:40]!r}; say what it means: --labels '{{{value[:20]}: a}}'")
    answers: dict[str | None, Answer] = {"a": "a", "b": "b", "tie": "tie", None: "skip"}
    return answers[meaning]


def dump(rows: Sequence[dict[str, Any]]) -> str:
    """A list of rows as both tools read it."""
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
