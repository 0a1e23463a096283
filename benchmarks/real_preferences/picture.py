"""Draw `docs/pictures/study.svg`: seed model, delivered model and all labels in every cell of the study.

python benchmarks/study_picture.py
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from study_tables import Closed, Estimate, Results, by_cell, closed_in, floors_of
from tables import DOCS, study_results

INK, MUTED, ACCENT, GOLD = "#1f2933", "#52606d", "#1f6fb2", "#b7791f"
MODELS = (("seed_model", "seed model", MUTED, "o"), ("delivered", "delivered", ACCENT, "D"))
LAST = ("all_labels", "all labels", GOLD, "s")


def draw_study(results: Results) -> Figure:
    """A row for each cell: three models with their intervals, and the higher of the floors fitted on all labels."""
    cells = {name: closed_in(conditions, "ours") for name, conditions in results.items()}
    known: dict[str, Closed] = {name: found[1] for name, found in cells.items() if found}
    figure, axes = plt.subplots(figsize=(7.5, 0.75 + 0.62 * len(known)), layout="constrained")
    for row, (name, closed) in enumerate(known.items()):
        for place, (model, label, colour, marker) in enumerate((*MODELS, LAST)):
            found: Estimate = getattr(closed, model)
            error = [[found.mean - found.low], [found.high - found.mean]]
            style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.4, "capsize": 0}
            axes.errorbar(found.mean, row + 0.2 * (place - 1), xerr=error, label=None if row else label, **style)
        if floors := floors_of(results[name]):
            floor = max(floors["longer"], floors["bag_of_words_all_labels"])
            axes.plot([floor, floor], [row - 0.34, row + 0.34], color=INK, linewidth=1.2, linestyle=":")
    axes.plot([], [], color=INK, linewidth=1.2, linestyle=":", label="higher floor")
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel("accuracy on the test pairs, 95 % interval")
    axes.grid(axis="x", color="#e4e9ef")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=DOCS / "pictures" / "study.svg", help="an .svg, or a .png to look at"
    )
    args = parser.parse_args()
    # The same results give the same file: no date, and ids that do not change.
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "ser-lightning", "text.color": INK, "axes.labelcolor": INK})
    metadata = {"Date": None} if args.out.suffix == ".svg" else None
    draw_study(by_cell(study_results())).savefig(args.out, facecolor="white", metadata=metadata, dpi=150)
    print(args.out)


if __name__ == "__main__":
    main()
