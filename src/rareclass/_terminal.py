"""What the commands print: tables and lines, and progress while something works."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rareclass.masking import masked, masked_values

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
        made.add_row(*(Text(masked(str(cell))) for cell in line))
    console().print(made)


def lines(texts: Sequence[str]) -> None:
    """Print lines as they are."""
    for text in texts:
        console().print(masked(text), markup=False)


def status(name: str, text: str) -> None:
    """Print one line of something that runs beside others, with its name in front; at once, also into a pipe."""
    print(f"{name:<9} {masked(text)}", flush=True)


def dump(value: Any) -> None:
    """Print JSON, for other programs."""
    from rareclass.core.jsonable import dumps, jsonable  # NumPy, which `rareclass --help` does without

    sys.stdout.write(dumps(masked_values(jsonable(value)), indent=1) + "\n")


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
        text = f"{stamp}  [bold]{escape(step)}[/bold]  {escape(masked(message))}"
        if not self.live or message.startswith("warning: "):  # a warning stays above the live line
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


def _transfer(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a related domain lent, and what became of it; nothing where nothing was asked for."""
    lent = found.get("transfer")
    if not lent:
        return []
    size = f" ({lent['rows']:,} rows, {lent['positives']:,} rare)" if "rows" in lent else ""
    note = f"; {lent['note']}" if lent.get("note") else ""
    return [("transfer", f"{lent['source']}{size}: {lent['reason']}{note}")]


def summary(found: Mapping[str, Any], details: Mapping[str, Any] | None = None) -> None:
    """Print what a run found: what is rare, what was tried, what won, the threshold, the money and the verdict.

    found : summary.json; details : run.json, for the money and the untuned threshold
    """
    metrics, rows, share = found["metrics"], found["rows"], found["prevalence"]
    positives, champion = found.get("positives", {}), found.get("champion_metrics")
    counts = ", ".join(
        f"{name} {rows[name]:,}" + (f" ({positives[name]:,} rare)" if name in positives else "") for name in rows
    )
    point = found["operating_points"]["default"] if found.get("detection") else None
    facts = (
        [
            ("regime", _regime(found)),
            ("rows", counts),
            ("alerts", point["message"]),
            ("agreement", found["detection"]["agreement_line"]),
            ("exchange", found["detection"]["uniformity_line"]),
            *_transfer(found),
            *([("AP", _interval(metrics, "ap"))] if metrics.get("ap") is not None else []),
        ]
        if point is not None
        else [
            (
                "rare",
                f"{_percent(share.get('all', share.get('test')))} of the rows; regime: {found.get('regime', '-')}",
            ),
            ("rows", counts),
            ("tried", _tried(found)),
            ("won", _won(found)),
            *_transfer(found),
            ("resample?", found["should_resample"]["sentence"].removeprefix("Should I resample? ")),
            (
                "AP",
                (
                    f"{_interval(metrics, 'ap')}, {_lift(metrics.get('ap'), share.get('test'))}; "
                    f"ROC-AUC {_number(metrics.get('roc_auc'))}"
                ),
            ),
            (
                "threshold",
                f"{_number(metrics.get('threshold'), 4)}: recall {_number(metrics.get('recall'))}, precision "
                f"{_number(metrics.get('precision'))}, "
                f"F1 {_number(metrics.get('f1'))}, F2 {_number(metrics.get('f2'))}",
            ),
            *_details(details or {}, metrics),
        ]
    )
    if champion:
        facts.append(("champion", f"AP {_interval(champion, 'ap')} on the same rows, less those it was trained on"))
    elif found.get("champion_left_out"):
        facts.append(("champion", f"{found['champion']} cannot be compared, because {found['champion_left_out']}"))
    if crossed := found.get("cross_fitting"):
        facts.append(
            (
                "judged by",
                (
                    f"{crossed['reason']}, {crossed['positives']:,} of them rare; "
                    f"AP {_interval(_flat(crossed['metrics']['ap']), 'ap')}"
                ),
            )
        )
    facts += [("gate", reason) for reason in found["gate"]["reasons"]]
    facts += [("next", step) for step in found["gate"].get("next", ())]
    out = console()
    out.print(f"\n[bold]{found['model']}[/bold]  {_verdict(found)}")
    for name, text in facts:
        out.print(f"  {name:<11} {text}", markup=False)
    table(
        "",
        ("candidate", "AP", "interval", "difference to candidate 0", "fit s"),
        [_candidate(each, found["selected"]) for each in found["candidates"]],
    )


def replayed(replay: Mapping[str, Any]) -> None:
    """Print what the loop did and what it cost beside its two peers, with the count of positives behind it.

    replay : replay.json
    """
    money, periods = replay["money"], replay["periods"]
    rows, positives = (sum(period[key] for period in periods) for key in ("rows", "positives"))
    kinds = [action["kind"] for action in replay["actions"]]
    did = (
        ", ".join(f"{kind} {kinds.count(kind)}" for kind in dict.fromkeys(kinds)) or "nothing: the model was left alone"
    )
    said = [
        f"{replay['name']}: {rows:,} rows in {len(periods)} periods, {positives:,} labelled positives",
        f"actions: {did}",
    ]
    said.append(f"cost: {money['ours']:,.2f} {money['currency']}")
    peers = {
        "never": "never retraining",
        "weekly": "retraining every week",
        "waited": f"waiting for {money.get('waited_for')} positives, then retraining every week",
    }
    for peer, words in peers.items():
        if money.get(peer) is not None:
            saved = money[f"saved_vs_{peer}"]
            less = f"{abs(saved):,.2f} {money['currency']} {'saved' if saved >= 0 else 'lost'}"
            said.append(f"against {words} ({money[peer]:,.2f}): {less}")
    lines(said)


def _regime(found: Mapping[str, Any]) -> str:
    known = sum(found["positives"][part] for part in ("train", "validation", "test"))
    labels = f"{known} known row(s) of the rare class" if found["labelled"] else "no row is labelled"
    return (
        f"{found['regime']}: {labels}; a fixed ensemble of detectors ({', '.join(found['detection']['members'])}), "
        "chosen by no label"
    )


def _flat(ap: Mapping[str, Any]) -> dict[str, Any]:
    return {"ap": ap["value"], "ap_low": ap["low"], "ap_high": ap["high"]}


def _verdict(found: Mapping[str, Any]) -> str:
    colour = {"approve": "green", "reject": "red"}.get(found["gate"]["verdict"], "yellow")
    role = f", {found['role']}" if found.get("role") else ""
    version = f"version {found['version']}{role}" if found.get("version") else "not registered"
    return f"[{colour}]{found['gate']['verdict']}[/{colour}]: {version}"


def _tried(found: Mapping[str, Any]) -> str:
    if found["forced"]:
        return "one recipe, forced by search.only: nothing says whether it beats the untouched learner"
    number = len(found["candidates"])
    return f"{number} candidates, paired on the same rows" if number > 1 else "1 candidate was finished"


def _won(found: Mapping[str, Any]) -> str:
    """What was selected, and whether it is significantly better than candidate 0."""
    tried, name = found["candidates"], found["selected"]
    if found["forced"]:
        return f"{name}, because it was forced"
    winner: Mapping[str, Any] = next((each for each in tried if each["name"] == name), {})
    if tried and name == tried[0]["name"]:
        return f"{name}, candidate 0" + ("" if len(tried) == 1 else ": no other is significantly better")
    difference = winner.get("difference") or {}
    sure = "significantly" if winner.get("significant") else "not significantly"
    return (
        f"{name}: {_signed(difference)} {found.get('selected_by', 'AP')} against candidate 0, {sure} better. "
        f"{winner.get('reason', '')}"
    ).rstrip()


def _details(details: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    evaluation = details.get("evaluation", {})
    missed = (evaluation.get("untuned", {}).get("missed_but_tuned_finds") or {}).get("value")
    facts = [("untuned", f"0.5 would miss {missed:.0f} of the positives that this threshold finds")] if missed else []
    money = evaluation.get("money")
    if money:
        unit = money["currency"]
        cost, nothing, everything = (
            money[key]["value"] for key in ("cost", "saving_vs_nothing", "saving_vs_everything")
        )
        text = (
            f"{cost:,.2f} {unit} on the test rows; saves {nothing:,.2f} against doing nothing, {everything:,.2f} "
            "against flagging everything"
        )
        facts.append(("money", f"{text} ({money['note']})" if money.get("note") else text))
    elif metrics.get("cost") is not None:
        facts.append(("cost", f"{metrics['cost']:,.2f} on the test rows"))
    return facts + _points(details) + _thinned(evaluation, details.get("config", {}))


def _points(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Operating points beside the one that decides, and constraints that cannot be met."""
    named = details.get("points", {})
    return [
        ("point" if point["feasible"] else "infeasible", f"{name}: {point['message']}")
        for position, (name, point) in enumerate(named.items())
        if position or not point["feasible"]
    ]


def _thinned(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same decisions on the thinned test, where one was asked for."""
    found = evaluation.get("thinned")
    if not found:
        return []
    said = ", ".join(
        f"{name.upper() if name == 'f2' else name} {_number(found[name]['value'])}"
        for name in ("recall", "precision", "f2")
    )
    return [(f"at 1:{config['evaluate']['test_ratio']:g}", f"{said}: the test thinned, as results are often published")]


def _candidate(each: Mapping[str, Any], selected: str) -> tuple[str, ...]:
    difference = each.get("difference")
    paired = (
        "-"
        if not difference or difference["value"] == 0
        else _signed(difference) + (" *" if each.get("significant") else "")
    )
    seconds = each.get("fit_seconds")
    return (
        ("> " if each["name"] == selected else "  ") + each["name"],
        _number(each["ap"]),
        f"[{_number(each['ap_low'])}, {_number(each['ap_high'])}]",
        paired,
        "-" if seconds is None else f"{seconds:.1f}",
    )


def _signed(difference: Mapping[str, Any]) -> str:
    value, low, high = (difference.get(key) for key in ("value", "low", "high"))
    return (
        "-"
        if value is None
        else f"{value:+.3f} [{'-' if low is None else f'{low:+.3f}'}, {'-' if high is None else f'{high:+.3f}'}]"
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def _interval(values: Mapping[str, Any], name: str) -> str:
    return f"{_number(values.get(name))} [{_number(values.get(f'{name}_low'))}, {_number(values.get(f'{name}_high'))}]"


def _lift(ap: float | None, prevalence: float | None) -> str:
    return "no lift" if not ap or not prevalence else f"{ap / prevalence:.1f} times the prevalence"
