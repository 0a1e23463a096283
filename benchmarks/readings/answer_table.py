"""The table of the judge's own answer: what it orders without a label, and what it adds to a head."""

import numpy as np

from benchmarks.readings.grouping import Settings, blocks_of, names
from benchmarks.shared.bootstrap import Estimate, accuracies
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Run


def answer_table(results: Settings) -> str:
    """One line for each number of labels: the answer alone, `[mean, judge]`, and both together."""
    rows = []
    for where, parts in results.items():
        runs = [*parts.get("answers", {}).values()]
        for size in runs[0]["sizes"] if runs else ():

            def models(run: Run, size: str = size) -> list[str]:
                own = run["sizes"][size]["credit"]
                return [run["answer"], own["usual"], own["with_answer"]]

            mean, drawn = accuracies(blocks_of(runs, models))
            labels = np.mean([run["sizes"][size]["labels"] for run in runs])
            figures = [Estimate.of(float(mean[i]), drawn[:, i]) for i in range(3)]
            pairs = ((2, 1), (0, 1))
            gaps = [Estimate.of(float(mean[i] - mean[j]), drawn[:, i] - drawn[:, j]) for i, j in pairs]
            rows.append([*names(where), str(round(labels)), str(len(runs)), *map(str, [*figures, *gaps])])
    header = "data|body|labels|runs|answer, no label used|`[mean, judge]`|with the answer|with minus without"
    return table([*header.split("|"), "answer minus `[mean, judge]`"], rows)
