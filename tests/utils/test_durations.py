import pytest

from ser_lightning.utils.durations import duration


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (89, "89 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
