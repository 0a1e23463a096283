"""Files that are whole or not there."""

import os

import pytest

from ser_lightning.utils.atomic import is_running, output_problems, write_atomically


def test_writing_atomically_leaves_the_old_file_when_it_fails(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")

    def fail(handle):
        handle.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(source), None, str(target))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(PermissionError) as error:
        write_atomically(tmp_path / "x", lambda file: file.write(b"text"))
    assert error.value.filename == str(tmp_path / "x")


def test_a_process_of_somebody_else_is_running(monkeypatch):
    def refuse(*_):
        raise PermissionError

    assert is_running(os.getpid()) and is_running(10**30)  # no number of a process here: it may be one elsewhere
    monkeypatch.setattr("os.kill", refuse)
    assert is_running(1)


def test_what_a_pattern_matches_is_not_written_over(tmp_path):
    """Hidden names and what lies deeper count as `glob` counts them; a file that has such a name counts as itself."""
    for name in ("one.jsonl", "two.jsonl", "in/three.jsonl", "odd*.csv", "oddity.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")

    def refused(given: str, out: str) -> bool:
        problems = [*output_problems("--out", tmp_path / out, [tmp_path / given], overwrite=True)]
        assert all("which this command reads" in line for line in problems)
        return bool(problems)

    assert refused("*.jsonl", "one.jsonl") and refused("t?o.jsonl", "two.jsonl") and refused("**/t*", "in/three.jsonl")
    assert not refused("t*.jsonl", "one.jsonl") and not refused("*.jsonl", "in/three.jsonl")
    assert refused("odd*.csv", "odd*.csv") and not refused("odd*.csv", "oddity.csv")
    assert not refused("*.jsonl", "new.jsonl")  # what is not there is not read
