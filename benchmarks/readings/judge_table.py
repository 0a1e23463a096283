"""The table of the pairwise judge: evolution with it, and the same without."""

from functools import partial

import numpy as np

from benchmarks.readings.grouping import DELIVERED, Settings, blocks_of, names
from benchmarks.shared.bootstrap import Estimate, Floats, accuracies, share_of
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Run

JUDGED = ("seed", "alone", "alone_last", "judged", "judged_last", "standard_all", "ours_all", "judge")
"""Models of a run with and without a pairwise judge, in this order."""


def judge_table(results: Settings) -> str:
    """One line for each share of labels and rule: evolution with a pairwise judge, and the same without."""
    rows = []
    for where, parts in results.items():
        for part in ("judge_5", "judge_15"):
            runs = [*parts.get(part, {}).values()]
            for rule, name in (("calibrated", "`CalibratedRule`"), ("keep_all", "keep all")) if runs else ():
                mean, drawn = accuracies(blocks_of(runs, partial(_judged_models, rule=rule)))

                def difference(first: str, second: str, mean: Floats = mean, drawn: Floats = drawn) -> str:
                    i, j = JUDGED.index(first), JUDGED.index(second)
                    return str(Estimate.of(float(mean[i] - mean[j]), drawn[:, i] - drawn[:, j]))

                gap = [JUDGED.index(model) for model in ("seed", "judged", "ours_all")]
                share = share_of(mean[gap], drawn[:, gap])
                right = [np.mean([run["conditions"][f"{c}_{rule}"]["pool_right"][0] for run in runs]) for c in _WHO]
                rows.append(
                    [
                        *(*names(where), f"{part.removeprefix('judge_')} %", name, str(len(runs))),
                        f"{np.mean([run['is_used'] for run in runs]):.0%}",
                        *(f"{mean[JUDGED.index(model)]:.3f}" for model in ("seed", "judge")),
                        f"{right[0]:.3f}, {right[1]:.3f}",
                        *(difference(model, "seed") for model in JUDGED[1:5]),
                        *("undefined" if share is None else str(share), difference("judged", "standard_all")),
                    ]
                )
    header = "data|body|labels|rule|runs|judge used in|seed model|judge by itself|pool labels right, without and with"
    gains = "gain without: delivered|last round|gain with judge: delivered|last round"
    more = "share of the gap, with judge|delivered with judge minus standard with all labels"
    return table([*header.split("|"), *gains.split("|"), *more.split("|")], rows)


_WHO = ("ours", "judge")


def _judged_models(run: Run, rule: str) -> list[str]:
    """Credits of `JUDGED`."""
    found = [run["conditions"][f"{who}_{rule}"] for who in _WHO]
    ends = [(one["credit"][one["delivered"][DELIVERED]], one["credit"][-1]) for one in found]
    seed = found[0]["credit"][0]
    return [seed, *ends[0], *ends[1], run["standard_all"], run["ours_all"], run["judge_alone"]]
