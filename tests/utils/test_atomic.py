"""Files that are whole or not there."""

import pytest

from ser_lightning.utils.atomic import write_atomically


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
