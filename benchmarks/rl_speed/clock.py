"""Seconds of the phases of an RL step; imported in the environments of TRL too, so it needs torch alone."""

import time

PHASES = ("rollout", "scoring", "update", "between")


class StepClock:
    """Seconds of each phase of each step, and counts of the work done in it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._open: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "between", time.perf_counter()

    def enter(self, phase: str) -> None:
        """From now on it is this phase, until the next call."""
        now = time.perf_counter()
        self._open[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def count(self, name: str, number: float) -> None:
        """Add to a count of this step."""
        self._open[name] = self._open.get(name, 0.0) + number

    def count_optimizer_steps(self) -> None:
        """Count the steps of every optimiser there is."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda *_: self.count("optimizer_steps", 1))

    def end_step(self) -> None:
        """The step is over; what follows belongs to the next one."""
        self.enter("between")
        self.steps.append({**self._open, "total": sum(self._open[phase] for phase in PHASES)})
        self._open = dict.fromkeys(PHASES, 0.0)
