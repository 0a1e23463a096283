"""Files of every kind give the same rows; what is wrong with one is said in a line."""

import csv
import gzip
import json
import random
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ser_lightning.data import sources
from ser_lightning.data.sources import open_sources
from ser_lightning.errors import UserError

ROWS = [
    {"prompt": "one,\n\"two\"", "response_a": "ä\u2028漢", "response_b": "null", "label": "1"},
    {"prompt": "three", "response_a": "42", "response_b": "2020-01-01", "label": ""},
]  # fmt: skip


def read(*paths: str) -> list[dict]:
    return [row for source in open_sources(list(paths), 5, 0) for _, row in source.rows()]


def write(path, rows=ROWS) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path, ending):
    assert read(write(tmp_path / f"pairs.{ending}")) == ROWS


def test_compressed_text_files(tmp_path):
    for ending in ("jsonl", "json", "csv"):
        plain = write(tmp_path / f"pairs.{ending}")
        with gzip.open(f"{plain}.gz", "wb") as file:
            file.write((tmp_path / f"pairs.{ending}").read_bytes())
        assert read(f"{plain}.gz") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": 1, "data": ROWS}),
        "\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        "\n" + json.dumps(ROWS),
    ],
    ids=["under a name", "JSON lines", "one line", "empty first line"],
)
def test_json_in_its_other_shapes(tmp_path, text):
    (tmp_path / "pairs.json").write_text(text)
    assert read(str(tmp_path / "pairs.json")) == ROWS


def test_one_object_is_one_row(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(ROWS[0]))
    assert read(str(tmp_path / "pairs.json")) == ROWS[:1]


def test_several_files_follow_one_another(tmp_path):
    paths = [write(tmp_path / "a.jsonl", ROWS[:1]), write(tmp_path / "b.csv", ROWS[1:])]
    assert read(*paths) == ROWS


def test_a_pattern_is_every_file_that_it_matches_in_the_order_of_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "a.csv"):
        write(tmp_path / name, [{"prompt": name, "chosen": "x", "rejected": "y"}])
    assert [row["prompt"] for row in read(str(tmp_path / "?.jsonl"))] == ["a.jsonl", "b.jsonl"]
    assert [row["prompt"] for row in read(f"{tmp_path}/**/*.jsonl")] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    with pytest.raises(UserError, match=r"\*\.json: got a pattern that no file matches; did you mean") as caught:
        read(f"{tmp_path}/*.json")
    assert len(caught.value.problems) == 1
    (tmp_path / "b?.jsonl").write_text('{"prompt": "odd"}')
    assert [row["prompt"] for row in read(str(tmp_path / "b?.jsonl"))] == ["odd"]


def _write_large(path, num_rows: int) -> int:
    """A file of some 4 kB a row that no compression makes small; its texts in bytes."""
    draw = random.Random(0)
    rows = ({"prompt": str(i), "chosen": draw.randbytes(1000).hex(), "rejected": draw.randbytes(1000).hex()}
            for i in range(num_rows))  # fmt: skip
    if path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(list(rows))
        pyarrow.parquet.write_table(table, path, row_group_size=num_rows // 4, use_dictionary=False)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 4000 * num_rows


@pytest.mark.parametrize(
    ("ending", "num_rows"), [("jsonl", 4_000), ("jsonl.gz", 2_000), ("csv", 4_000), ("parquet", 12_000)]
)
def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path, ending, num_rows):
    """Of Parquet some 15 MB are, whatever the file: rows that were read together, as Arrow and as Python has them."""
    path = tmp_path / f"large.{ending}"
    size = _write_large(path, num_rows)
    [source] = open_sources(str(path), 0, 0)
    before, most = pyarrow.total_allocated_bytes(), 0
    tracemalloc.start()
    for number, _ in enumerate(source.rows(), start=1):
        if number % 100 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert number == num_rows
    assert most < size / 2


def test_folder_that_datasets_saved(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read(str(tmp_path / "saved")) == ROWS


def test_hub_name_configuration_and_split_reach_datasets(monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, **kwargs: asked.append((args, kwargs)) or datasets.Dataset.from_list(ROWS),
    )
    assert read("owner/name", "owner/name:config@test[:10%]") == ROWS + ROWS
    assert asked == [
        (("owner/name", None), {"split": "train"}),
        (("owner/name", "config"), {"split": "test[:10%]"}),
    ]


def test_synthetic_pairs_by_number_and_seed():
    def texts(number, seed):
        [source] = open_sources("synthetic", number, seed)
        return [row for _, row in source.rows()], source.fingerprint

    rows, fingerprint = texts(6, 0)
    assert len(rows) == 6
    assert set(rows[0]) >= {"prompt", "response_a", "response_b", "label"}
    assert texts(6, 0) == (rows, fingerprint)
    assert texts(6, 1)[1] != fingerprint != texts(5, 0)[1]


def test_fingerprint_follows_the_content_not_the_name(tmp_path):
    paths = [write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl"), write(tmp_path / "c.jsonl", ROWS[:1])]
    first, same, other = (source.fingerprint for source in open_sources(paths, 5, 0))
    assert first == same != other


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": 1}\n{"prompt": \n', r"a.jsonl, line 2: got broken JSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl, line 1: got a list; needs an object"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', r"a.jsonl: got bytes that are not UTF-8"),
        ("a.jsonl", b"\n", r"a.jsonl: got no row; give a file"),
        ("a.json", b"", r"a.json: got no row"),
        ("a.json", b'[{"prompt": 1},', r"a.json: got broken JSON"),
        ("a.json", b"[3]", r"a.json, row 1: got a int; needs an object"),
        ("a.csv", b"prompt,chosen\nx,y,z\n", r"a.csv, line 2: got another number of fields"),
        ("a.csv", b"prompt,chosen\nx\n", r"a.csv, line 2: got another number of fields"),
        ("a.csv", b'prompt,chosen\nx,"y\n', r"a.csv, after line 1: got broken CSV"),
        ("a.csv", b"prompt,chosen\n", r"a.csv: got no row"),
        ("a.parquet", b"PAR", r"a.parquet: got no Parquet file"),
        ("a.txt", b"x", r"a.txt: got the ending '.txt'; use .jsonl"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(str(tmp_path / name))
    assert len(error.value.problems) == 1
    assert "\n" not in error.value.problems[0]


def test_missing_files_are_all_named_with_the_nearest_names(tmp_path):
    write(tmp_path / "my_pairs.jsonl")
    with pytest.raises(UserError) as error:
        read(str(tmp_path / "mypairs.jsonl"), str(tmp_path / "no" / "pairs.csv"))
    assert len(error.value.problems) == 2
    assert "no such file; did you mean my_pairs.jsonl?" in error.value.problems[0]
    assert "there is no folder" in error.value.problems[1]


def test_plain_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="got a folder; name its files"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("is_away", "why"),
    [(False, "ConnectionError: no network"), (True, "the Hub cannot be reached, and it was not downloaded before")],
)
def test_unknown_hub_data_set_is_one_line(monkeypatch, is_away, why):
    def fail(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(sources, "without_hub", lambda name: is_away)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=rf"owner/name: got neither a local file nor a Hub data set \({why}\)"):
        read("owner/name")


REPEATED = {
    "a.jsonl": '{"prompt": "q", "chosen": "x", "rejected": "y", "chosen": "z"}\n',
    "b.json": '[{"prompt": "q", "chosen": "x", "rejected": "y"}, {"prompt": "p", "chosen": "x", "chosen": "z"}]',
    "c.csv": "prompt,chosen,rejected,chosen\nq,x,y,z\n",
    "d.jsonl": '{"chosen": [{"role": "user", "content": "q", "content": "p"}], "rejected": []}\n',
}


@pytest.mark.parametrize(("name", "text"), REPEATED.items())
def test_a_name_that_stands_twice_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    repeated = "content" if name == "d.jsonl" else "chosen"
    with pytest.raises(UserError, match=f"{name}.* got the (key|column) '{repeated}' twice"):
        read(str(tmp_path / name))


def test_a_column_that_a_parquet_file_has_twice_is_named(tmp_path):
    columns = [pyarrow.array([text]) for text in "pcrz"]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "chosen", "rejected", "chosen"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="got the column 'chosen' twice"):
        read(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("format", [("torch",), ("numpy",), ("arrow",), ("torch", ["label"])])
def test_a_saved_dataset_is_read_without_its_format(tmp_path, format):
    rows = [{**row, "label": number} for number, row in enumerate(ROWS)]
    datasets.Dataset.from_list(rows).with_format(*format).save_to_disk(tmp_path / "saved")
    assert read(str(tmp_path / "saved")) == rows


def test_of_several_saved_splits_one_is_named(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="got a folder of several splits; name the folder of one, .*saved/train"):
        read(str(tmp_path / "saved"))
    assert len(read(str(tmp_path / "saved" / "train"))) == len(ROWS)


def test_a_saved_dataset_is_known_by_its_bytes(tmp_path):
    """Its state.json still says what the first save wrote."""
    for name, rows in (("one", ROWS), ("two", [{**row, "prompt": "other"} for row in ROWS])):
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name)
    [before] = open_sources([str(tmp_path / "one")], 0, 0)
    [arrow] = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(next((tmp_path / "two").glob("*.arrow")).read_bytes())
    [after] = open_sources([str(tmp_path / "one")], 0, 0)
    assert before.fingerprint != after.fingerprint
    assert [row["prompt"] for _, row in after.rows()] == ["other", "other"]


def _empty_state(folder):
    (folder / "state.json").write_text("{}")


def _list_state(folder):
    (folder / "state.json").write_text("[]")


def _no_arrow(folder):
    next(folder.glob("*.arrow")).unlink()


def _cut_arrow(folder):
    arrow = next(folder.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:300])


def _strange_features(folder):
    (folder / "dataset_info.json").write_text('{"features": 5}')


@pytest.mark.parametrize("damage", [_empty_state, _list_state, _no_arrow, _cut_arrow, _strange_features])
def test_a_saved_dataset_of_a_broken_shape_is_named(tmp_path, damage):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved: .*is it damaged\?"):
        read(str(tmp_path / "saved"))


def _cut_gz(path):
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 50)[:-20])


def _no_gz(path):
    path.write_text(json.dumps(ROWS[0]))


def _far_date(path):
    far = pyarrow.array([10**18], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["q"], "chosen": ["x"], "rejected": ["y"], "when": far}), path)


def _broken_page(path):
    table = pyarrow.table({"prompt": ["q" * 900] * 9, "chosen": ["x"] * 9, "rejected": ["y"] * 9})
    pyarrow.parquet.write_table(table, path)
    content = bytearray(path.read_bytes())
    content[10:40] = b"\xff" * 30
    path.write_bytes(content)


def _huge_number(path):
    path.write_text('{"prompt": "q", "chosen": "x", "rejected": "y", "n": 1' + "0" * 5000 + "}\n")


def _deep(path):
    path.write_text('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


BROKEN = {"a.jsonl.gz": _cut_gz, "b.csv.gz": _no_gz, "c.parquet": _far_date, "d.parquet": _broken_page}
BROKEN |= {"e.jsonl": _huge_number, "f.json": _huge_number, "g.jsonl": _deep, "h.json": _deep}


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_rows_name_their_file(tmp_path, name):
    BROKEN[name](tmp_path / name)
    with pytest.raises(UserError, match=f"{name}.*(is it damaged|mend it or remove it)"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "one_line.jsonl"])
def test_a_row_beyond_all_measure_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "MAX_ROW", 1000)
    rows = [{"prompt": "x" * 900, "chosen": "a"}, {"prompt": "x" * 1001, "chosen": "a"}]
    file = tmp_path / name
    if name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif name == "rows.csv":
        file.write_text("prompt,chosen\n" + "".join(f"{row['prompt']},a\n" for row in rows))
    elif name == "rows.json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text(("" if name == "one_line.jsonl" else "\n").join(map(json.dumps, rows)))
    reason = r"(row 2|line [12]): got .*1,0\d\d.* characters, at most 1,000 are read|field larger than field limit"
    [source] = open_sources(str(file), 0, 0)
    with pytest.raises(UserError, match=reason) as caught:
        list(source.rows())
    assert len(caught.value.problems) == 1
