"""Records of checksums: whatever moment a writer is killed at, what is there fits."""

import pytest

from ser_lightning.utils.checksums import CHECKSUMS, checksums_fit, fits_record, record_checksums, write_recorded
from tests.helpers import break_off


def write(path, content):
    write_recorded(path, lambda file: file.write(content))


def test_a_file_fits_until_it_is_changed(tmp_path):
    file = tmp_path / "x"
    write(file, b"one")
    assert fits_record(file) and checksums_fit(tmp_path / CHECKSUMS)
    write(file, b"two")
    assert fits_record(file)
    file.write_bytes(b"three")
    assert not fits_record(file) and not checksums_fit(tmp_path / CHECKSUMS)


def test_a_file_that_nobody_recorded_fits(tmp_path):
    (tmp_path / "x").write_bytes(b"one")
    assert fits_record(tmp_path / "x") and not checksums_fit(tmp_path / CHECKSUMS)
    write(tmp_path / "y", b"two")
    assert fits_record(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 5}', "null"])
def test_a_record_that_is_none_vouches_for_nothing(tmp_path, text):
    write(tmp_path / "x", b"one")
    (tmp_path / CHECKSUMS).write_text(text)
    assert not fits_record(tmp_path / "x") and not checksums_fit(tmp_path / CHECKSUMS)


def test_a_record_of_an_earlier_version_counts(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / CHECKSUMS).write_text(f'{{"x": "{empty}"}}')
    assert checksums_fit(tmp_path / CHECKSUMS)


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_before_any_file_operation_leaves_what_fits(tmp_path, monkeypatch, step):
    """Of the second write of a file: its flush, the record's flush, and both renames."""
    file = tmp_path / "x"
    write(file, b"one")
    break_off(monkeypatch, step, "fsync", "replace")
    with pytest.raises(KeyboardInterrupt):
        write(file, b"two")
    monkeypatch.undo()
    assert file.read_bytes() == b"one" and fits_record(file)
    write(file, b"three")
    assert fits_record(file)


def test_several_files_are_recorded_at_once(tmp_path):
    for name in "xy":
        (tmp_path / name).write_text(name)
    record_checksums(tmp_path / CHECKSUMS, [tmp_path / "x", tmp_path / "y"])
    assert checksums_fit(tmp_path / CHECKSUMS)
    (tmp_path / "y").unlink()
    assert not checksums_fit(tmp_path / CHECKSUMS)
