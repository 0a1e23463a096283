"""Which settings of the evolution cannot work, alone or together."""

from typing import Any


def settings_problems(evolution: Any) -> list[str]:
    """What is wrong with the arguments of an `EvolutionCallback`, a line each."""
    found = []
    for name in ("seed_epochs", "epochs_per_round"):
        if getattr(evolution, name) < 1:
            found.append(f"evolution.{name}: got {getattr(evolution, name)}; need at least 1")
    if evolution.min_steps is not None and evolution.min_steps < 0:
        found.append(f"evolution.min_steps: got {evolution.min_steps}; need 0 or more")
    if evolution.max_rounds < 0:
        found.append(f"evolution.max_rounds: got {evolution.max_rounds}; need 0 or more")
    if evolution.folds < 0 or evolution.folds == 1:
        found.append(f"evolution.folds: got {evolution.folds}; need 0 or at least 2")
    if evolution.folds == 0 and evolution.rule.needs_folds:
        found.append(
            f"evolution.folds: got 0 with {type(evolution.rule).__name__}, which calibrates on them; set 2 or more"
        )
    if not 0 < evolution.min_gain < 1:
        found.append(f"evolution.min_gain: got {evolution.min_gain}; need a share in (0, 1)")
    if evolution.stop_by not in ("rule", "forecast"):
        found.append(f"evolution.stop_by: got {evolution.stop_by!r}; use rule or forecast")
    return found
