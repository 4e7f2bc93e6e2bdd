"""How fits fare while they train: history, best bound, patience, and the bar."""

import contextlib
from typing import Any

import numpy as np

# steps in a row with non-finite gradients after which training gives up
MAX_SKIPPED_RUN = 25


class Course:
    """How one fit has fared: its history, its best bound, and whether it goes on.

    Attributes:
        history: for each epoch its figures.
        error: what the fit ended with, if so.
        active: whether it goes on.
        best_epoch: of this phase, or the one before it.
        best_bound: on the validation cells, nats per cell; -inf before there is one.
    """

    def __init__(self, patience: int, learning_rate: float | None):
        self.patience = patience
        # for messages; an optimizer of one's own has its own
        self.rate = "" if learning_rate is None else f" (it was {learning_rate:g})"
        self.history: list[dict[str, Any]] = []
        self.error: FloatingPointError | None = None
        self.start_phase(0)

    def start_phase(self, before: int) -> None:
        """Begin anew after so many epochs: no state is the best yet."""
        self.best_epoch, self.best_bound, self.waited = before, -np.inf, 0
        self.active = self.error is None

    @property
    def bound(self) -> float:
        """The best validation bound of the phase, or the latest before there is one."""
        if np.isneginf(self.best_bound) and self.history:
            return self.history[-1]["validation_bound"]
        return self.best_bound

    def see(
        self, number: int, phase: str, figures: dict[str, Any], seconds: float
    ) -> None:
        """Note the figures of an epoch, and stop where patience runs out.

        Args:
            number: of the epoch, from 1 on over all phases.
            phase: its name.
            figures: of `epochs.make_pass` and `make_look`; what is no figure for the
                history (longest_skipped_run, risen, better) is taken out.
            seconds: that it took.
        """
        skipped_run = figures.pop("longest_skipped_run")
        risen, better = figures.pop("risen"), figures.pop("better")
        if skipped_run >= MAX_SKIPPED_RUN:
            self.fail(
                f"found {skipped_run} steps in a row with non-finite gradients, "
                f"expected finite ones, lower the learning rate{self.rate}, use a "
                "library mean, or look for extreme counts"
            )
            return
        self.history.append(
            {"epoch": number, "phase": phase, **figures, "seconds": round(seconds, 4)}
        )
        if better:
            self.best_epoch, self.best_bound = number, figures["validation_bound"]
        # patience begins when the KL weight has risen
        self.waited = 0 if better or not risen else self.waited + 1
        if self.waited >= self.patience:
            self.active = False

    def end_phase(self) -> None:
        """Fail where the phase has left nothing to go on with."""
        if self.error is None and not np.isfinite(self.best_bound):
            self.fail(
                "found no finite validation bound in any epoch, expected one, lower "
                f"the learning rate{self.rate} or look for extreme counts"
            )

    def fail(self, message: str) -> None:
        """End with an error."""
        self.error, self.active = FloatingPointError(message), False


@contextlib.contextmanager
def progress_bar(show: bool, epochs: int):
    """A function to report an epoch to; a bar on standard error if `show`."""
    if not show:
        yield lambda phase, number, bound, rate: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    bar = Progress(
        TextColumn("{task.fields[phase]} epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left"),
        TimeLeft(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("fit", total=epochs, phase="", figures="compiling")

        def report(phase: str, number: int, bound: float, rate: float) -> None:
            figures = f"validation bound {bound:.2f}, {rate:,.0f} cells/s"
            bar.update(task, completed=number, phase=phase, figures=figures)

        yield report
