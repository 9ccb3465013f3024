"""Terminal output of the command line: messages, progress bars, hits and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from chamfer.core.types import Hit
    from chamfer.indexing.building.builder import BuildProgress
    from chamfer.indexing.building.corpus import Rejects
    from chamfer.indexing.collection.recall_report import ChannelRecall

_MAX_TABLE_WIDTH = 1000
_MAX_WRAPPED_COLUMNS = 6  # a table of so few columns stays readable when its cells wrap
messages = Console(stderr=True)
data = Console()


@contextmanager
def build_progress() -> Iterator[Callable[[BuildProgress], None]]:
    """A progress bar on standard error; yields a callback for BuildRun.progress."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: BuildProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, rate="")
            task = tasks[progress.stage]
            elapsed = bars.tasks[task].elapsed or 0.0
            rate = f"{progress.done / elapsed:.0f}/s" if elapsed > 1 else ""
            bars.update(task, completed=progress.done, total=progress.total, rate=rate)

        yield show


@contextmanager
def training_progress() -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar on standard error; yields a callback that takes (step, steps, loss)."""
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=messages) as bars:
        task = bars.add_task("train", total=None, loss="?")
        yield lambda step, steps, loss: bars.update(task, completed=step, total=steps, loss=f"{loss:.4f}")


@contextmanager
def count_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields a callback that takes (done, total)."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def show_hits(hits: Sequence[Hit], text_width: int = 300) -> None:
    """Prints hits for people: rank, title, score, id, and the beginning of the text."""
    for hit in hits:
        head = Text(f"{hit.rank:>3}. ", style="bold")
        head.append(hit.document.title or hit.doc_id, style="bold")
        head.append(f"   {hit.score:.4f}   {hit.doc_id}", style="dim")
        data.print(head)
        text = " ".join(hit.document.text.split())
        data.print(Text("     " + (text[:text_width] + "…" if len(text) > text_width else text)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table on standard output; all columns but the first are right-aligned.

    A table of many columns is printed at full width even if the terminal is narrower, so that no digit is cut off.
    """
    grid = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*[Text(str(cell)) for cell in row])
    if len(columns) <= _MAX_WRAPPED_COLUMNS:
        data.print(grid)
        return
    full_width = Measurement.get(data, data.options.update(max_width=_MAX_TABLE_WIDTH), grid).maximum
    Console(width=max(data.width, full_width)).print(grid)


def warn_of_rejects(rejects: Rejects) -> None:
    """Says how many lines of a corpus were skipped, and where they are; prints nothing if there were none."""
    if rejects.count:
        messages.print(
            f"{rejects.count:,} lines were skipped; the lines and the reasons are in {rejects.path}", style="yellow"
        )


def recall_sentence(recall: ChannelRecall, n_documents: int) -> str:
    """The measured recall of a channel; with the expected one where the collection is larger than the sample."""
    queries = f"{recall.queries} {'generated ' if recall.made_up else ''}queries"
    larger = n_documents > recall.documents
    expected = f"; expected over {n_documents:,} documents: {recall.at(n_documents):.1%}" if larger else ""
    return (
        f"found {recall.recall:.1%} of the exact MaxSim top 10 among {recall.depth} candidates, measured with "
        f"{queries} over {recall.documents:,} documents{expected}"
    )


def readable_bytes(n: float) -> str:
    """A size in binary units: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
