"""What a person sees while a run goes on: lines, and a live progress bar on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Report:
    """Lines on stdout, with a progress bar below them on a terminal.

    Args:
        active: False prints nothing.
    """

    def __init__(self, active: bool = True) -> None:
        self.console = Console(quiet=not active, highlight=False)
        self.bar: Progress | None = None
        self.with_bar = active and self.console.is_terminal
        self.task = TaskID(0)

    def line(self, text: str = "") -> None:
        """Print one line or more, as they are."""
        self.console.print(text, markup=False, soft_wrap=True)

    def pair(self, name: str, value: str) -> None:
        """Print a name and a value, aligned."""
        self.line(f"{name:<12}{value}")

    def start(self, done: int, steps: int) -> None:
        """Show the bar."""
        if self.with_bar:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("", total=steps, completed=done, losses="")
            self.bar.start()

    def advance(self, step: int, losses: str) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step, losses=losses)

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
