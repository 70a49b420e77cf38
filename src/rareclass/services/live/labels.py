"""Late truth: label files and POST /labels into the store."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rareclass.adapters.store import LabelReport, Store, micros, to_micros
from rareclass.adapters.tracking import untouched
from rareclass.config import Config
from rareclass.core.dataset import Schema, text_of
from rareclass.core.reading import NUMBER, Target
from rareclass.errors import DataError, InputError, StoreError, nearest
from rareclass.masking import masked
from rareclass.services.serving.score import ASIDE

MOST_TEXT, ROWS = 256, 2**31
"""Characters of a posted id or source at most, and below what the place of a row in its request stays."""
_TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def import_labels(config: Config, path: str | Path, now: datetime, *, store: Store | None = None) -> LabelReport:
    """Read a label file into the store, some rows at a time; doing it again changes nothing.

    path : CSV or Parquet (a file or an object like ``s3://bucket/labels.csv``) with the columns ``request_id`` and
        ``label``, or a SQL URL followed by ``#`` and a table or a SELECT (``postgresql://host/db#SELECT request_id,
        label FROM chargebacks``). Instead of ``label`` the file may have ``data.target`` as its column, with
        ``data.positive`` as the rare class. Optional columns: ``row`` (default 0), ``observed_at`` (default now),
        ``source`` (default the file's name). Other columns are ignored, and rows without a label are labels that have
        not come.
    Raises DataError in one line when the file does not fit.
    """
    where, versions = _shown(path), Versions(config)

    def parts() -> Iterator[pd.DataFrame]:
        return (_rows_of(frame, config, versions, where) for frame in _read(str(path), config))

    first, *more = itertools.islice(parts(), 2)
    if not more:
        return _add(config, first, now, store, where)
    for rows in parts():  # a wrong line at the end of a long file is found before the first one is stored
        _moments(rows, now, where)
    with contextlib.ExitStack() as stack:
        if store is None:
            store = stack.enter_context(Store(config.store.url))
            store.migrate()
        return sum((_add(config, rows, now, store, where) for rows in parts()), LabelReport())


def _rows_of(frame: pd.DataFrame, config: Config, versions: Versions, where: str) -> pd.DataFrame:
    """Return the labels among some rows of a label file. Raises DataError where they do not fit."""
    own = _own_names(frame, config, versions)
    labels = _labels_of(frame, own, config, versions, where)
    known = labels.notna()
    fields = _request_fields(frame, own, where)
    fields["source"] = fields["source"].fillna(Path(where).name)
    rows = fields.assign(label=labels)[known.to_numpy()]
    if rows["request_id"].isna().any():
        raise DataError(
            f"label file '{where}' has {int(rows['request_id'].isna().sum())} labels without a request_id. "
            "Every label needs the id of its prediction"
        )
    return rows


class Versions:
    """What the registered version knows of the target; the registry is asked only when a label needs it.

    The champion's schema says which value is the rare class, as training read it, also when it was chosen by default.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    @functools.cached_property
    def schema(self) -> Schema | None:
        """The schema of the champion, else of the newest version; None where there is none."""

        if untouched(self.config.tracking.uri):
            return None
        from rareclass.adapters.registry import Registry

        registry = Registry(self.config.tracking.uri)
        found = registry.at(self.config.name, "champion") or next(iter(registry.versions(self.config.name)), None)
        return None if found is None else registry.load(found).schema

    def target(self) -> Target:
        """How values of the target become labels. Raises DataError where nothing says which value is the rare class."""
        data = self.config.data
        if self.schema is not None and self.schema.roles.target is not None:
            return self.schema.roles.target
        if data.target is not None and isinstance(data.positive, str):
            return Target(data.target, data.positive.strip())
        raise DataError(
            f"which value of '{data.target}' is the rare class is known once a version is registered. "
            "Train one first, or write labels as 0 and 1 in a column 'label'"
        )


def _zero_or_one(label: object) -> object:
    """A text is left to the schema of the version, which knows how the target is written."""
    if isinstance(label, str) or (isinstance(label, int | float) and label in (0, 1)):
        return label
    raise ValueError("not 0 or 1")


def _iso(text: str | None) -> str | None:
    if text is not None:
        datetime.fromisoformat(text)
    return text


def receive_labels(config: Config, payload: object, now: datetime, *, store: Store | None = None) -> LabelReport:
    """Take the labels of one POST: ``[{"request_id": ..., "label": 0 or 1, "row": 0, "observed_at": ..., "source":
    ...}]``.

    A label may also be a value of the target as text, which the champion reads as training did. Raises InputError in
    one line when the payload does not fit; none of its labels is stored then.
    """
    if isinstance(payload, Mapping) and isinstance(payload.get("labels"), list):
        payload = payload["labels"]
    if not isinstance(payload, Sequence) or isinstance(payload, (str, bytes)):
        raise InputError('labels must be a list like [{"request_id": "a1", "label": 1}]')
    if len(payload) > config.labels.max_batch:
        raise InputError(
            f"{len(payload)} labels in one request; at most {config.labels.max_batch} (labels.max_batch). "
            "Send them in parts"
        )
    versions = Versions(config)
    checked = [_checked(position, item, versions) for position, item in enumerate(payload)]
    rows = pd.DataFrame(checked, columns=list(COLUMNS))
    if rows.empty:
        return LabelReport()
    rows["source"] = rows["source"].fillna("post")
    try:
        return _add(config, rows, now, store, "POST /labels")
    except DataError as error:
        raise InputError(str(error)) from None


class PostedLabel(BaseModel):
    """One label as clients send it; `_SAYS` holds what they read where a field does not fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    request_id: str = Field(min_length=1, max_length=MOST_TEXT)
    row: int = Field(0, ge=0, lt=ROWS)
    label: Annotated[Any, AfterValidator(_zero_or_one)]
    observed_at: Annotated[str | None, AfterValidator(_iso)] = None
    source: str | None = Field(None, max_length=MOST_TEXT)


_SAYS = {
    "request_id": f"must be a text of 1 to {MOST_TEXT} characters",
    "label": "must be 0 or 1; it is {given}",
    "row": "must be a whole number from 0; it is {given}",
    "observed_at": "must be an ISO 8601 time like 2026-03-01T12:00:00Z; it is {given}",
    "source": f"must be a text of at most {MOST_TEXT} characters",
}
COLUMNS = tuple(PostedLabel.model_fields)


def _checked(position: int, item: object, versions: Versions) -> dict[str, Any]:
    """Check one label of a POST."""
    if not isinstance(item, Mapping):
        raise InputError(f"labels[{position}] must be an object with request_id and label; it is {type(item).__name__}")
    try:
        posted = PostedLabel.model_validate(item)
    except ValidationError as error:
        raise InputError(f"labels[{position}]{_why(error, item)}") from None
    if isinstance(posted.label, str):
        return {**posted.model_dump(), "label": _of_text(position, posted.label, versions)}
    return {**posted.model_dump(), "label": int(posted.label)}


def _why(error: ValidationError, item: Mapping[str, Any]) -> str:
    """What is wrong with a label, in one line; a field that nobody knows first, as it may be another one misspelled."""
    wrong = [str(fault["loc"][0]) for fault in error.errors(include_url=False, include_input=False)]
    for name in wrong:
        if name not in _SAYS:
            return f" has an unknown field '{name[:80]}'.{nearest(name, COLUMNS)} Known: {', '.join(COLUMNS)}"
    given = repr(str(item.get(wrong[0]))[:80])
    return f".{wrong[0]} {_SAYS[wrong[0]].format(given=given)}"


def _of_text(position: int, label: str, versions: Versions) -> int:
    try:
        [found] = versions.target().labels([label]).tolist()
    except DataError as error:
        raise InputError(f"labels[{position}].label must be 0 or 1; it is {label[:80]!r}: {error}") from None
    if found not in (0, 1):
        raise InputError(f"labels[{position}].label must be 0 or 1; it is {str(found)[:80]!r}")
    return int(found)


def _add(config: Config, rows: pd.DataFrame, now: datetime, store: Store | None, where: str) -> LabelReport:
    if rows.empty:
        return LabelReport()
    rows = rows.assign(observed_at=_moments(rows, now, where), received_at=to_micros(now))
    if store is not None:
        return store.add_labels(rows, model=config.name)
    with Store(config.store.url) as opened:
        opened.migrate()
        return opened.add_labels(rows, model=config.name)


def _moments(rows: pd.DataFrame, now: datetime, where: str) -> pd.Series[Any]:
    """Return when each label was known, now where it does not say. Raises DataError for what is no time."""
    current, given = to_micros(now), rows["observed_at"].notna()
    observed = pd.Series(current, index=rows.index, dtype="int64")
    if given.any():
        try:
            # a clock that runs ahead must not make a label win over every later correction
            observed[given] = micros(rows.loc[given, "observed_at"].rename("observed_at")).clip(upper=current)
        except StoreError as error:
            raise DataError(f"labels of {where}: {error}") from None
    return observed


def _read(path: str, config: Config) -> Iterator[pd.DataFrame]:
    """Yield the rows of a label file, at least one frame, with ids as text: '007' is not 7.

    Files are read like the history, and so are written like it.
    """
    from rareclass.adapters import tables

    if tables.scheme(path) in ("sqlite", "postgresql", "postgres"):
        url, _, statement = path.partition("#")
        if not statement.strip():
            shown = _shown(url)
            raise DataError(
                f"label source '{shown}' names no labels. Write {shown}#TABLE, or # and a SELECT of request_id and "
                "label"
            )
        try:
            with Store(url) as source:
                yield source.query(statement)
                return
        except StoreError as error:
            reason = str(error).partition(". ")[0].removeprefix("store ")
            raise DataError(f"labels cannot be read: {reason}. Check the URL and what follows its #") from None
    try:
        exact = ("request_id", "label", "source", "observed_at")
        frames = tables.read_frames(path, text=exact, data=config.data)
        first = next(frames, None)
        yield tables.read_frame(path, text=exact, data=config.data) if first is None else first
        yield from frames
    except DataError as error:
        reason = str(error).replace("data.path '", "'").partition(" Set data.path")[0]
        if "does not exist" in reason or "has no files" in reason:
            raise DataError(
                f"label file '{_shown(path)}' is not a file. Pass a CSV or Parquet file, an object like "
                "s3://bucket/labels.csv, or a SQL URL followed by #TABLE"
            ) from None
        raise DataError(f"label file '{_shown(path)}' cannot be read: {reason}") from None


def _shown(path: str | Path) -> str:
    """The path without a password and without the statement behind it."""
    return masked(str(path)).partition("#")[0]


def _own_names(frame: pd.DataFrame, config: Config, versions: Versions) -> Mapping[str, str]:
    """Return which column of the file is which of COLUMNS.

    A file that holds all features of the version is history or what `score` wrote: a feature that happens to be called
    `label` or `row` is not ours there. `data.id`, or what `score --log` made, may stand for `request_id`.
    """
    names, data = [str(column) for column in frame.columns], config.data
    ours = {name: name for name in COLUMNS if name in names}
    if ours and {data.target, data.id, f"{ASIDE}request_id"} & set(names) and versions.schema is not None:
        features = set(versions.schema.names)
        if features <= set(names):
            ours = {name: column for name, column in ours.items() if column not in features}
    if "request_id" not in ours:
        made = f"{ASIDE}request_id"  # what `score --log` writes where a feature is called request_id
        found = [name for name in (data.id, made) if name in names]
        if found:
            ours["request_id"] = str(found[0])
    return ours


def _labels_of(
    frame: pd.DataFrame, own: Mapping[str, str], config: Config, versions: Versions, where: str
) -> pd.Series[Any]:
    """(n,) labels 0 / 1, missing where there is none."""
    names = [str(column) for column in frame.columns]
    if "label" not in own:
        if config.data.target is None:
            raise DataError(
                f"label file '{where}' has no column 'label', and data.target names none.{nearest('label', names)} "
                "Rename the column with the truth to 'label' (0 and 1), or set data.target to it. It has: "
                f"{', '.join(names)}"
            )
        if config.data.target not in names:
            raise DataError(
                f"label file '{where}' has no column 'label' and none named '{config.data.target}' "
                f"(data.target).{nearest('label', names)} It has: {', '.join(names)}"
            )
        try:
            found = versions.target().labels(frame[config.data.target])
        except DataError as error:
            raise DataError(f"label file '{where}': {error}") from None
        return pd.Series(found, index=frame.index).astype("Int64")
    text = text_of(frame[own["label"]])
    values = text.str.strip().str.lower().map(_TRUTH)
    wrong = text[values.isna() & text.notna()]
    if len(wrong):
        raise DataError(
            f"label file '{where}' has {len(wrong)} labels that are not 0 or 1, like {str(wrong.iloc[0])[:80]!r}. "
            "Write 0, 1, true or false"
        )
    return values.astype("Int64")


def _request_fields(frame: pd.DataFrame, own: Mapping[str, str], where: str) -> pd.DataFrame:
    """The columns of a label file besides the label, as far as it has them."""
    names = [str(column) for column in frame.columns]
    if "request_id" not in own:
        raise DataError(
            f"label file '{where}' has no column 'request_id'.{nearest('request_id', names)} It has: {', '.join(names)}"
        )
    row = NUMBER.numbers(frame[own["row"]])[0] if "row" in own else np.zeros(len(frame))
    if (~np.isfinite(row) | (row < 0) | (row % 1 != 0) | (row >= ROWS)).any():
        raise DataError(
            f"label file '{where}' has a 'row' that is not a whole number from 0. Take the row's place in its request"
        )
    empty = pd.Series(None, index=frame.index, dtype=object)
    identity = text_of(frame[own["request_id"]])
    source = text_of(frame[own["source"]]) if "source" in own else None
    return pd.DataFrame(
        {
            "request_id": identity.astype(object).where(identity.notna(), None),
            "row": row.astype(np.int64),
            "observed_at": frame[own["observed_at"]] if "observed_at" in own else empty,
            "source": empty if source is None else source.astype(object).where(source.notna(), None),
        },
        index=frame.index,
    )
