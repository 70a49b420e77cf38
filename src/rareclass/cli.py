"""The command line: every command a few lines over one service. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

from rareclass import _terminal as terminal
from rareclass import logs
from rareclass.errors import ConfigError, InputError, RareclassError, nearest
from rareclass.masking import masked
from rareclass.services.actor import named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rareclass.config import Config

_LOG = logging.getLogger(__name__)

app = typer.Typer(
    name="rareclass",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rare-class models: train, judge, register, serve, watch with late labels, repair.",
    epilog="Start with: rareclass diagnose DATA --target COLUMN, then rareclass run -c CONFIG --out DIR",
)
labels_app = typer.Typer(no_args_is_help=True, help="Late ground truth.", rich_markup_mode="markdown")
app.add_typer(labels_app, name="labels")

ConfigOption = Annotated[
    str,
    typer.Option(
        "-c", "--config", metavar="CONFIG", help="YAML or JSON configuration; `rareclass schema` lists the settings."
    ),
]
MaybeConfig = Annotated[
    str | None,
    typer.Option("-c", "--config", metavar="CONFIG", help="Configuration that names the model and its registry."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=V", help="Override a setting, like `--set search.seconds=30`. May be repeated."),
]
LogFormatOption = Annotated[
    logs.LogFormat | None,
    typer.Option(
        "--log-format",
        metavar="text|json",
        help="Log as lines of text or as a JSON object a line; default: RARECLASS_LOG_FORMAT, else text.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made when absent.")]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help=(
            "MLflow registry of `models:/` and `runs:/` names; default: the configuration's, else MLFLOW_TRACKING_URI."
        ),
    ),
]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, only the result.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the ledger.")]
ActorOption = Annotated[
    str | None,
    typer.Option(
        "--actor",
        metavar="NAME",
        help="Who; default: the account of this process, which is recorded beside a name that is given.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rareclass {version('rareclass')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Rare-class models: train, judge, register, serve, watch with late labels, repair."""


def _config(path: str, overrides: Sequence[str] | None = None) -> Config:
    from rareclass import config

    return config.load(path, overrides or ())


def _stored(path: str, overrides: Sequence[str] | None = None) -> Config:
    """A configuration whose store answers, waited for as long as `store.wait` says."""
    from rareclass.services.admin import backup

    return backup.ready(_config(path, overrides))


def _trainable(path: str, overrides: Sequence[str] | None = None) -> Config:
    """A configuration whose candidates and objectives exist: said before the first row is read."""
    from rareclass.services.training import validate

    return validate.check(_config(path, overrides))


def _json(path: Path) -> Any:
    import json

    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _now() -> datetime:
    return datetime.now(UTC)


@app.command()
def diagnose(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="CSV, Parquet, folder, glob, URL or demo:NAME.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="COL", help="Column with the truth.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", metavar="COL", help="Column with the time a row was known.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", metavar="COL", help="Column naming who a row belongs to.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option("--positive", metavar="VALUE", help="Value of the target that is the rare class.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="COL", help="Column that is not a feature. May be repeated.")
    ] = None,
    config: MaybeConfig = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say how rare the rare class is, how hard it looks, and what would be tried.

    Example: `rareclass diagnose history.parquet --target fraud --time ts`
    """
    from rareclass.services.training import diagnose as service

    if config is not None:
        settings = _trainable(config, overrides)
    elif data is None or target is None:
        raise ConfigError("diagnose needs rows and their truth. Pass DATA --target COLUMN, or -c CONFIG")
    else:
        settings = service.settings_for(
            data, target=target, time=time, entity=entity, positive=positive, drop=drop or (), overrides=overrides or ()
        )
    with terminal.steps(quiet=quiet) as progress:
        found = service.diagnose(settings, progress=progress)
    if as_json:
        terminal.dump(found.to_json())
    else:
        terminal.lines(found.lines())
        if config is None:
            terminal.lines([f"next: rareclass init {data} --target {target}  writes a configuration to train with"])


@app.command()
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="CSV, Parquet, folder, glob or URL.")],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="COL", help="Column with the truth; asked for when it is left out."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Configuration to write; one that exists is left alone.")
    ] = Path("rareclass.yaml"),
) -> None:
    """Write a commented configuration drafted from the table: target, time, id, entity and amount are looked for.

    Example: `rareclass init transactions.parquet --target is_fraud --out my.yaml`
    """
    from rareclass.services.training import draft as service

    found = service.look(data)
    if target is None and found.targets and sys.stdin.isatty():
        terminal.lines([f"could be the truth: {each}" for each in found.targets[:5]])
        target = typer.prompt("which column is the truth?", default=found.targets[0].name)
    service.write(found, service.choose(found, target), out)
    terminal.lines(
        [f"wrote {out}: read it, then", f"  rareclass diagnose -c {out}", f"  rareclass run -c {out} --out out/first"]
    )


@app.command()
def run(
    config: ConfigOption,
    out: OutOption,
    overrides: SetOption = None,
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            metavar="local|kfp",
            help="This process, or the compiled pipeline under KFP's local runner: same steps, same result.",
        ),
    ] = "local",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train on this machine: ingest, diagnose, try, select, tune, judge once, refit, register, promote.

    Writes `DIR/summary.json` and `DIR/report.html`.
    Example: `rareclass run -c my.yaml --out out --set search.seconds=30`
    """
    from rareclass.errors import unknown

    settings = _trainable(config, overrides)
    if runner not in ("local", "kfp"):
        raise unknown("runner", runner, ("local", "kfp"), "--runner")
    with terminal.steps(quiet=quiet) as progress:
        if runner == "kfp":
            from rareclass.services.kubeflow import local

            summary = local.run(settings, out, progress=progress)
        else:
            from rareclass._memory import give_back_arrays
            from rareclass.services.training import run as service

            give_back_arrays()
            summary = service.run(settings, out, progress=progress)
    if as_json:
        terminal.dump(summary)
        return
    terminal.summary(summary, _json(out / "run.json"))
    terminal.lines(
        [
            f"  model       {summary['uri']}",
            f"  report      {out / 'report.html'}",
            f"  MLflow      {settings.tracking.uri}",
        ]
    )
    if settings.promotion.mode == "manual" and summary["version"] and summary.get("role") != "champion":
        version = summary["version"]
        terminal.lines(
            [f"  next        version {version} waits for approval: rareclass approve -c CONFIG {version} --reason WHY"]
        )


@app.command()
def score(
    source: Annotated[str, typer.Argument(metavar="IN", help="Parquet or CSV file with the model's features.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Parquet or CSV file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="URI",
            help=(
                "`uri` of summary.json, `models:/NAME@champion`, `models:/NAME/3`; default: "
                "the configuration's champion."
            ),
        ),
    ] = None,
    config: MaybeConfig = None,
    overrides: SetOption = None,
    tracking_uri: TrackingOption = None,
    point: Annotated[
        str | None,
        typer.Option(
            "--point",
            metavar="NAME",
            help="Operating point that decides; default: serve.operating_point, else the version's own.",
        ),
    ] = None,
    reasons: Annotated[
        int,
        typer.Option("--reasons", min=0, metavar="N", help="Also write the N features that count most in each row."),
    ] = 0,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="Put before the names of the new columns.")
    ] = "",
    log: Annotated[
        bool,
        typer.Option(
            "--log", help="Also put the rows into the prediction log, where labels and monitoring find them (needs -c)."
        ),
    ] = False,
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="COL",
            help="With --log: column of request ids; default: `data.id`, else `request_id` is made.",
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Score a file of rows: adds the columns `score` and `decision`.

    Example: `rareclass score --model models:/flights@champion -c my.yaml new.parquet scored.parquet`
    """
    from rareclass.services.serving import score as service

    settings = _config(config, overrides) if config is not None else None
    service.check_paths(source, output)
    if log and (settings is None or model is not None):
        raise ConfigError("--log scores with the configuration's champion. Pass -c CONFIG, and no --model")
    if model is None and settings is None:
        raise ConfigError("no model was named. Pass --model URI, or -c CONFIG for its champion")
    columns = service.NewColumns(reasons, prefix)
    with terminal.steps(quiet=quiet) as progress:
        progress("score", source)
        if log and settings is not None:
            done = service.score_and_log(
                settings, source, output, now=_now(), point=point, id_column=id_column, columns=columns
            )
        else:
            uri = tracking_uri or (settings.tracking.uri if settings is not None else None)
            name = model if model is not None else service.champion_uri(settings)  # type: ignore[arg-type]
            serving = settings.serve.operating_point if settings is not None else None
            done = service.score(name, source, output, tracking_uri=uri, point=point, serving=serving, columns=columns)
    more = f", {done.logged:,} new in the prediction log of version {done.version}" if log else ""
    terminal.lines(
        [
            (
                f"{done.rows:,} rows, {done.flagged:,} flagged at {done.threshold:.4g} ({done.operating_point}), mean "
                f"score {done.mean_score:.4g}{more}: {done.output}"
            ),
            *done.notes,
        ]
    )


@app.command()
def serve(
    config: MaybeConfig = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="URI", help="Serve this version as it is, without registry and shadows."),
    ] = None,
    await_champion: Annotated[
        float | None,
        typer.Option(
            "--await-champion",
            metavar="SECONDS",
            help="Serve nothing: end as soon as there is a champion, or with an error after SECONDS (init containers).",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Processes that share the port; default: `serve.workers`."),
    ] = None,
    log_format: LogFormatOption = None,
    overrides: SetOption = None,
) -> None:
    """Serve the champion on this machine (Open Inference Protocol); SIGTERM drains the prediction log."""
    from rareclass.services.serving import serve as service

    logs.configure(log_format)
    if config is None and model is None:
        raise ConfigError("serve needs to know what. Pass -c CONFIG for its champion, or --model URI for one version")
    if await_champion is not None and (config is None or model is not None):
        raise ConfigError("--await-champion asks a registry. Pass it with -c CONFIG, and no --model")
    if workers is not None:
        overrides = [*(overrides or []), f"serve.workers={workers}"]
    if config is None:
        service.serve(service.settings_of(str(model), overrides or ()), model)
        return
    settings = _config(config, overrides)
    if await_champion is not None:
        terminal.lines([f"version {service.wait_for_champion(settings, await_champion)} is there"])
        return
    service.serve(settings, model)


@app.command()
def monitor(config: ConfigOption, log_format: LogFormatOption = None, overrides: SetOption = None) -> None:
    """Watch live quality and drift; `/metrics`, `/healthz`, `/labels` and a status page."""
    from rareclass.services.live import monitor_app as service

    logs.configure(log_format)
    service.serve(_config(config, overrides))


@app.command()
def listen(config: ConfigOption, log_format: LogFormatOption = None, overrides: SetOption = None) -> None:
    """Log what another server predicts: KServe's CloudEvents, predictions and labels from Kafka (`listen`)."""
    from rareclass.services.live import listen as service

    logs.configure(log_format)
    service.listen(_config(config, overrides))


@app.command()
def up(
    config: ConfigOption,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Only this: serve, monitor, listen, labels, triage, retention or backup. May be repeated.",
        ),
    ] = None,
    systemd: Annotated[
        Path | None,
        typer.Option("--systemd", metavar="DIR", help="Run nothing: write systemd units and timers to DIR."),
    ] = None,
    compose: Annotated[
        Path | None, typer.Option("--compose", metavar="FILE", help="Run nothing: write a compose file.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Run everything live on this machine: server, monitor, listener, label import, turns, retention, backup (`up`).

    What ends is started again; Ctrl-C stops everything in order, a second one kills what is left.
    """
    from rareclass.services.admin import units as files
    from rareclass.services.admin import up as service

    known = (*service.SERVICES, *service.JOBS)
    for name in only or ():
        if name not in known:
            raise ConfigError(
                f"--only '{name}' is nothing that runs.{nearest(name, known)} Choose from: {', '.join(known)}"
            )
    settings = _stored(config, overrides)
    path = str(Path(config).resolve()) if systemd is not None else config
    chosen = service.units(settings, path, overrides or (), only or ())
    if not chosen:
        raise ConfigError("nothing of that is set up. Set up.labels to what is imported, up.backup to where backups go")
    if systemd is not None:
        written = files.write_systemd(settings, chosen, systemd)
        link = (
            f"systemctl --user link {systemd.resolve()}/*.service {systemd.resolve()}/*.timer "
            f"{systemd.resolve()}/*.target"
        )
        start = f"systemctl --user start rareclass-{settings.name}.target"
        terminal.lines([*map(str, written), f"then: {link} && {start}"])
    if compose is not None:
        written_file = files.write_compose(settings, chosen, path, overrides or (), compose)
        terminal.lines([str(written_file), f"then: docker compose -f {written_file} up -d"])
    if systemd is not None or compose is not None:
        return
    service.check_ports(settings, chosen)
    raise typer.Exit(service.run(settings, chosen, say=terminal.status))


@app.command()
def migrate(
    config: ConfigOption,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long a database that does not answer is waited for.")
    ] = 0.0,
    overrides: SetOption = None,
) -> None:
    """Bring the store's tables to this version; doing it again changes nothing. Servers also do it when they start."""
    from rareclass.services.admin import backup as service

    terminal.lines([f"store at revision {service.migrate(_config(config, overrides), wait)}"])


@app.command()
def backup(
    config: ConfigOption,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Folder or object-store prefix, like s3://b/x.")],
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", min=1, help="Delete older backups of this model but N.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Write predictions, labels and the ledger of this model, as of one moment, to a new folder under DEST."""
    from rareclass.services.admin import backup as service

    folder, counts = service.backup(_stored(config, overrides), destination, _now(), keep=keep)
    terminal.lines([f"{folder}: " + ", ".join(f"{rows:,} {table}" for table, rows in counts.items())])


@app.command()
def restore(
    config: ConfigOption,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A backup, or a folder of backups: the newest.")],
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Put a backup's rows into the store where they are missing; doing it again changes nothing."""
    from rareclass.services.admin import backup as service

    with terminal.steps(quiet=quiet) as progress:
        done = service.restore(_stored(config, overrides), source, progress=progress)
    terminal.lines([f"{table}: {seen:,} rows, {new:,} new" for table, (seen, new) in done.items()])


@labels_app.command("import")
def labels_import(
    config: ConfigOption,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="CSV or Parquet with request_id and label (or the target column), or a SQL URL#TABLE."
        ),
    ],
    overrides: SetOption = None,
) -> None:
    """Import late ground truth; importing the same file again changes nothing."""
    from rareclass.services.live import labels as service

    report = service.import_labels(_stored(config, overrides), file, _now())
    terminal.lines(
        [
            (
                f"{report.inserted:,} new, {report.corrected:,} corrected, {report.unchanged:,} unchanged, "
                f"{report.unknown:,} waiting for their prediction"
            )
            + (f", {report.forgotten:,} refused: their rows were erased" if report.forgotten else "")
        ]
    )


@app.command()
def replay(config: ConfigOption, out: OutOption, overrides: SetOption = None, quiet: QuietOption = False) -> None:
    """Play months of history through the whole loop on a virtual clock and print the money saved."""
    from rareclass.services.live import replay as service

    with terminal.steps(quiet=quiet) as progress:
        played = service.replay(_trainable(config, overrides), out, progress=progress)
    terminal.replayed(played)


@app.command()
def evidently(
    config: ConfigOption,
    out: OutOption,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make Evidently's report on the newest live rows, keep it in MLflow, and let the monitor export its drift verdict.

    Writes `DIR/drift.html` and, with enough labelled positives, `DIR/quality.html`. Meant for a schedule.
    """
    from rareclass.services.live import evidently_report as service

    with terminal.steps(quiet=quiet) as progress:
        found = service.report(_stored(config, overrides), _now(), out, progress=progress)
    if as_json:
        terminal.dump(found.to_json())
        return
    drifted = f" ({', '.join(found.drifted)})" if found.drifted else ""
    terminal.lines(
        [
            (
                f"{len(found.drifted)} of {found.columns} columns drifted{drifted}, {found.rows:,} rows of version "
                f"{found.version}"
            ),
            *(f"  {name} {value:.4g}" for name, value in found.quality.items()),
            *(f"  page    {page}" for page in found.pages),
        ]
    )


@app.command()
def review(
    config: ConfigOption,
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="CSV or Parquet for the rows; without it they are printed.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Rows to look at per window, on average, instead of `review.budget`.")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(help="A moment (UTC) of the window to choose from, instead of the newest.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Choose nothing: say how wide the interval of AP would be at which budget.")
    ] = False,
    width: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="With --plan: the width that is wanted, like .2.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the rows to look at next, with known probabilities, from predictions that are in the store.

    Doing it again chooses the same rows; a larger budget adds to them. OUT has the rows without a label and an empty
    column for it: fill it in and import the file with `rareclass labels import`.
    """
    from rareclass.services.live import review as service

    settings = _stored(config, overrides)
    if plan:
        if out is not None or at is not None:
            raise InputError("--plan chooses nothing: leave out OUT and --at")
        planned = service.plan(settings, _now(), budget=budget, width=width)
        if as_json:
            terminal.dump(planned)
        else:
            terminal.lines(service.said_of_plan(settings, planned))
        return
    if width is not None:
        raise InputError("--width asks for a budget, and nothing is chosen then. Add --plan")
    if out is not None:
        service.writable(out)
    drawn = service.draw(settings, _now(), budget=budget, at=at)
    if out is not None:
        service.write(drawn, out)
    if as_json:
        terminal.dump(service.as_json(drawn))
    else:
        terminal.lines(service.said_of_draw(settings, drawn, out))


@app.command()
def triage(
    config: ConfigOption,
    act: Annotated[
        bool,
        typer.Option(
            "--act",
            help="Also do it, where the governor allows: re-threshold, recalibrate, retrain, promote, roll back.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output-file",
            metavar="FILE",
            help=(
                "Judge probation and challenger, reserve the repair that is due, and write it as JSON; exit code 0. "
                "For workflows: `repair` or `submit --repair` does it."
            ),
        ),
    ] = None,
    owner: Annotated[
        str, typer.Option("--owner", metavar="NAME", help="With --output-file: who reserves; takes up what it left.")
    ] = "workflow",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what happened live and what to do, with the evidence. Changes nothing without --act or --output-file.

    Exit code: 0 nothing, 10 rethreshold, 11 recalibrate, 12 retrain, 13 page.
    """
    from rareclass.services.live import governor as service
    from rareclass.services.live.verdict import triage

    settings = _stored(config, overrides)
    if output is not None:
        turn = service.decide(settings, _now(), owner=owner)
        service.write(output, turn)
        terminal.lines([str(turn)])
        return
    verdict, actions = service.govern(settings, _now()) if act else (triage(settings, _now()), [])
    if as_json:
        terminal.dump({**verdict.to_json(), "actions": [action.to_json() for action in actions]})
    else:
        done = [f"{each.kind}: {each.outcome}. {each.reason}" for each in actions]
        terminal.lines([verdict.verdict, *(f"  {reason}" for reason in verdict.reasons), *done])
    raise typer.Exit(verdict.exit_code)


@app.command()
def promote(
    config: ConfigOption,
    version: Annotated[
        int | None,
        typer.Argument(metavar="VERSION", help="Number of the version; default: the challenger, else the newest."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", metavar="immediate|shadow", help="Champion at once, or challenger; default: promotion.mode."
        ),
    ] = None,
    reason: ReasonOption = "by hand",
    actor: ActorOption = None,
    overrides: SetOption = None,
) -> None:
    """Make a registered version champion or challenger. Doing it twice is refused."""
    from rareclass.services import promotion as service

    move = service.promote(
        _stored(config, overrides),
        version,
        now=_now(),
        mode=service.checked_mode(mode),
        actor=named(actor),
        reason=reason,
    )
    terminal.lines([str(move)])


@app.command()
def rollback(
    config: ConfigOption, reason: ReasonOption = "by hand", actor: ActorOption = None, overrides: SetOption = None
) -> None:
    """Make the previous version champion again: model, threshold and calibrator together."""
    from rareclass.services import promotion as service

    terminal.lines([str(service.rollback(_stored(config, overrides), now=_now(), actor=named(actor), reason=reason))])


@app.command()
def approve(
    config: ConfigOption,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the ledger.")],
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="Number of the version; default: the one that waits.")
    ] = None,
    decline: Annotated[bool, typer.Option("--decline", help="Say no: the version never answers.")] = False,
    actor: ActorOption = None,
    overrides: SetOption = None,
) -> None:
    """Approve a version that waits (promotion.mode: manual); it becomes champion. Final, and in the ledger."""
    from rareclass.services import approval as service

    settings = _stored(config, overrides)
    said = service.answer(settings, version, reason=reason, now=_now(), actor=named(actor), decline=decline)
    terminal.lines([said])


@app.command()
def approval(
    config: ConfigOption,
    version: Annotated[
        int | None, typer.Argument(metavar="VERSION", help="Number of the version; default: put up last.")
    ] = None,
    seconds: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait so long for an answer.")] = 0.0,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether a version was approved: exit code 0 approved or nothing waits, 20 waits, 21 declined."""
    from rareclass.services import approval as service

    found = service.wait(_stored(config, overrides), version, seconds)
    if as_json:
        terminal.dump({"version": found.version, "state": found.state, "actor": found.actor, "reason": found.reason})
    else:
        terminal.lines([str(found)])
    raise typer.Exit(service.EXIT[found.state])


@app.command()
def retire(
    config: ConfigOption,
    role: Annotated[
        str, typer.Option("--role", metavar="challenger|previous", help="Whom to take out of the shadow.")
    ] = "challenger",
    reason: ReasonOption = "by hand",
    actor: ActorOption = None,
    overrides: SetOption = None,
) -> None:
    """Take the challenger (or the previous version) out of the shadow: it scores nothing any more."""
    from rareclass.services import promotion as service

    chosen = service.checked_role(role)
    terminal.lines(
        [str(service.retire(_stored(config, overrides), chosen, now=_now(), actor=named(actor), reason=reason))]
    )


@app.command()
def history(
    config: ConfigOption,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Only lines of this kind, like promote.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain of hashes instead; exit code 1 where it is broken.")
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="HASH", help="With --verify: a hash that an earlier --verify printed."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the ledger: who did what, when and why."""
    from rareclass.services import promotion as service

    if verify or expect is not None:
        chain = service.verified(_stored(config, overrides), expect)
        whole = "whole" if not chain.broken else "BROKEN"
        terminal.lines([f"{chain.lines} lines, the chain is {whole}, hash {chain.head or 'none yet'}", *chain.broken])
        raise typer.Exit(1 if chain.broken else 0)
    entries = service.history(_stored(config, overrides), kind=kind)
    if as_json:
        terminal.dump(
            [
                {
                    "id": e.id,
                    "at": e.at.isoformat(),
                    "kind": e.kind,
                    "actor": e.actor,
                    "reason": e.reason,
                    "key": e.key,
                    "payload": e.payload,
                }
                for e in entries
            ]
        )
    elif not entries:
        terminal.lines(["the ledger is empty"])
    else:
        lines = [
            (
                e.id,
                f"{e.at:%Y-%m-%d %H:%M}",
                e.kind,
                e.payload.get("version", ""),
                e.payload.get("role", ""),
                e.actor,
                e.reason,
            )
            for e in entries
        ]
        terminal.table("", ("#", "when (UTC)", "what", "version", "role", "who", "why"), lines, left=7)
        if kind is None:
            now = ((role, number) for role, number in service.current(entries).items() if number is not None)
            terminal.lines(
                [
                    "now: "
                    + (", ".join(f"{role} is version {number}" for role, number in now) or "no version has a role")
                ]
            )


@app.command()
def compare(
    uris: Annotated[
        list[str],
        typer.Argument(
            metavar="URI URI ...",
            help="2 to 10 of: `uri` of summary.json, --out folder, run id, models:/NAME@alias, models:/NAME/3.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="PATH", help="Labelled rows to score; default: the test rows logged with the runs."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="COL", help="With --data: column with the truth; default: the first model's."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="HTML page with the PR and ROC curves overlaid.")
    ] = Path("compare.html"),
    config: MaybeConfig = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare up to 10 runs or versions on the same rows, paired; the first is the reference.

    Example: `rareclass compare models:/flights/1 models:/flights/2 -c my.yaml --out compare.html`
    """
    from rareclass.services.training import compare as service

    settings = _config(config) if config is not None else None
    uri = tracking_uri or (settings.tracking.uri if settings is not None else None)
    found = service.compare(
        uris, tracking_uri=uri, data=data, target=target, config=settings.evaluate if settings is not None else None
    )
    found.write_html(out)
    if as_json:
        terminal.dump(found.to_json())
        return
    terminal.table("", found.head, [line.cells() for line in found.lines])
    terminal.lines(
        [
            f"{found.rows:,} rows, {found.positives:,} positives",
            *found.notes,
            "* significant after correction for the number of models",
            f"curves: {out}",
        ]
    )


@app.command()
def export(
    config: ConfigOption,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Folder or object-store URL.")],
    format: Annotated[str, typer.Option("--format", metavar="parquet|csv", help="Format of the files.")] = "parquet",
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write the prepared splits (train, validation, test) as files that anybody can read."""
    from rareclass.services.training import export as service

    settings = _config(config, overrides)
    with terminal.steps(quiet=quiet) as progress:
        written = service.export(
            settings,
            destination,
            format=cast("Literal['parquet', 'csv']", format),
            progress=lambda message: progress("export", message),
        )
    terminal.lines([f"{name}: {path}" for name, path in written.items()])


@app.command()
def submit(
    config: ConfigOption,
    recurring: Annotated[
        str | None,
        typer.Option("--recurring", metavar="CRON", help="Run on a schedule with six fields, like '0 0 2 * * *'."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="URL", help="Kubeflow Pipelines API; default: cluster.host.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="FILE",
            help=(
                "File with the bearer token of the API, `-` for standard input; default: "
                "the environment's RARECLASS_KUBEFLOW_TOKEN."
            ),
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", metavar="NAME", help="Namespace of the user; default: cluster.namespace."),
    ] = None,
    account: Annotated[
        str | None,
        typer.Option("--account", metavar="NAME", help="Service account of the steps; default: cluster.account."),
    ] = None,
    header: Annotated[
        str | None, typer.Option("--header", metavar="'NAME: VALUE'", help="One more header; default: cluster.header.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="NAME", help="Name of the run: one of that name that did not fail is followed."),
    ] = None,
    repair: Annotated[
        int | None,
        typer.Option("--repair", metavar="N", help="Carry out the retrain that `triage --output-file` reserved."),
    ] = None,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the same pipeline on a Kubeflow cluster and follow it.

    Example: `rareclass submit -c my.yaml --host http://localhost:8888`
    """
    from rareclass.services.kubeflow import submit as service

    settings = _trainable(config, overrides)
    given = {"host": host, "namespace": namespace, "account": account, "header": header}
    settings = service.asked_by(settings, {name: value for name, value in given.items() if value is not None}, token)
    with terminal.steps(quiet=quiet) as progress:
        if repair is not None:
            action = service.retrain(settings, repair, now=_now(), progress=progress)
        else:
            found = service.submit(settings, now=_now(), key=key, recurring=recurring, wait=wait, progress=progress)
    if repair is not None:
        terminal.lines([f"{action.kind}: {action.outcome}. {action.reason}"])
    else:
        terminal.lines([f"{found.name} {found.id}"])


@app.command()
def repair(
    config: ConfigOption,
    number: Annotated[
        int | None, typer.Option("--number", metavar="N", help="The repair that `triage --output-file` reserved.")
    ] = None,
    close: Annotated[
        str | None,
        typer.Option("--close", metavar="STATUS", help="Only record that what carried out an open repair ended so."),
    ] = None,
    owner: Annotated[str, typer.Option("--owner", metavar="NAME", help="With --close: who reserved it.")] = "workflow",
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Carry out one reserved repair in this process: re-threshold, recalibrate, retrain.

    Done already, it says how it ended.
    """
    from rareclass.services.live import governor as service

    settings = _stored(config, overrides)
    if (number is None) == (close is None):
        raise ConfigError("repair needs to know which. Pass --number N, or --close STATUS")
    if close is not None:
        action = service.close(settings, owner, close, _now())
    elif number is not None:
        with terminal.steps(quiet=quiet) as progress:
            action = service.repair(settings, number, _now(), progress=progress)
    terminal.lines([f"{action.kind}: {action.outcome}. {action.reason}" if action else "no repair is open"])


@app.command()
def deploy(
    config: ConfigOption,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the object that serves.")],
    kind: Annotated[
        str, typer.Option("--kind", metavar="seldon|kserve|deployment|statefulset", help="What it is.")
    ] = "seldon",
    namespace: Annotated[
        str | None, typer.Option("--namespace", metavar="NAME", help="Default: of this pod, or of the present context.")
    ] = None,
    service: Annotated[
        str | None,
        typer.Option("--service", metavar="URL", help="Base URL that answers; default: http://NAME-serving.NAMESPACE."),
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", metavar="N", help="Version to serve; default: the champion.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long the rollout may take before it is undone.")
    ] = 600.0,
    optional: Annotated[bool, typer.Option("--optional", help="No champion yet is no error.")] = False,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Let the pods serve the champion: pin, roll out, ask for the golden rows, record. Doing it again changes nothing.

    Example: `rareclass deploy -c my.yaml --kind seldon --name flights --namespace models`
    """
    from rareclass.adapters import cluster
    from rareclass.services.serving import deploy as work

    settings = _stored(config, overrides)
    if optional and not work.champion(settings):
        terminal.lines([f"'{settings.name}' has no champion yet: nothing to deploy"])
        return
    target = cluster.Workload(kind, name, namespace)
    url = service or f"http://{name.removesuffix('-serving')}-serving.{target.namespace}"
    with terminal.steps(quiet=quiet) as progress:
        done = work.deploy(settings, target, url, now=_now(), version=version, seconds=seconds, progress=progress)
    terminal.lines([str(done)])


@app.command()
def forget(
    config: ConfigOption,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="ID", help="Request whose rows are erased.")
    ] = None,
    entity: Annotated[str | None, typer.Option("--entity", metavar="ID", help="Entity whose rows are erased.")] = None,
    overrides: SetOption = None,
) -> None:
    """Erase everything about one request or one entity: store and its files, spools; labels cannot bring it back."""
    from rareclass.services.admin import retention as service

    if (request_id is None) == (entity is None):
        raise ConfigError("forget needs to know what. Pass either --request-id ID or --entity ID")
    done = service.forget(_stored(config, overrides), _now(), request_id=request_id, entity=entity)
    terminal.lines([f"{done.total:,} stored rows erased", *([done.remaining] if done.remaining else [])])


@app.command()
def retention(config: ConfigOption, overrides: SetOption = None) -> None:
    """Delete predictions older than `store.retention` with their labels; to be run daily."""
    from rareclass.config import format_duration
    from rareclass.services.admin import retention as service

    settings = _stored(config, overrides)
    done = service.prune(settings, _now())
    counts = ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in done.rows.items())
    terminal.lines(
        [
            f"older than {format_duration(settings.store.retention)}: {counts} deleted",
            *([done.remaining] if done.remaining else []),
        ]
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration."""
    from rareclass import config

    terminal.dump(config.schema())


_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 2 something to mend (one line), 1 a fault (one line, --debug for more)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    before = os.umask(0o077)
    os.umask(before | private_umask(os.environ.get("RARECLASS_UMASK")))
    try:
        code = _run([each for each in given if each != "--debug"], debug)
    finally:
        os.umask(before)  # whoever calls this from Python keeps his own
    sys.exit(code)


def private_umask(text: str | None) -> int:
    """Return what others may not do with the files that the commands make: nothing (077),
    or as RARECLASS_UMASK says.
    """
    return int(text, 8) if text and re.fullmatch("0?[0-7]{3}", text) else 0o077


def _run(arguments: list[str], debug: bool) -> int:
    usage_error = cast("type[Exception]", typer.BadParameter.__bases__[0])
    try:
        result = app(arguments, prog_name="rareclass", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
        return _interrupted() if code == _INTERRUPTED else code
    except RareclassError as error:
        return _failed(error, str(error), error.exit_code, debug)
    except usage_error as error:
        return _failed(error, _usage(error), 2, debug)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:  # the reader, like `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        return _failed(
            error, f"unexpected {type(error).__name__}: {reason}. Run it again with --debug for the traceback", 1, debug
        )


def _interrupted() -> int:
    print("\ninterrupted", file=sys.stderr)
    return _INTERRUPTED


def _failed(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        print(masked("".join(traceback.format_exception(error))), file=sys.stderr)
    one_line = masked(" ".join(message.split()))
    if logs.asked_for_json():
        _LOG.error("%s", one_line)
    else:
        print(f"error: {one_line}", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    """One line for a wrong command or option, with the nearest one there is."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "rareclass"
    message = error.format_message().split(" (Possible options")[0].rstrip(".")
    choices: list[str] = []
    asked = getattr(error, "option_name", None)
    if asked is not None and context is not None:
        choices = [name for parameter in context.command.params for name in parameter.opts]
    elif context is not None and "No such command" in message:
        choices = list(context.command.list_commands(context))
        asked = message.split("'")[1]
        message = f"unknown command '{asked}'"
    close = nearest(asked, choices) if asked else ""
    return f"{message}.{close} Look at: {where} --help"


if __name__ == "__main__":
    main()
