"""Up to ten logged runs or registered versions, on the same rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.adapters import reports, tracking
from rareclass.config import EvaluateSettings, parse
from rareclass.core.dataset import AnyArray, FloatArray, IntArray, text_of
from rareclass.core.estimate import Estimate
from rareclass.core.hashing import HashArray
from rareclass.errors import ConfigError, DataError, ModelError, RareclassError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.model import RareModel
    from rareclass.core.times import TimeReading

MOST = 10
_HEAD = ("model", "AP", "difference to the first", "ROC-AUC", "precision", "recall", "F1", "alerts")


@dataclass(frozen=True, slots=True)
class Entrant:
    """What one URI stands for: where its model and its run's artifacts are."""

    name: str
    uri: str
    model: str
    run: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """One model on the common rows.

    difference : its AP less the first one's, paired; its interval and the two-sided p_value allow for the number of
        models
    significant : that interval leaves 0 out
    """

    name: str
    uri: str
    ap: Estimate
    difference: Estimate | None
    p_value: float | None
    roc_auc: float
    precision: float
    recall: float
    f1: float
    alerts: int
    significant: bool = False

    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of the table's head."""
        if self.difference is None:
            paired = "-"
        else:
            d = self.difference
            paired = f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]{' *' if self.significant else ''}"
        numbers = (f"{value:.3f}" for value in (self.roc_auc, self.precision, self.recall, self.f1))
        return (self.name, str(self.ap), paired, *numbers, str(self.alerts))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table and the curves, and on which rows they stand. ``notes`` say what was left out and why."""

    lines: tuple[Line, ...]
    rows: int
    positives: int
    notes: tuple[str, ...]
    pr: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    roc: Mapping[str, tuple[Sequence[float], Sequence[float]]]

    head = _HEAD

    def to_json(self) -> dict[str, Any]:
        """Return the table, JSON-ready; curves stay with the page."""
        lines = [
            {
                "name": line.name,
                "uri": line.uri,
                "ap": line.ap.to_json(),
                "difference": line.difference and line.difference.to_json(),
                "p_value": line.p_value,
                "significant": line.significant,
                "roc_auc": line.roc_auc,
                "precision": line.precision,
                "recall": line.recall,
                "f1": line.f1,
                "alerts": line.alerts,
            }
            for line in self.lines
        ]
        return {"rows": self.rows, "positives": self.positives, "notes": list(self.notes), "lines": lines}

    def write_html(self, path: str | Path) -> None:
        """Write the table and both curves, overlaid, as one self-contained page."""

        reports.overlay_page(
            Path(path),
            head=self.head,
            lines=[line.cells() for line in self.lines],
            pr=self.pr,
            roc=self.roc,
            subtitle=f"{self.rows:,} rows, {self.positives:,} positives. {' '.join(self.notes)} "
            "* marks a paired difference that is significant after correction for the number of models.",
            prevalence=self.positives / self.rows,
        )


@dataclass(frozen=True, slots=True)
class _EntrantScores:
    """Scores of all entrants on the common rows."""

    y: IntArray
    scores: Sequence[FloatArray]
    decisions: Sequence[AnyArray]
    block: AnyArray | None
    notes: tuple[str, ...]
    weight: FloatArray | None = None


def compare(
    uris: Sequence[str],
    *,
    tracking_uri: str | None = None,
    data: str | None = None,
    target: str | None = None,
    config: EvaluateSettings | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare runs or versions on the same rows, the first being the reference.

    uris : uri of summary.json, --out folder, run id, runs:/ID, models:/NAME@alias or models:/NAME/3
    data : labelled rows to score with the models themselves; default: the test scores logged with the runs, which come
        from each recipe before it was refitted on every row, on the test rows that all runs share
    target : column of ``data`` with the truth; default: the one the first model was trained for
    Raises ConfigError for fewer than 2 or more than 10, ModelError, DataError when no row is common.
    """
    if not 2 <= len(uris) <= MOST:
        raise ConfigError(f"{len(uris)} models were given. Name 2 to {MOST} runs or versions to compare")
    entrants = _named([_entrant(uri, tracking_uri) for uri in uris])
    scored = _logged(entrants, tracking_uri) if data is None else _fresh(entrants, tracking_uri, data, target)
    if not 0 < int(scored.y.sum()) < len(scored.y):
        raise DataError(
            f"{len(scored.y)} common rows with {int(scored.y.sum())} positives cannot tell models apart. "
            "Pass --data PATH with both classes"
        )
    return _judged(entrants, scored, config or EvaluateSettings(), seed)


def _judged(entrants: Sequence[Entrant], scored: _EntrantScores, config: EvaluateSettings, seed: int) -> Comparison:
    from rareclass.core import bootstrap, evaluation, ranking
    from rareclass.core.differences import judge_difference

    y, weight = scored.y, scored.weight
    draws = ranking.bootstrap_average_precision(
        y, list(scored.scores), block=scored.block, n_boot=config.bootstraps, seed=seed, weight=weight
    )
    exact = [ranking.average_precision(y, score, weight) for score in scored.scores]
    counts = {"compared": len(entrants) - 1, "positives": int(y.sum()), "rows": len(y)}
    differences = [
        judge_difference(value - exact[0], drawn - draws[0], confidence=config.confidence, **counts)
        for value, drawn in zip(exact, draws, strict=True)
    ]

    lines = []
    for position, entrant in enumerate(entrants):
        found = evaluation.decision_metrics(y, scored.decisions[position], weight)
        against = differences[position] if position else None
        line = Line(
            name=entrant.name,
            uri=entrant.uri,
            ap=bootstrap.bounded_estimate(exact[position], draws[position], config.confidence, int(y.sum()), len(y)),
            difference=None if against is None else against.estimate,
            p_value=None if against is None else against.p_value,
            roc_auc=ranking.roc_auc(y, scored.scores[position], weight),
            precision=float(found["precision"]),
            recall=float(found["recall"]),
            f1=float(found["f1"]),
            alerts=int(scored.decisions[position].sum()),
            significant=against is not None and against.significant,
        )
        lines.append(line)
    curves = {each.name: ranking.curves(y, score, weight) for each, score in zip(entrants, scored.scores, strict=True)}
    pr = {name: (each["pr"]["recall"], each["pr"]["precision"]) for name, each in curves.items()}
    roc = {name: (each["roc"]["fpr"], each["roc"]["tpr"]) for name, each in curves.items()}
    return Comparison(tuple(lines), len(y), int(y.sum()), scored.notes, pr, roc)


def _entrant(uri: str, tracking_uri: str | None) -> Entrant:
    """Say where the model and the run of a URI are, without loading anything."""
    from rareclass.adapters import registry

    if uri.startswith("models:/"):
        found = registry.Registry(registry.tracking_of(uri, tracking_uri)).resolve(uri)
        aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
        return Entrant(f"{found.name} version {found.version}{aliases}", uri, found.uri, _parent(found.uri))
    if re.fullmatch(r"[0-9a-f]{32}", uri):
        uri = f"runs:/{uri}"
    if uri.startswith("runs:/"):
        run = uri.removeprefix("runs:/").split("/")[0]
        root = tracking.artifact_uri(run, registry.tracking_of(uri, tracking_uri))
        return Entrant(f"run {run[:8]}", uri, f"{root}/{registry.FOLDER}", root)
    folder = Path(uri)
    if (folder / "summary.json").is_file():
        model = registry.of_summary(folder)
        return Entrant(folder.resolve().name, uri, model, _parent(model))
    parent = _parent(uri)
    name = f"run {Path(parent).parent.name[:8]}" if parent else uri.rstrip("/").rsplit("/", 1)[-1]
    return Entrant(name, uri, uri, parent)


def _parent(model: str) -> str | None:
    """The artifact folder of the run that a model's URI belongs to."""
    from rareclass.adapters import registry

    root, _, last = model.rstrip("/").rpartition("/")
    return root if last == registry.FOLDER and root else None


def _named(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Give entrants of one name a number, so that every line and curve can be told apart."""
    names = [each.name for each in entrants]
    return [
        each
        if names.count(each.name) == 1
        else replace(each, name=f"{each.name} #{names[: position + 1].count(each.name)}")
        for position, each in enumerate(entrants)
    ]


def _logged(entrants: Sequence[Entrant], tracking_uri: str | None) -> _EntrantScores:
    """Join the runs' test scores on the rows that all of them share."""

    frames = []
    for entrant in entrants:
        if entrant.run is None:
            raise ModelError(
                f"'{entrant.uri}' belongs to no run, so there are no logged test scores. "
                "Pass --data PATH to score labelled rows"
            )
        frames.append(_numbered(tracking.scores(entrant.run, tracking_uri)))
    common = frames[0].index
    for frame in frames[1:]:
        common = common.intersection(frame.index, sort=False)
    if not len(common):
        raise DataError(
            "the runs share no test row, so they cannot be compared on the same rows. "
            "Pass --data PATH with rows that none was trained on"
        )
    most = max(len(frame) for frame in frames)
    frames = [frame.loc[common] for frame in frames]
    y = frames[0]["label"].to_numpy(dtype=np.int64)
    if any((frame["label"].to_numpy(dtype=np.int64) != y).any() for frame in frames[1:]):
        raise DataError("the runs disagree about the labels of the same rows. Pass --data PATH with the present truth")
    notes: tuple[str, ...] = ("Scores are those of each recipe before it was refitted on every row.",)
    if len(common) < most:
        notes += (f"Only test rows that all runs share are used ({len(common):,} of {most:,}).",)
    return _EntrantScores(
        y,
        [frame["score"].to_numpy(dtype=np.float64) for frame in frames],
        [frame["decision"].to_numpy(dtype=bool) for frame in frames],
        frames[0]["block"].to_numpy(dtype=np.int64) if "block" in frames[0] else None,
        notes,
        frames[0]["weight"].to_numpy(dtype=np.float64) if "weight" in frames[0] else None,
    )


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Index rows by their id and their number among rows of that id: equal rows are rows, and every run has them all.

    Equal rows have one score, but perhaps not one label, so that the label comes before the number.
    """
    ordered = frame.sort_values(["row_id", "label"], kind="stable")
    index: list[Any] = ["row_id", ordered.groupby("row_id", sort=False).cumcount()]
    return ordered.set_index(index)


def _blocks(frame: pd.DataFrame, stamps: AnyArray | None = None, entity: str | None = None) -> AnyArray | None:
    """The day of each row where there is time, else its entity, else None: rows are independent."""
    import pandas as pd

    if stamps is not None:
        return pd.factorize(stamps.astype("datetime64[D]"))[0].astype(np.int64)
    if entity is not None and entity in frame:
        return pd.factorize(text_of(frame[entity]))[0].astype(np.int64)
    return None


def _fresh(entrants: Sequence[Entrant], tracking_uri: str | None, data: str, target: str | None) -> _EntrantScores:
    """Score labelled rows with the models themselves, less the rows that any of them was trained on."""
    from rareclass.adapters import registry, tables

    models = [
        registry.load_model(each.uri if each.uri.startswith("models:/") else each.model, tracking_uri)
        for each in entrants
    ]
    settings = models[0].meta.get("config", {}).get("data", {})
    known = models[0].schema.roles
    column = target or models[0].meta.get("target")
    exact = [name for model in models for name in model.schema.exact] + ([column] if column else [])
    frame = tables.read_frame(data, schema=models[0].schema, text=exact)
    if column is None or column not in frame:
        raise DataError(
            f"'{data}' has no target column '{column}'.{nearest(column, map(str, frame.columns))} Pass --target COLUMN"
        )
    labels = truth(frame[column], models[0])
    labelled = ~np.isnan(labels)
    frame, y = frame[labelled].reset_index(drop=True), labels[labelled].astype(np.int64)
    stamps = _stamps(frame, known.time if known.time is not None else settings.get("time"))
    fresh, notes = _unseen(stamps, models, data, len(frame))
    frame, y, stamps = frame.iloc[fresh].reset_index(drop=True), y[fresh], None if stamps is None else stamps[fresh]
    if not y.any():
        raise DataError(f"no row of target '{column}' is of the rare class. Pass --target COLUMN or other rows")
    scores = [model.score(frame) for model in models]
    decisions = [model.decide(score) for model, score in zip(models, scores, strict=True)]
    return _EntrantScores(y, scores, decisions, _blocks(frame, stamps, settings.get("entity")), notes)


def _stamps(frame: pd.DataFrame, time: TimeReading | str | None) -> AnyArray | None:
    """(n,) datetime64[us] of the rows as the first model reads times; None where there are none."""
    from rareclass.core.times import TimeReading

    reading = TimeReading(time) if isinstance(time, str) else time
    if reading is None or reading.name not in frame:
        return None
    return reading.read(frame[reading.name])[0]


def truth(values: pd.Series[Any], model: RareModel) -> FloatArray:
    """Return (n,) 1 where the target is the rare class as the version reads it, 0 elsewhere,
    NaN where it is missing.
    """
    from rareclass.core.reading import Target, reading_of

    known = model.schema.roles.target
    if known is None:  # a version that did not keep how it read its target
        positive = model.meta.get("positive")
        text = reading_of([]).text(1 if positive is None or positive is True else positive)
        known = Target(str(values.name), str(text))
    return known.labels(values)


_UNKNOWN = "It cannot be told whether the models were trained on these rows; if they were, the figures flatter them."


def _unseen(
    stamps: AnyArray | None, models: Sequence[RareModel], data: str, count: int
) -> tuple[AnyArray, tuple[str, ...]]:
    """Return the index of the rows that none of the models was trained on, as far as it can be told, and what to say of
    it.

    By time where the models know until when they were trained, else by the ids of their rows.
    """
    import pandas as pd

    until = [model.meta.get("trained", {}).get("until") for model in models]
    if stamps is None or any(each is None for each in until):
        return _unseen_by_id(models, data, count)
    last = max(np.datetime64(each, "us") for each in until)
    fresh = np.flatnonzero(stamps > last)
    shown = f"{pd.Timestamp(last):%Y-%m-%d %H:%M}"
    if not len(fresh):
        raise DataError(
            f"every row is from {shown} or before, and a model was trained on rows up to then. "
            "Pass --data PATH with later rows"
        )
    dropped = len(stamps) - len(fresh)
    return fresh, (
        f"{dropped:,} rows up to {shown} were left out, because a model was trained on that period.",
    ) if dropped else ()


def _unseen_by_id(models: Sequence[RareModel], data: str, count: int) -> tuple[AnyArray, tuple[str, ...]]:
    known = [_known(model, data, count) for model in models]
    masks = [mask for mask in known if mask is not None]
    notes = (_UNKNOWN,) if len(masks) < len(models) else ()
    trained = np.logical_or.reduce(masks) if masks else np.zeros(count, dtype=bool)
    if trained.all() and count:
        raise DataError(
            "a model was trained on every one of these rows. Pass --data PATH with rows that none was trained on"
        )
    if trained.any():
        notes = (f"{int(trained.sum()):,} rows were left out, because a model was trained on them.", *notes)
    return np.flatnonzero(~trained), notes


def _known(model: RareModel, data: str, count: int) -> Any:
    """(n,) True where a model was trained on the row; None where that cannot be told."""
    if model.trained_ids is None:
        return None
    ids = _ids(model, data)
    return None if ids is None or len(ids) != count else np.isin(ids, model.trained_ids)


def _ids(model: RareModel, data: str) -> HashArray | None:
    """Ids of the labelled rows of ``data`` as the model's own training read them; None where it would have read other
    columns.
    """
    from rareclass.adapters import tables

    config = model.meta.get("config", {})
    try:
        read = parse({"name": "rows", "data": {**config["data"], "path": data, "query": None, "filter": ()}})
        return tables.row_ids(read, model.schema.names)
    except (KeyError, RareclassError):
        return None
