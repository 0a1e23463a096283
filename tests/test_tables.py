import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_interval_is_students(tables):
    assert tables.interval([0.5]) == "0.500"
    assert tables.interval([0.4, 0.5, 0.6]) == "0.500 ± 0.248"  # 4.303 * 0.1 / sqrt(3)


def test_share_of_the_gap_is_the_ratio_of_mean_gaps_or_undefined(tables):
    assert tables.share_of_gap([0.6, 0.6, 0.6], [0.65, 0.65, 0.65], [0.7, 0.7, 0.7]).startswith("0.50 ± 0.00")
    assert tables.share_of_gap([0.6, 0.7, 0.65], [0.6, 0.7, 0.65], [0.7, 0.6, 0.66]) == "undefined"
    assert tables.share_of_gap([0.6], [0.65], [0.7]) == "undefined"


def test_a_table_is_replaced_and_the_rest_of_the_page_stays(tables):
    page = "a\n<!-- x -->\n<!-- end x -->\nb\n"
    once = tables.fill(page, "x", "| t |")
    assert once == "a\n<!-- x -->\n| t |\n<!-- end x -->\nb\n"
    assert tables.fill(once, "x", "| u |") == once.replace("t", "u")
    with pytest.raises(ValueError, match="no place for the table y"):
        tables.fill(page, "y", "")


def test_the_page_holds_what_the_files_say(tables):
    page = tables.PAGE.read_text()
    assert tables.fill_all(page) == page
