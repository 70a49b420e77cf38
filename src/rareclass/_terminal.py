"""What the commands print: tables and lines, and progress while something works."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """A console that fits where it writes: colours and width of a terminal, plain and unwrapped otherwise."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else 160
    )


def table(title: str, head: Sequence[str], lines: Sequence[Sequence[Any]], *, left: int = 1) -> None:
    """Print a table; the first ``left`` columns are text, the others are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(head):
        made.add_column(name, justify="left" if position < left else "right", overflow="fold")
    for line in lines:
        made.add_row(*(Text(str(cell)) for cell in line))
    console().print(made)


def lines(texts: Sequence[str]) -> None:
    """Print lines as they are."""
    for text in texts:
        console().print(text, markup=False)


def dump(value: Any) -> None:
    """Print JSON, for other programs."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


class Steps:
    """Progress of a long job: on a terminal one live line, else a line per step, on stderr."""

    def __init__(self, quiet: bool) -> None:
        self.out = console(stderr=True)
        self.quiet = quiet
        self.live = not quiet and self.out.is_terminal
        self.start = time.monotonic()
        self.step = ""
        self.status: Any = None

    def __call__(self, step: str, message: str = "") -> None:
        """Say which step is at what."""
        from rich.markup import escape

        if self.quiet:
            return
        stamp = f"[dim]{time.monotonic() - self.start:6.1f}s[/dim]"
        text = f"{stamp}  [bold]{escape(step)}[/bold]  {escape(message)}"
        if not self.live:
            self.out.print(text)
        elif step != self.step and self.step:
            self.out.print(f"{stamp}  [green]done[/green]  {escape(self.step)}")
        if self.status is not None:
            self.status.update(text)
        self.step = step


@contextmanager
def steps(*, quiet: bool = False) -> Iterator[Steps]:
    """Show the progress of the block."""
    shown = Steps(quiet)
    if not shown.live:
        yield shown
        return
    with shown.out.status("starting") as status:
        shown.status = status
        yield shown


def summary(found: Mapping[str, Any]) -> None:
    """Print what a run found: what is rare, what was tried, what won, the threshold, the money and the verdict."""
    out = console()
    metrics, rows, share = found["metrics"], found["rows"], found["prevalence"]
    positives = found.get("positives", {})
    out.print()
    out.print(f"[bold]{found['model']}[/bold]  {_verdict(found)}")
    counts = ", ".join(
        f"{name} {rows[name]:,} ({positives[name]:,} rare)" if name in positives else f"{name} {rows[name]:,}"
        for name in rows
    )
    out.print(f"  rows        {counts}; rare {_percent(share.get('all', share.get('test')))}")
    tried = found["candidates"]
    winner = next((each for each in tried if each["name"] == found["selected"]), None)
    why = f": {winner['reason']}" if winner and winner.get("reason") else ""
    out.print(
        f"  tried       {len(tried)} candidates, paired on the same rows; selected {found['selected']}{why}",
        markup=False,
    )
    out.print(
        f"  AP          {_interval(metrics, 'ap')}  ({_lift(metrics.get('ap'), share.get('test'))})  ROC-AUC {_number(metrics.get('roc_auc'))}",
        markup=False,
    )
    out.print(
        f"  threshold   {_number(metrics.get('threshold'), 4)}  recall {_number(metrics.get('recall'))}, precision {_number(metrics.get('precision'))}, "
        f"F1 {_number(metrics.get('f1'))}, F2 {_number(metrics.get('f2'))}"
    )
    if metrics.get("cost") is not None:
        out.print(f"  cost        {metrics['cost']:,.2f} on the test rows")
    champion = found.get("champion_metrics")
    if champion:
        out.print(
            f"  champion    AP {_interval(champion, 'ap')} on the same rows, less those it was trained on", markup=False
        )
    for reason in found["gate"]["reasons"]:
        out.print(f"  gate        {reason}", markup=False)
    table("", ("candidate", "AP", "interval", "fit s"), [
        (("* " if each["name"] == found["selected"] else "  ") + each["name"], _number(each["ap"]), f"[{_number(each['ap_low'])}, {_number(each['ap_high'])}]",
         f"{each['fit_seconds']:.1f}" if each.get("fit_seconds") is not None else "-")
        for each in tried
    ])  # fmt: skip


def _verdict(found: Mapping[str, Any]) -> str:
    colour = {"approve": "green", "reject": "red"}.get(found["gate"]["verdict"], "yellow")
    version = f"version {found['version']}" if found.get("version") else "not registered"
    return f"[{colour}]{found['gate']['verdict']}[/{colour}]  {version}, {found['status'].replace('_', ' ')}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def _interval(values: Mapping[str, Any], name: str) -> str:
    return f"{_number(values.get(name))} [{_number(values.get(f'{name}_low'))}, {_number(values.get(f'{name}_high'))}]"


def _lift(ap: float | None, prevalence: float | None) -> str:
    return "no lift" if not ap or not prevalence else f"{ap / prevalence:.1f} times the prevalence"
