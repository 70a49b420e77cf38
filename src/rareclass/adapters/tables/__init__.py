"""Tables in and out: labelled history from anywhere, split and encoded; rows and frames as files.

``sources`` opens and scans, ``encoding`` turns batches into a matrix, ``ingest`` puts it together, ``files`` writes and
reads back, ``demos`` makes demo data. What others call is listed here.
"""

from rareclass.adapters.tables.again import columns_again, row_ids, table_for
from rareclass.adapters.tables.data_version import data_version
from rareclass.adapters.tables.demos import DEMOS
from rareclass.adapters.tables.files import (
    export,
    read_frame,
    read_frames,
    read_rows,
    write_frame,
    write_frames,
    write_rows,
)
from rareclass.adapters.tables.ingest import Ingested, columns_of, ingest, location, survey, time_reading
from rareclass.adapters.tables.lent import lent_rows
from rareclass.adapters.tables.sources import scheme

__all__ = [
    "DEMOS",
    "Ingested",
    "columns_again",
    "columns_of",
    "data_version",
    "export",
    "ingest",
    "lent_rows",
    "location",
    "read_frame",
    "read_frames",
    "read_rows",
    "row_ids",
    "scheme",
    "survey",
    "table_for",
    "time_reading",
    "write_frame",
    "write_frames",
    "write_rows",
]
