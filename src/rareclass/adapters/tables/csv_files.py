"""CSV in any of its dialects: separators, encodings and types are found over the whole of all files, before a row is
used.

A column is a number, a truth value or a time only where every value of every file is; else its text is kept as it
stands.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs

from rareclass.core.reading import USUAL_MISSING, number_of
from rareclass.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt")
PACKED = (".gz", ".bz2", ".zst", ".xz")
_BLOCK = 4 << 20  # bytes of a CSV that are parsed at once
_SNIFFED = 1 << 16  # bytes that tell the dialect
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PACKED_MARKS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_TEXT = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\xfd7zXZ", b"7z\xbc\xaf")
_PADDED = r"^[+-]?0[0-9]+$"
_LONG = r"^[+-]?[0-9]{16,}$"
_TRUTH = pa.array(["true", "false"])


@dataclass(frozen=True, slots=True)
class Format:
    """How files are written, as far as the configuration says (`data.encoding`, `data.decimal`, ...).

    missing : texts that mean missing in every column
    """

    encoding: str | None = None
    decimal: str = "."
    thousands: str = ""
    missing: tuple[str, ...] = ()

    @property
    def signs(self) -> bool:
        """Whether numbers are written in another way than programs write them."""
        return self.decimal != "." or bool(self.thousands)

    def number(self, text: str | None) -> float | None:
        """The number that a trimmed text is, None where it is none."""
        return None if text is None else number_of(text, self.decimal, self.thousands)


@dataclass(frozen=True, slots=True)
class _Dialect:
    delimiter: str
    skip: int
    encoding: str
    header: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of the columns, trimmed; one without a name is called by its place."""
        return [name.strip(" \t\ufeff\u00a0") or f"Unnamed: {place}" for place, name in enumerate(self.header)]


class CsvFiles:
    """The files of one source, with the columns of all of them and one type for each.

    exact : columns that stay text whatever their values look like (ids, categories)
    notes : what differs between the files, in words
    """

    def __init__(
        self, path: str, filesystem: pafs.FileSystem, names: Sequence[str], exact: Sequence[str], form: Format
    ) -> None:
        self.path, self.filesystem, self.files, self.exact, self.form = path, filesystem, list(names), set(exact), form
        self.dialects = {name: self._dialect(name) for name in self.files}
        seen = {name: self._types(name) for name in self.files}
        self.types: dict[str, pa.DataType] = {}
        for found in seen.values():
            for column, kind in found.items():
                self.types[column] = united(self.types[column], kind) if column in self.types else kind
        # a column without any value holds numbers until somebody says otherwise
        self.types = {
            column: (pa.string() if column in self.exact else pa.float64()) if pa.types.is_null(kind) else kind
            for column, kind in self.types.items()
        }
        self.notes = [*differences(seen), *self._nameless()]

    def batches(self, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the rows of all files in order, with the wanted columns in their types; absent ones are null."""
        for name in self.files:
            names = self.dialects[name].names
            own = {column: self._read_as(column) for column in wanted if column in names}
            done = 0
            while True:
                skipped = 0
                try:
                    for batch in self._stream(name, own):
                        fresh = batch.slice(max(0, done - skipped))
                        skipped += batch.num_rows
                        if fresh.num_rows:
                            done += fresh.num_rows
                            yield _typed(fresh, wanted, self.types, self.form)
                    break
                except _TooNarrowError as error:  # blanks around a token: that column is read as text from here on
                    own[error.column] = pa.string()

    def _nameless(self) -> list[str]:
        found = next((d for d in self.dialects.values() if any(not name.strip() for name in d.header)), None)
        if found is None:
            return []
        places = ", ".join(str(at + 1) for at, name in enumerate(found.header) if not name.strip())
        return [
            (
                f"column {places} has no name in the header and is no feature, like a row number that pandas wrote. "
                "Name it to use it"
            )
        ]

    def _read_as(self, column: str) -> pa.DataType:
        kind = self.types[column]
        native = pa.types.is_integer(kind) or (pa.types.is_floating(kind) and not self.form.signs)
        return kind if native else pa.string()

    # ------------------------------------------------------------------------------------------------ dialect

    def _dialect(self, name: str) -> _Dialect:
        with self._open(name) as stream:
            raw = stream.read(_SNIFFED)
        if not raw.strip():
            raise DataError(f"'{name}' is empty. Set data.path to a file with a header and rows")
        encoding = (
            next((found for mark, found in _MARKS if raw.startswith(mark)), None) or self.form.encoding or "utf-8"
        )
        lines = self._lines(name, raw, encoding)
        told = re.fullmatch(r"\"?sep=(.)\"?\s*", lines[0], re.IGNORECASE) if lines else None
        body = lines[1:] if told else lines
        if not body or not body[0].strip():
            raise DataError(f"'{name}' is empty. Set data.path to a file with a header and rows")
        delimiter = told[1] if told else _delimiter(body)
        header = tuple(next(iter(_cells(body, delimiter)), ()))
        if _is_title(header, body):
            raise DataError(
                f"'{name}' begins with a line that names no columns: '{body[0].strip()[:60]}'. "
                "Delete the lines above the header"
            )
        dialect = _Dialect(delimiter, int(told is not None), encoding, header)
        twice = next((column for column in dialect.names if dialect.names.count(column) > 1), None)
        if twice is not None:
            raise DataError(f"'{name}' has two columns named '{twice}'. Rename one of them")
        return dialect

    def _lines(self, name: str, raw: bytes, encoding: str) -> list[str]:
        """The whole lines at the beginning of a file. Raises DataError where the encoding is another one."""
        try:
            decoder = codecs.getincrementaldecoder(encoding)()
            text = decoder.decode(raw, final=len(raw) < _SNIFFED)
        except LookupError:
            raise DataError(
                f"unknown encoding '{encoding}'. Set data.encoding to one like utf-8, latin-1 or utf-16"
            ) from None
        except UnicodeError:
            raise self._undecodable(name) from None
        if "\0" in text:
            raise DataError(
                f"'{name}' holds zero bytes: it is no text, or UTF-16. Set data.encoding: utf-16 if it is that"
            )
        lines = text.splitlines(keepends=True)
        return lines if len(raw) < _SNIFFED or len(lines) < 2 else lines[:-1]

    def _undecodable(self, name: str) -> DataError:
        return DataError(
            f"'{name}' is not in the encoding {self.form.encoding or 'UTF-8'}. "
            "Set data.encoding to its own, like latin-1 or cp1252"
        )

    # -------------------------------------------------------------------------------------------------- types

    def _types(self, name: str) -> dict[str, pa.DataType]:
        """The narrowest type of each column that takes every value of a file."""
        columns = self.dialects[name].names
        types: dict[str, pa.DataType] = {}
        assumed = self._first_types(name)
        while True:
            try:
                types = dict.fromkeys(columns, pa.null())
                for batch in self._stream(name, assumed):
                    for column in columns:
                        types[column] = united(types[column], self._type(column, batch.column(column)))
                return types
            except _TooNarrowError as error:
                assumed[error.column] = pa.string()

    def _first_types(self, name: str) -> dict[str, pa.DataType]:
        """What the columns are read as to find their types: fractions as numbers at once, all else as text."""
        text = dict.fromkeys(self.dialects[name].names, pa.string())
        first = next(self._stream(name, text), None)
        if first is None:
            return dict(text)
        if self.form.signs:
            return dict(text)
        floats = {column for column in text if pa.types.is_floating(self._type(column, first.column(column)))}
        return {column: pa.float64() if column in floats else pa.string() for column in text}

    def _type(self, column: str, values: pa.Array) -> pa.DataType:
        if column in self.exact:
            return pa.string()
        if pa.types.is_floating(values.type):
            return pa.float64()
        return type_of(values, self.form)

    # ------------------------------------------------------------------------------------------------ reading

    def _open(self, name: str) -> pa.NativeFile:
        with self.filesystem.open_input_stream(name, compression=None) as stream:
            first = stream.read(8)
        if first.startswith(_NO_TEXT):
            raise DataError(
                f"'{name}' is an archive or a workbook of a spreadsheet, no text. "
                "Unpack it, or save it as CSV UTF-8 or Parquet"
            )
        # what a file is, not what it is called: exports are packed under any name
        packed = next((how for mark, how in _PACKED_MARKS.items() if first.startswith(mark)), None)
        return self.filesystem.open_input_stream(name, compression=packed)

    def _stream(self, name: str, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        """Read the columns named in ``types`` of one file."""
        dialect = self.dialects[name]
        missing = ["", *self.form.missing, *USUAL_MISSING]
        with self._open(name) as stream:
            try:
                reader = pacsv.open_csv(
                    stream,
                    read_options=pacsv.ReadOptions(
                        block_size=_BLOCK,
                        skip_rows=dialect.skip,
                        encoding=dialect.encoding,
                        column_names=dialect.names,
                        skip_rows_after_names=1,  # ours differ, and the header may be of many lines
                    ),
                    parse_options=pacsv.ParseOptions(delimiter=dialect.delimiter, newlines_in_values=True),
                    convert_options=pacsv.ConvertOptions(
                        column_types=dict(types),
                        include_columns=list(types),
                        null_values=missing,  # of numbers; text is looked at where it is read
                        strings_can_be_null=False,
                    ),
                )
                for batch in reader:
                    if batch.num_rows:
                        yield batch
            except UnicodeError:
                raise self._undecodable(name) from None
            except pa.ArrowInvalid as error:
                raise self._refused(name, str(error), dialect) from None

    def _refused(self, name: str, message: str, dialect: _Dialect) -> Exception:
        if "invalid UTF8" in message:
            return self._undecodable(name)
        found = re.search(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error", message)
        if found is not None:
            return _TooNarrowError(dialect.names[int(found[1])])
        return DataError(f"'{name}' is not a well-formed CSV: {' '.join(message.split())[:250]}. Mend that row")


class _TooNarrowError(Exception):
    """A later block of a file holds text where the first one had numbers only."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


def _cells(lines: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    """Split lines, whichever way they end. Raises DataError for what is no CSV at all."""
    try:
        yield from csv.reader(lines, delimiter=delimiter)
    except csv.Error as error:
        raise DataError(
            f"a file is not a well-formed CSV: {error}. Look for a quote that is not closed in its first lines"
        ) from None


def _delimiter(lines: Sequence[str]) -> str:
    """The separator that gives the rows below the header as many cells as the header has, and the most."""

    def fit(delimiter: str) -> tuple[int, int]:
        rows = list(_cells(lines[:50], delimiter))
        width = len(rows[0])
        same = sum(len(row) == width for row in rows[1:] if row)
        return (width if width > 1 and same * 2 >= len(rows) - 1 else 0, width)

    return max(",;\t|", key=fit)


def _is_title(header: Sequence[str], lines: Sequence[str]) -> bool:
    """Whether the first line is a title: two of three cells are empty, or it is one cell above rows of several."""
    nameless = sum(not cell.strip() for cell in header)
    if len(header) > 1:
        return nameless > 1 and nameless * 3 >= len(header) * 2
    rows = list(_cells(lines[:50], _delimiter(lines[1:]))) if lines[1:] else []
    widths = [len(row) for row in rows[1:] if row]
    return bool(widths) and min(widths[-len(widths) // 2 :]) > 1


def type_of(values: pa.Array, form: Format) -> pa.DataType:
    """Return what the values of a text column are: null, int64, float64, bool, timestamp or string.

    Digits behind a zero and integers beyond 64 bits are text: as numbers they would not come back as they were.
    """
    known = without_missing(pc.utf8_trim_whitespace(values), (*form.missing, *USUAL_MISSING))
    if not len(known):
        return pa.null()
    if _castable(known, pa.int64()):
        padded = pc.and_(pc.starts_with(known, "0"), pc.greater(pc.binary_length(known), 1))
        return pa.string() if pc.any(padded).as_py() or _has(known, _PADDED) else pa.int64()
    coded = _has(known, _PADDED) or _has(known, _LONG)
    if form.signs:
        numbers = not coded and all(form.number(each) is not None for each in pc.unique(known).to_pylist())
        if numbers:
            return pa.float64()
    elif _castable(known, pa.float64()):
        return pa.string() if coded else pa.float64()
    if pc.all(pc.is_in(pc.utf8_lower(known), value_set=_TRUTH)).as_py():
        return pa.bool_()
    for zone in (None, "UTC"):
        if any(_castable(known, pa.timestamp(unit, zone)) for unit in ("us", "ns")):
            return pa.timestamp("us", zone)
    return pa.string()


def without_missing(values: pa.Array, tokens: Sequence[str]) -> pa.Array:
    """Return the values that are there: neither empty nor one of the tokens."""
    gone = pc.is_in(values, value_set=pa.array(["", *tokens], values.type))
    return values.filter(pc.and_(pc.invert(gone), values.is_valid()))


def _castable(values: pa.Array, kind: pa.DataType) -> bool:
    try:
        pc.cast(values[:1], kind)
        pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _has(values: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def united(one: pa.DataType, two: pa.DataType) -> pa.DataType:
    """Return the type that takes the values of both: integers and floats are floats, unlike ones are text."""
    if pa.types.is_dictionary(one):
        one = one.value_type
    if pa.types.is_dictionary(two):
        two = two.value_type
    if one == two or pa.types.is_null(two):
        return one
    if pa.types.is_null(one):
        return two
    if pa.types.is_integer(one) and pa.types.is_integer(two):
        signed = pa.types.is_signed_integer(one) and pa.types.is_signed_integer(two)
        return pa.int64() if signed or max(one.bit_width, two.bit_width) < 64 else pa.uint64()
    if _is_number(one) and _is_number(two):
        return pa.float64()
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(two):
        return pa.timestamp("us", one.tz if one.tz == two.tz else "UTC")
    if pa.types.is_temporal(one) and pa.types.is_temporal(two) and not (_is_span(one) or _is_span(two)):
        return pa.timestamp("us")
    return pa.string()


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_span(kind: pa.DataType) -> bool:
    return bool(pa.types.is_duration(kind) or pa.types.is_time(kind))


def differences(seen: Mapping[str, Mapping[str, pa.DataType]]) -> list[str]:
    """Say where the files of a folder differ: a column that some lack, and numbers here that are text there."""
    notes, total = [], len(seen)
    for column in dict.fromkeys(column for types in seen.values() for column in types):
        lacking = [file for file, types in seen.items() if column not in types]
        if lacking:
            notes.append(
                f"column '{column}' is missing in {len(lacking)} of {total} files ({len(lacking) / total:.0%}), like "
                f"'{lacking[0]}': "
                "it counts as missing there. Rename it if it has another name in those"
            )
        kinds: dict[str, list[str]] = {}
        for file, types in seen.items():
            if column in types and not pa.types.is_null(types[column]):
                kinds.setdefault(_plain(types[column]), []).append(file)
        if len(kinds) > 1:
            rare = min(kinds, key=lambda kind: len(kinds[kind]))
            common = max((kind for kind in kinds if kind != rare), key=lambda kind: len(kinds[kind]))
            notes.append(
                f"column '{column}' holds {rare} in {len(kinds[rare])} of {total} files "
                f"({len(kinds[rare]) / total:.0%}), like "
                f"'{kinds[rare][0]}', and {common} in others: it is read as text. Give it one type in all files"
            )
    return notes


def _plain(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_number(kind):
        return "numbers"
    return "truth values" if pa.types.is_boolean(kind) else "times" if pa.types.is_temporal(kind) else "text"


def _typed(
    batch: pa.RecordBatch, wanted: Sequence[str], types: Mapping[str, pa.DataType], form: Format
) -> pa.RecordBatch:
    """Bring the columns of a batch to their types; a column that the file lacks is null."""
    columns = []
    for name in wanted:
        place = batch.schema.get_field_index(name)
        if place < 0:
            columns.append(pa.nulls(batch.num_rows, types[name]))
        else:
            columns.append(_converted(batch.column(place), types[name], form))
    return pa.RecordBatch.from_arrays(columns, names=list(wanted))


def _converted(values: pa.Array, kind: pa.DataType, form: Format) -> pa.Array:
    if values.type == kind and not pa.types.is_string(kind):
        return values
    text = pc.utf8_trim_whitespace(values)
    if pa.types.is_string(kind):
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    gone = pc.is_in(text, value_set=pa.array(["", *form.missing, *USUAL_MISSING]))
    text = pc.if_else(gone, pa.scalar(None, pa.string()), text)
    if pa.types.is_floating(kind) and form.signs:
        distinct = pc.dictionary_encode(text)
        found = pa.array([form.number(each) for each in distinct.dictionary.to_pylist()], pa.float64())
        return found.take(distinct.indices)
    if pa.types.is_boolean(kind):
        return pc.equal(pc.utf8_lower(text), "true")
    if pa.types.is_timestamp(kind) and not _castable(text, kind):
        text = pc.cast(text, pa.timestamp("ns", kind.tz))
    return pc.cast(text, kind, safe=False)
