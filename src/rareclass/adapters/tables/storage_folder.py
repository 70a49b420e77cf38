"""Folders on a disk or in an object store, and Parquet files of known columns in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rareclass.adapters.tables.sources import _filesystem
from rareclass.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


class Place:
    """A folder or a prefix of an object store, by path or URL."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._filesystem, root = _filesystem(path)
        self._root = root.rstrip("/")

    def folders(self) -> list[str]:
        """Return the names of the folders in it, sorted; none where it is not there yet."""
        found = self._filesystem.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        return sorted(each.base_name for each in found if each.type == pafs.FileType.Directory)

    def delete(self, folder: str) -> None:
        """Delete a folder and what is in it."""
        self._filesystem.delete_dir(f"{self._root}/{folder}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file, making its folders."""
        self._make_parent(name)
        with self._filesystem.open_output_stream(f"{self._root}/{name}") as stream:
            stream.write(content)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None where there is none."""
        if self._filesystem.get_file_info(f"{self._root}/{name}").type != pafs.FileType.File:
            return None
        with self._filesystem.open_input_stream(f"{self._root}/{name}") as stream:
            found: bytes = stream.read()
        return found

    def write_frames(self, name: str, frames: Iterable[pd.DataFrame], columns: Mapping[str, str]) -> int:
        """Write frames one after the other into one Parquet file; return the number of rows.

        columns : name -> type of Arrow, like int64; held to also where a frame has nothing but missing values
        """
        schema = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in columns.items()])
        self._make_parent(name)
        count = 0
        with (
            self._filesystem.open_output_stream(f"{self._root}/{name}") as stream,
            pq.ParquetWriter(stream, schema, compression="zstd") as writer,
        ):
            for frame in frames:
                writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False))
                count += len(frame)
        return count

    def read_frames(self, name: str) -> Iterator[pd.DataFrame]:
        """Yield a Parquet file's rows in pieces. Raises DataError where it cannot be read."""
        try:
            with self._filesystem.open_input_file(f"{self._root}/{name}") as source:
                for batch in pq.ParquetFile(source).iter_batches(batch_size=100_000):
                    yield batch.to_pandas(integer_object_nulls=True)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"'{self.path}/{name}' cannot be read: {reason}. Take another backup") from None

    def _make_parent(self, name: str) -> None:
        self._filesystem.create_dir(f"{self._root}/{name}".rpartition("/")[0], recursive=True)
