"""How the command line shows progress, hits and tables."""

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
    from chamfer.indexing.build.builder import BuildProgress

_WIDEST = 1000
_MANY = 6  # with fewer columns, cells that wrap read better
messages = Console(stderr=True)
data = Console()


@contextmanager
def build_progress() -> Iterator[Callable[[BuildProgress], None]]:
    """A progress bar on standard error; yields the callback that a build takes."""
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
    """A progress bar on standard error; yields the callback that takes step, steps and loss."""
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=messages) as bars:
        task = bars.add_task("train", total=None, loss="?")
        yield lambda step, steps, loss: bars.update(task, completed=step, total=steps, loss=f"{loss:.4f}")


@contextmanager
def count_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields the callback that takes (done, total)."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def show_hits(hits: Sequence[Hit], text_width: int = 300) -> None:
    """Hits as people read them."""
    for hit in hits:
        head = Text(f"{hit.rank:>3}. ", style="bold")
        head.append(hit.document.title or hit.doc_id, style="bold")
        head.append(f"   {hit.score:.4f}   {hit.doc_id}", style="dim")
        data.print(head)
        text = " ".join(hit.document.text.split())
        data.print(Text("     " + (text[:text_width] + "…" if len(text) > text_width else text)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on standard output; numbers stand right. Where it is too wide, its lines run over: no digit is lost."""
    out = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        out.add_row(*[Text(str(cell)) for cell in row])
    if len(columns) <= _MANY:
        data.print(out)
        return
    widest = Measurement.get(data, data.options.update(max_width=_WIDEST), out).maximum
    Console(width=max(data.width, widest)).print(out)


def readable_bytes(n: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
