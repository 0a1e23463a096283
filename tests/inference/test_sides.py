"""Rewards that `score` wrote come back as they were, with the temperature that made the probabilities."""

import pyarrow as pa
import pytest
import torch

from ser_lightning.cli.score import _schema, _table_writer
from ser_lightning.inference.scoring_rows import RowCounts, open_source, read_rows
from ser_lightning.inference.sides import FileSide

NUM_ROWS = 60


@pytest.fixture
def written(write_jsonl, tmp_path):
    """`written(suffix, rewards, temperature)`: rows, and a file of their rewards (2, N)."""
    texts = [{"prompt": f"Q{i}?", "chosen": "yes", "rejected": "no", "id": f"\u2028{i}\n,"} for i in range(NUM_ROWS)]
    rows = [*read_rows(open_source(write_jsonl("pairs.jsonl", texts)), {}, RowCounts())]

    def write(suffix, rewards, temperature):
        schema, size = _schema("chosen", True), [5] * NUM_ROWS
        probability = ((rewards[0] - rewards[1]) / temperature).sigmoid()
        columns = [range(NUM_ROWS), [row.pair.source_id for row in rows], *rewards.tolist(), probability.tolist()]
        columns += [size, size, [False] * NUM_ROWS, [1.0] * NUM_ROWS, [True] * NUM_ROWS, [row.content for row in rows]]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        file = tmp_path / f"rewards{suffix}"
        with file.open("wb") as stream, _table_writer(stream, suffix, schema) as write_table:
            write_table(pa.table(arrays, schema=schema))
        return rows, file

    return write


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(("spread", "temperature"), [(1, 1.0), (30, 1.0), (10, 0.2), (0.1, 3.0)])
def test_the_temperature_is_found_where_most_probabilities_are_1_in_float32(written, suffix, spread, temperature):
    rewards = spread * torch.randn(2, NUM_ROWS, generator=torch.Generator().manual_seed(0))
    rows, file = written(suffix, rewards, temperature)
    side = FileSide(file, rows, NUM_ROWS)
    assert side.temperature == pytest.approx(temperature, rel=1e-3)
    torch.testing.assert_close(side.score(rows)[[0, 2]], rewards)


def test_of_probabilities_that_are_all_0_or_1_no_margin_counts_as_less_sure(written):
    sign = torch.tensor([1.0, -1.0]).repeat(NUM_ROWS // 2)
    rows, file = written(".parquet", torch.stack([sign * torch.linspace(0.1, 5, NUM_ROWS), 0 * sign]), 0.001)
    assert FileSide(file, rows, NUM_ROWS).temperature == pytest.approx(0.1 / 13.8, rel=0.01)
