"""A first configuration, drafted from the table itself: what each column seems to be, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.config import name_like, parse, schema
from rareclass.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_FILE = "rareclass.schema.json"
ROWS = 131_072
"""Rows looked at: the first of the table."""
_TARGET_NAMES = re.compile(r"(^|_)(target|label|class|is|fraud|fault|failure|default|churn|event|outcome|y)(_|$)", re.I)
_AMOUNT_NAMES = re.compile(r"(^|_)(amount|amt|price|value|sum|total|loss|cost)(_|$)", re.I)
_ID_NAMES = re.compile(r"(^|_)(id|uuid|key|number|no|nr)$", re.I)
_MOST_LEVELS = 20


@dataclass(frozen=True, slots=True)
class TargetGuess:
    """A column that could be the truth, with its rarest value and how often that occurs."""

    name: str
    positive: str
    positives: int
    rows: int
    likely: bool

    def __str__(self) -> str:
        return f"{self.name} ('{self.positive}' in {self.positives:,} of {self.rows:,} rows)"


@dataclass(frozen=True, slots=True)
class Draft:
    """What was found in the first rows of a table.

    targets : columns that could be the truth, the likeliest first; the other roles are None where nothing looks like it
    """

    path: str
    rows: int
    columns: tuple[str, ...]
    targets: tuple[TargetGuess, ...]
    time: str | None
    id: str | None
    entity: str | None
    amount: str | None


def look(path: str) -> Draft:
    """Look at the first rows of a source and guess roles. Raises DataError where there is nothing to read."""
    import pandas as pd

    from rareclass.adapters import tables

    frames, rows = [], 0
    for part in islice(tables.read_frames(path), 64):
        frames.append(part)
        rows += len(part)
        if rows >= ROWS:
            break
    if not rows:
        raise DataError(f"'{path}' has no rows. Pass a table with labelled rows")
    frame = pd.concat(frames, ignore_index=True).head(ROWS)
    time = next((str(name) for name in frame.columns if _is_time(frame[name])), None)
    rest = [str(name) for name in frame.columns if name != time]
    unique = [name for name in rest if _is_key(frame[name]) and frame[name].is_unique]
    identifier = next((name for name in unique if _ID_NAMES.search(name)), None)
    repeated = [name for name in rest if name != identifier and _ID_NAMES.search(name) and _is_key(frame[name])]
    entity = next((name for name in repeated if 1 < frame[name].nunique() < len(frame)), None)
    targets = sorted(_targets(frame, rest), key=lambda each: (not each.likely, each.positives / each.rows))
    amount = next((name for name in rest if _AMOUNT_NAMES.search(name) and _is_number(frame[name])), None)
    return Draft(path, len(frame), tuple(map(str, frame.columns)), tuple(targets), time, identifier, entity, amount)


def _is_time(column: pd.Series[Any]) -> bool:
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column):
        return True
    if pd.api.types.is_numeric_dtype(column) or column.dropna().empty:
        return False
    text = column.dropna().astype(str).head(200)
    return bool(text.str.match(r"\s*\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}.*)?\s*$").all())


def _is_key(column: pd.Series[Any]) -> bool:
    import pandas as pd

    return not pd.api.types.is_float_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _is_number(column: pd.Series[Any]) -> bool:
    import pandas as pd

    return pd.api.types.is_numeric_dtype(column) and column.nunique() > _MOST_LEVELS


def _targets(frame: pd.DataFrame, names: Sequence[str]) -> Iterator[TargetGuess]:
    """Columns of two values whose rarer one is below half of the rows; a likely one is also called like a truth."""
    for name in names:
        counts = frame[name].value_counts()
        if len(counts) == 2 and counts.iloc[1] < counts.iloc[0]:
            rarest = counts.index[1]
            whole = isinstance(rarest, float) and rarest.is_integer()
            text = str(int(rarest)) if whole else str(rarest)
            yield TargetGuess(name, text, int(counts.iloc[1]), int(counts.sum()), bool(_TARGET_NAMES.search(name)))


def choose(draft: Draft, target: str | None) -> TargetGuess:
    """Return the target that was named. Raises ConfigError, listing what could be one, when none was or it is none."""
    could = {each.name: each for each in draft.targets}
    listed = ", ".join(str(each) for each in draft.targets[:5]) or "none has two values, one of them rarer"
    if target is None:
        raise ConfigError(f"which column is the truth? Pass --target COLUMN. Could be: {listed}")
    if target in could:
        return could[target]
    if target not in draft.columns:
        raise ConfigError(f"there is no column '{target}'.{nearest(target, draft.columns)} Could be: {listed}")
    raise ConfigError(
        f"column '{target}' has not two values, one of them rarer, in the first {draft.rows:,} rows. Could be: {listed}"
    )


def text(draft: Draft, target: TargetGuess, name: str) -> str:
    """Return the commented configuration, checked by the parser that will read it."""
    identifier = draft.id if draft.id != target.name else None
    roles = {"time": draft.time, "id": identifier, "entity": draft.entity, "amount": draft.amount}
    why = {
        "time": "when a row was known: splits go forward in time, and the live loop needs it",
        "id": "one value a row: labels that come late find their row by it",
        "entity": "who a row belongs to: several rows each, drawn together in intervals",
        "amount": "money at stake in a row; use it with costs.amount_share below",
    }
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"# Drafted from the first {draft.rows:,} rows of {draft.path}: check every line that says 'guessed'.",
        f"name: {name}",
        "data:",
        f"  path: {json.dumps(draft.path)}",
        f"  target: {json.dumps(target.name)}",
        f"  positive: {json.dumps(target.positive)}  # the rare class: {target.positives:,} of {target.rows:,} rows",
    ]
    for role, column in roles.items():
        if column is not None and column != target.name:
            lines.append(f"  {role}: {json.dumps(column)}  # guessed; {why[role]}")
        else:
            lines.append(f"  # {role}: COLUMN  # {why[role]}")
    lines += [
        "  # label_delay: 7d  # how long after a row its label is known",
        "  # drop: [COLUMN]  # columns that are known only after the event give the answer away",
        "# costs: {false_negative: 100, false_positive: 3, currency: EUR}  # or amount_share: 1.0 with data.amount",
        "# threshold: {objective: f2}  # cost, f1, f2, recall_at_precision, precision_at_recall, alerts_per_day",
        "search: {seconds: 60}",
    ]
    whole = "\n".join(lines) + "\n"
    import yaml

    parse(yaml.safe_load(whole))
    return whole


def model_name(path: str) -> str:
    """Return a name for the model from the name of its table: lower case, digits and dashes."""
    stem = re.sub(r"\.(parquet|csv|tsv|txt|gz|zst)$", "", Path(path).name.lower().removesuffix(".gz"))
    return name_like(stem) or "model"


def write(draft: Draft, target: TargetGuess, out: Path) -> None:
    """Write the configuration and, beside it, the schema that an editor checks it with.

    Raises ConfigError if it exists.
    """
    if out.exists():
        raise ConfigError(f"'{out}' exists and is left as it is. Pass --out another.yaml")
    drafted = text(draft, target, model_name(draft.path))
    out.parent.mkdir(parents=True, exist_ok=True)
    (out.parent / SCHEMA_FILE).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    out.write_text(drafted, encoding="utf-8")
