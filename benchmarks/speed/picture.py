"""The picture of the speed benchmark: pairs a second of every way, as a share of ours."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.speed.tables import TASKS, TITLES, Speeds
from ser_lightning.report.figures import ACCENT, GOLD, MUTED

COLOURS = {"hh": ACCENT, "ultrafeedback": GOLD}


def draw_speed(found: Speeds) -> Figure:
    """A panel for each task, a bar for each way and profile."""
    figure, grid = plt.subplots(1, 2, figsize=(7.5, 2.9), sharex=True, layout="constrained")
    height = 0.8 / len(found)
    for axes, (task, (title, other)) in zip(grid, TASKS.items(), strict=True):
        ways = {"ours": "ours", "padded": "ours, padded", "best": f"{other}, best", "usual": f"{other}, 8 random"}
        for number, (profile, tasks) in enumerate(found.items()):
            rates = [tasks[task][way]["pairs_per_second"] for way in ways]
            places = [i + (number - (len(found) - 1) / 2) * height for i in range(len(ways))]
            style = {"height": height * 0.92, "color": COLOURS[profile], "label": TITLES[profile]}
            bars = axes.barh(places, [rate / rates[0] for rate in rates], **style)
            axes.bar_label(bars, [f"{rate / rates[0]:.2f}" for rate in rates], padding=3, fontsize=9, color=MUTED)
        axes.set_yticks(range(len(ways)), list(ways.values()))
        axes.invert_yaxis()
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xlim=(0, 1.15), xlabel="pairs a second, as a share of ours")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure
