"""The cache of encoded pairs: found when nothing changed, and only then; whole or not there; free of labels."""

import errno
import json
import os
import pickle
import shutil
import socket
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ser_lightning.data import store as store_module
from ser_lightning.data.encode import encode_pairs
from ser_lightning.data.layouts import Layout
from ser_lightning.data.reader import PairStore
from ser_lightning.data.sources import Source, open_sources
from ser_lightning.data.store import (
    CONTRADICTION,
    UNLABELLED,
    _StoreWriter,
    build_store,
    is_complete,
    join_dialogues,
    store_key,
    tokenizer_hash,
)
from ser_lightning.datamodules.batches import Shard
from ser_lightning.errors import UserError
from tests.helpers import data


@pytest.fixture
def build(tiny_tokenizer, tmp_path, write_jsonl):
    """`build(rows, pool_path=rows, ...) -> PairStore`."""

    def make(path, max_length=200, columns=None, **roles):
        sources = {role: [] for role in ("path", "pool_path", "test_path")}
        for role, rows in {"path": path, **roles}.items():
            sources[role] = open_sources(write_jsonl(f"{role}.jsonl", rows), 0, 0)
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        build_store(folder, sources, columns or {}, tiny_tokenizer, max_length)
        return PairStore(folder)

    return make


def test_texts_and_ids_come_back(build, make_rows, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(store_module._StoreWriter, "chunk_size", 7)  # several chunks, the last one not full
    rows = [{**row, "id": f"row {i}"} for i, row in enumerate(make_rows(30))]
    store = build(rows)
    assert len(store) == 30
    pairs = store.read_texts(range(30))
    assert [pair.source_id for pair in pairs] == [f"row {i}" for i in range(30)]
    assert [pair.label for pair in pairs] == [None] * 30
    for i, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        assert pair.prompt == [{"role": "user", "content": row["prompt"]}]
        assert {pair.response_a, pair.response_b} == {row["response_a"], row["response_b"]}
        [encoded] = encode_pairs(tiny_tokenizer, [pair], 200)
        ids_a, ids_b = store.ids(i)
        assert (ids_a.tolist(), ids_b.tolist()) == (encoded.ids_a, encoded.ids_b)
        same = [a == b for a, b in zip(encoded.ids_a, encoded.ids_b, strict=False)]
        assert store.response_start[i] == encoded.start > 0 and store.response_start.dtype == np.int32
        assert store.num_shared[i] == ([*same, False].index(False))
        assert store.read_labels()[i] == (row["label"] == (pair.response_a == row["response_a"]))
    assert [pair.source_id for pair in store.read_texts([5, 2, 5])] == ["row 5", "row 2", "row 5"]
    assert store.read_texts([]) == []


def test_batches_of_a_store_know_where_responses_begin(build, tiny_tokenizer):
    """A header in a response and in its prompt, in both places of a pair, and a prompt that is cut."""
    texts = [("Why <assistant>?", "No.<eos><assistant>Yes.", "It is."), ("Hm " * 60, "It is.", "No.<eos><assistant>.")]
    rows = [{"prompt": prompt, "response_a": a, "response_b": b} for prompt, a, b in texts]
    rows += [{"prompt": "So?" + prompt, "response_a": b, "response_b": a} for prompt, a, b in texts]
    store = build(rows, max_length=100)
    pairs = store.read_texts(range(4))
    expected = [f"{text}<eos>" for side in ("response_a", "response_b") for text in (getattr(p, side) for p in pairs)]
    for layout in (Layout(), Layout(True)):
        shard = Shard(0, 1, 1000, 0, replace(layout, header=(1,), question=(9, 9)))
        inputs = shard.lay_out(store, np.arange(4))
        ids = inputs.input_ids.flatten()
        assert [tiny_tokenizer.decode(ids[places[places >= 0]]) for places in inputs.response] == expected


def test_repeated_pairs_are_kept_once_and_their_labels_are_joined(build):
    def row(name, label):
        return {"prompt": name, "response_a": "x", "response_b": "y", "label": label}

    def swapped(name, label):
        return {"prompt": name, "response_a": "y", "response_b": "x", "label": label}

    rows = [row("both", 1), row("same", 1), row("late", None), row("never", None), row("both", 0)]
    rows += [swapped("same", 0), swapped("late", 1), row("never", None), row("both", None), row("both", 1)]
    store = build(rows)
    labels = dict(
        zip((p.prompt[0]["content"] for p in store.read_texts(range(4))), store.read_labels().tolist(), strict=True)
    )
    assert list(labels) == ["both", "same", "late", "never"]
    assert labels["both"] == CONTRADICTION
    assert labels["never"] == UNLABELLED
    pairs = {p.prompt[0]["content"]: p for p in store.read_texts(range(4))}
    assert labels["same"] == (pairs["same"].response_a == "x")
    assert labels["late"] == (pairs["late"].response_a == "y")
    assert store.counts[0]["path"] == Counter(rows=10, duplicate=6)


def test_what_is_dropped_is_counted(build):
    good = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    rows = [good, {**good, "chosen": ""}, {**good, "rejected": "yes "}, {**good, "chosen": "z" * 300}]
    rows += [{**good, "chosen": "z" * 300}, {**good, "prompt": "q" * 300}]
    store = build(rows, pool_path=[good], max_length=100)
    assert len(store) == 3
    assert store.counts[0]["path"] == Counter(rows=6, empty=1, identical=1, too_long=1, duplicate=1, cut=1)
    assert store.counts[0]["pool_path"] == Counter(rows=1)
    assert store.role.tolist() == [0, 0, 1]


def test_responses_that_the_template_makes_equal_are_dropped(build, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{% for m in messages %}{{ m['content'][:3] }}{% endfor %}")
    store = build([{"prompt": "Hi", "chosen": "yes, x", "rejected": "yes, y"}])
    assert (len(store), store.counts[0]["path"]["identical"]) == (0, 1)


def test_the_store_holds_no_label_outside_of_its_labels_file(build, make_rows, folder_bytes):
    rows = make_rows(20)
    before = folder_bytes(build(rows).folders[0])
    after = folder_bytes(build([{**row, "label": 1 - row["label"]} for row in rows]).folders[0])
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"labels.npy", "checksums.json"}
    sums = [json.loads(found["checksums.json"]) for found in (before, after)]
    assert sums[0].keys() == sums[1].keys()
    assert {name for name in sums[0] if sums[0][name] != sums[1][name]} == {"labels.npy"}


def test_key_follows_data_columns_tokenizer_template_and_length(tiny_tokenizer, make_rows, write_jsonl, monkeypatch):
    def key(rows=10, columns=None, max_length=100, role="path", name="a.jsonl"):
        sources = {"path": [], "pool_path": [], "test_path": []}
        sources[role] = open_sources(write_jsonl(name, make_rows(rows)), 0, 0)
        return store_key(sources, columns or {}, tiny_tokenizer, max_length)

    first = key()
    assert key() == first == key(name="b.jsonl")
    others = [key(rows=11), key(columns={"prompt": "q"}), key(max_length=101), key(role="pool_path")]
    monkeypatch.setattr(tiny_tokenizer, "chat_template", tiny_tokenizer.chat_template + " ")
    others.append(key())
    assert len({first, *others}) == 6


def test_padding_and_truncation_left_on_a_tokenizer_do_not_change_its_hash(tiny_tokenizer):
    before = tokenizer_hash(tiny_tokenizer)
    tiny_tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tiny_tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_hash(tiny_tokenizer) == before
    tiny_tokenizer(["a"])


def test_a_store_that_fails_leaves_nothing_behind(build, tmp_path):
    rows = [{"prompt": "Hi", "chosen": "yes", "rejected": str(i)} for i in range(600)] + [{"prompt": "Hi"}]
    with pytest.raises(UserError, match=r"path.jsonl, line 601: got the columns prompt"):
        build(rows)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_one_cause_is_one_line_with_a_count_and_ten_causes_are_enough(build):
    bad = {"prompt": "Hi", "response_a": "yes", "response_b": "no", "label": "?"}
    with pytest.raises(UserError, match=r"line 1: got the label '\?'; .* \(59 more like this\)$") as error:
        build([bad] * 60)
    assert len(error.value.problems) == 1
    with pytest.raises(UserError) as error:
        build([{**bad, "label": chr(ord("A") + i) * 3} for i in range(26)])
    assert len(error.value.problems) == 10


def test_columns_that_no_row_has_are_named_once_with_those_of_the_file(make_rows, write_jsonl, tiny_tokenizer):
    def build(rows, columns):
        sources = {"path": open_sources(write_jsonl("path.jsonl", rows), 0, 0), "pool_path": [], "test_path": []}
        build_store(Path("store"), sources, columns, tiny_tokenizer, 200, needs_columns=True)

    rows = make_rows(60)
    names = ", ".join(rows[0])
    with pytest.raises(UserError) as error:
        build(rows, {"label": "winner"})  # it would be a pool without a label, in silence
    assert error.value.problems == [f"columns: got {{label: winner}}; the file has {names}"]
    others = [{"question": row["prompt"], "good": "a", "bad": "b"} for row in rows]
    with pytest.raises(UserError) as error:
        build(others, {"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert error.value.problems == ["columns: got {chosen: better, rejected: worse}; the file has question, good, bad"]
    build([*rows[1:], {**rows[0], "winner": None}], {"label": "winner"})  # the last row has it
    wide = [{**row, **{f"column {i}": "" for i in range(20_000)}} for row in others[:2]]
    with pytest.raises(UserError) as error:
        build(wide, {"chosen": "better"})
    assert str(error.value).endswith("column 16 and 19,983 more") and len(str(error.value)) < 500


def test_a_second_writer_of_the_same_store_is_no_error(build, make_rows, tiny_tokenizer, write_jsonl, folder_bytes):
    store = build(make_rows(5))
    before = folder_bytes(store.folders[0])
    sources = {"path": open_sources(write_jsonl("path.jsonl", make_rows(5)), 0, 0), "pool_path": [], "test_path": []}
    build_store(store.folders[0], sources, {}, tiny_tokenizer, 200)
    assert folder_bytes(store.folders[0]) == before
    assert is_complete(store.folders[0])
    assert [path for path in store.folders[0].parent.iterdir() if "draft" in path.name] == []


def test_a_store_that_cannot_take_its_place_is_an_error(build, make_rows, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        build(make_rows(5))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_chunk_that_repeats_others_adds_nothing(build, monkeypatch):
    monkeypatch.setattr(_StoreWriter, "chunk_size", 1)
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    store = build([row, {**row, "rejected": "never"}, row])
    assert len(store) == 2 and store.counts[0]["path"]["duplicate"] == 1


def test_workers_get_the_place_and_not_the_content(build, make_rows):
    store = build(make_rows(50))
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    np.testing.assert_array_equal(pickle.loads(pickled).ids(49)[1], store.ids(49)[1])


def test_token_ids_are_mapped_not_read(build, make_rows):
    assert isinstance(build(make_rows(5)).ids(0)[0], np.memmap)


def test_prompts_that_continue_one_another_are_one_dialogue():
    # 5 -> 9 -> 2, and 7 -> 3; 8 stands alone, 4 is nobody's prompt
    continuations = [(5, 9), (9, 2), (5, 2), (7, 3), (4, 8), (4, 3)]
    assert join_dialogues([9, 5, 2, 3, 7, 8, 9], continuations) == [2, 2, 2, 3, 3, 8, 2]
    assert join_dialogues([7, 3], reversed(continuations)) == [3, 3]


def test_a_pair_whose_answer_stands_in_a_later_prompt_is_in_its_dialogue(build):
    def turn(role, content):
        return {"role": role, "content": content}

    first = [turn("system", "Be kind"), turn("user", "Hi")]
    later = [*first, turn("assistant", "yes"), turn("user", "And?")]
    other = [turn("user", "Hi"), turn("assistant", "yes"), turn("user", "And?")]
    rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in (later, other, first)]
    dialogues = build(rows[:2], test_path=rows[2:]).dialogue_id
    assert dialogues[0] == dialogues[2] != dialogues[1]


def damage(file, how):
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}[how])


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "zeros"])
@pytest.mark.parametrize("name", ["ids.bin", "index.npz", "labels.npy", "texts.arrow", "counts.json", "checksums.json"])
def test_a_damaged_store_is_built_again(pairs_file, tiny_tokenizer, tmp_path, name, how):
    def labels_and_ids():
        pairs = data(pairs_file, cache_dir=str(tmp_path / "cache"))
        pairs.tokenizer = tiny_tokenizer
        pairs.prepare_data()
        pairs.setup("fit")
        store = pairs.data.store
        return store.read_labels().tolist(), [tuple(i.tolist() for i in store.ids(row)) for row in range(len(store))]

    expected = labels_and_ids()
    (file,) = (tmp_path / "cache").rglob(name)
    damage(file, how)
    assert labels_and_ids() == expected
    assert labels_and_ids() == expected and not list((tmp_path / "cache").rglob("damaged"))


def test_what_a_killed_process_was_writing_goes_at_the_next_start(build, make_rows, tmp_path):
    """And what a running one is writing, or one on another machine, stays."""
    here = socket.gethostname()
    names = {
        f"x.{here}.999999999.draft": False,
        f"x.{here}.{os.getpid()}.draft": False,  # of one killed in the same container
        f"x.{here}.{os.getppid()}.draft": True,
        "x.elsewhere.999999999.draft": True,
    }
    cache = build(make_rows(10)).folders[0].parent
    for name in names:
        (cache / name).mkdir()
        (cache / name / "ids.bin").write_text("half")
    build(make_rows(11))
    assert {name: (cache / name).exists() for name in names} == names


def test_encoding_holds_a_chunk_of_the_texts_at_a_time(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module._StoreWriter, "chunk_size", 16)
    num_rows, num_characters = 600, 4000

    def rows():
        for i in range(num_rows):
            texts = [f"{i} {side} ".ljust(num_characters, side) for side in "xy"]
            yield f"row {i}", {"prompt": str(i), "chosen": texts[0], "rejected": texts[1]}

    sources = {"path": [Source("rows", "1", rows)], "pool_path": [], "test_path": []}
    tracemalloc.start()
    build_store(tmp_path / "store", sources, {}, tiny_tokenizer, 2 * num_characters)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(PairStore(tmp_path / "store")) == num_rows
    assert most < 2 * num_rows * num_characters


def test_votes_of_annotators_become_their_majority_and_lie_beside_the_labels(build, folder_bytes):
    def rows(name, votes, turned=()):
        both = (
            {"prompt": name, "response_a": "x", "response_b": "y"},
            {"prompt": name, "response_a": "y", "response_b": "x"},
        )
        return [{**both[i in turned], "label": vote, "who": f"w{i}"} for i, vote in enumerate(votes)]

    columns = {"annotator": "who"}
    given = rows("two to one", [1, 1, 1], turned=[2]) + rows("even", [1, 0]) + rows("ties", ["tie", "tie", 1])
    given += [*rows("again", [0]), *rows("again", [0, None]), *rows("again", [1], turned=[0])] + rows(
        "list", [[1, 0, 1]]
    )
    given += [{"prompt": "nobody's", "response_a": "x", "response_b": "y", "label": label} for label in (1, 0)]
    store = build(given, columns=columns)
    pairs = {pair.prompt[0]["content"]: (row, pair) for row, pair in enumerate(store.read_texts(range(len(store))))}
    found = {}
    for name, (row, pair) in pairs.items():
        label, votes = float(store.read_labels()[row]), store.read_votes()[row].tolist()
        is_turned = pair.response_a == "y" and label in (0, 0.5, 1)
        found[name] = (1 - label, votes[::-1]) if is_turned else (label, votes)
    assert found == {
        "two to one": (1, [2, 0, 1]),
        "even": (0.5, [1, 0, 1]),
        "ties": (0.5, [1, 2, 0]),
        "again": (0, [0, 0, 1]),  # one annotator says the same three times
        "list": (1, [2, 0, 1]),
        "nobody's": (CONTRADICTION, [0, 0, 0]),  # rows without an annotator are no votes
    }
    assert store.counts[0]["path"] == Counter(rows=len(given), vote=5, duplicate=4)
    turned = [{**row, "label": 0} if row["label"] == 1 else row for row in given]
    before, after = folder_bytes(store.folders[0]), folder_bytes(build(turned, columns=columns).folders[0])
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"labels.npy", "votes.npy", "counts.json", "checksums.json"}


def test_columns_that_nothing_reads_are_named_once(build, caplog):
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no", "id": 1, "input": "x", "meta": {"who": "Ann"}}
    with caplog.at_level("INFO"):
        build([row, {**row, "chosen": "sure", "stars": 3}], columns={"annotator": "meta.who"})
    assert [line for line in caplog.messages if "not read" in line] == ["Columns not read: input, stars"]
    caplog.clear()
    with caplog.at_level("INFO"):
        build([{"prompt": "Hi", "chosen": "yes", "rejected": "no"}])
    assert not [line for line in caplog.messages if "not read" in line]
