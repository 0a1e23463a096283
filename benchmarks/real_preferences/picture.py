"""The picture of the study: seed model, delivered model and all labels in every setting."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.real_preferences.tables import Closed, Estimate, Settings, baselines_of, closed_in
from ser_lightning.report.figures import ACCENT, GOLD, INK, MUTED, PALE

MODELS = (("seed_model", "seed model", MUTED, "o"), ("delivered", "delivered", ACCENT, "D"))
LAST = ("all_labels", "all labels", GOLD, "s")


def draw_study(results: Settings) -> Figure:
    """A row for each setting: three models with their intervals, and the higher of the baselines."""
    found = {name: closed_in(conditions, "ours") for name, conditions in results.items()}
    known: dict[str, Closed] = {name: pair[1] for name, pair in found.items() if pair}
    figure, axes = plt.subplots(figsize=(7.5, 0.75 + 0.62 * len(known)), layout="constrained")
    for row, (name, closed) in enumerate(known.items()):
        for place, (model, label, colour, marker) in enumerate((*MODELS, LAST)):
            estimate: Estimate = getattr(closed, model)
            error = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
            style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.4, "capsize": 0}
            axes.errorbar(estimate.mean, row + 0.2 * (place - 1), xerr=error, label=None if row else label, **style)
        if baselines := baselines_of(results[name]):
            higher = max(baselines["longer"], baselines["bag_of_words_all_labels"])
            axes.plot([higher, higher], [row - 0.34, row + 0.34], color=INK, linewidth=1.2, linestyle=":")
    axes.plot([], [], color=INK, linewidth=1.2, linestyle=":", label="higher baseline")
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel("accuracy on the test pairs, 95 % interval")
    axes.grid(axis="x", color=PALE)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure
