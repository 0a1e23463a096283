"""The file of labels: what a kill leaves, what an undo takes back, who may write."""

import errno
import fcntl
import json
import os
from types import SimpleNamespace

import pytest

from ser_lightning.errors import UserError
from ser_lightning.labelling.label_file import HumanLabel, LabelFile, check_name, label_path, latest, read_labels


def answers(labels):
    return [(label.pair_id, label.answer) for label in labels]


def test_labels_come_back_in_order_without_what_was_undone(tmp_path):
    with LabelFile(tmp_path, "ana") as file:
        file.add(HumanLabel(1, "a", "b", 2.5))
        file.add(HumanLabel(2, "tie", "a", 1.0))
        assert file.undo().pair_id == 2
        file.add(HumanLabel(3, "skip", "a", None))
    assert answers(read_labels(tmp_path)["ana"]) == [(1, "a"), (3, "skip")]
    with LabelFile(tmp_path, "ana") as file:
        assert answers(file.labels) == [(1, "a"), (3, "skip")]
        assert [file.undo().pair_id for _ in range(2)] == [3, 1]
        assert file.undo() is None
    assert read_labels(tmp_path) == {"ana": []}
    rows = [json.loads(line) for line in label_path(tmp_path, "ana").read_text().splitlines()]
    assert len(rows) == 6  # nothing was ever taken out of the file
    assert rows[0] == {"pair": "1", "answer": "a", "left": "b", "seconds": 2.5, "time": rows[0]["time"]}
    assert rows[2]["undo"] is True and rows[2]["pair"] == "2"


def test_a_label_is_on_the_disk_when_add_returns(tmp_path, monkeypatch):
    flushed = []
    with LabelFile(tmp_path, "ana") as file:
        monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(file.path.read_text()))
        file.add(HumanLabel(7, "b", "a", 1.0))
    assert '"pair": "7"' in flushed[0] and flushed[0].endswith("\n")


@pytest.mark.parametrize("torn", [b"{", b'{"pair": "2", "answer": "a"}'])
def test_a_line_that_was_never_finished_is_cut_off(tmp_path, torn):
    with LabelFile(tmp_path, "ana") as file:
        file.add(HumanLabel(1, "a", "b", 1.0))
    path = label_path(tmp_path, "ana")
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert answers(read_labels(tmp_path)["ana"]) == [(1, "a")]  # reading changes nothing
    assert path.read_bytes() == whole + torn
    with LabelFile(tmp_path, "ana") as file:
        assert answers(file.labels) == [(1, "a")]
        file.add(HumanLabel(2, "b", "a", 1.0))
    assert answers(read_labels(tmp_path)["ana"]) == [(1, "a"), (2, "b")]


def test_a_label_that_does_not_reach_the_disk_does_not_count(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with LabelFile(tmp_path, "ana") as file:
        file.add(HumanLabel(1, "a", "b", 1.0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                file.add(HumanLabel(2, "a", "b", 1.0))
        file.add(HumanLabel(3, "a", "b", 1.0))
        assert answers(file.labels) == [(1, "a"), (3, "a")]
    assert answers(read_labels(tmp_path)["ana"]) == [(1, "a"), (3, "a")]


def test_a_disk_that_takes_a_part_of_a_label_takes_none(tmp_path, monkeypatch):
    with LabelFile(tmp_path, "ana") as file:
        file.add(HumanLabel(1, "a", "b", 1.0))
        whole, raw = file.path.read_bytes(), file._file
        part = SimpleNamespace(fileno=raw.fileno, truncate=raw.truncate, write=lambda line: raw.write(line[:5]))
        monkeypatch.setattr(file, "_file", part)
        with pytest.raises(OSError, match="No space left on device: .*ana.jsonl"):
            file.add(HumanLabel(2, "a", "b", 1.0))
        monkeypatch.setattr(file, "_file", raw)
        assert file.path.read_bytes() == whole and answers(file.labels) == [(1, "a")]


def test_a_file_system_without_locks_takes_labels(tmp_path, monkeypatch):
    def unsupported(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with LabelFile(tmp_path, "ana") as file:
        file.add(HumanLabel(1, "a", "b", 1.0))
    assert answers(read_labels(tmp_path)["ana"]) == [(1, "a")]


def test_a_file_has_one_writer(tmp_path):
    with LabelFile(tmp_path, "ana") as file:
        file.add(HumanLabel(1, "a", "b", 1.0))
        with pytest.raises(UserError, match=r"--annotator: .*ana\.jsonl is open in another process; end that one"):
            LabelFile(tmp_path, "ana")
        with LabelFile(tmp_path, "ben"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["ana.jsonl"]  # ben gave no label
    LabelFile(tmp_path, "ana").close()


BROKEN = [
    "no json",
    "[1]",
    '{"answer": "a"}',
    '{"pair": "x", "answer": "a"}',
    '{"pair": "1", "answer": "better"}',
    '{"pair": "1", "answer": "a", "left": "left"}',
    '{"pair": "1", "answer": "a", "seconds": -1}',
    '{"pair": "1", "answer": "a", "seconds": NaN}',
    '{"pair": "1", "answer": "a", "seconds": "fast"}',
]


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named(tmp_path, line):
    label_path(tmp_path, "ana").write_text('{"pair": "1", "answer": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"ana\.jsonl, line 2: got .*, no label; mend the line or remove it"):
        LabelFile(tmp_path, "ana")


def test_an_undo_of_another_pair_is_named(tmp_path):
    label_path(tmp_path, "ana").write_text('{"pair": "1", "answer": "a"}\n{"pair": "2", "undo": true}\n')
    with pytest.raises(UserError, match="line 2: got an undo of pair 2, which is not the last label before it"):
        read_labels(tmp_path)


def test_the_last_label_of_a_pair_counts():
    given = [HumanLabel(1, "a"), HumanLabel(2, "b"), HumanLabel(1, "tie")]
    assert {pair: label.answer for pair, label in latest(given).items()} == {1: "tie", 2: "b"}


@pytest.mark.parametrize("name", ["", "../ana", ".ana", "a/b", "a b", "ä", "x" * 65, "a\n"])
def test_a_name_is_a_file_name(name):
    with pytest.raises(UserError, match="--annotator: got .*; use letters"):
        check_name(name)
    check_name("ana.lopez-2@site_b")


def test_there_need_be_no_folder(tmp_path):
    assert read_labels(tmp_path / "none") == {}
