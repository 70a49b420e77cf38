"""The durable file between an answer and the store.

One process appends, before it answers; one reader ships, at least once. A record lies in a segment file as
``magic, length, crc32, payload``, written with one ``write()``. A torn tail (kill -9, power cut) is skipped: it belongs
to a request that was never answered. A segment is closed after ``SEGMENT_SECONDS`` and deleted once it was shipped, so
that nothing outlives its way to the store. Bytes that a disk has damaged are skipped up to the next intact record and
counted.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rareclass.errors import SpoolError, SpoolFullError

try:
    import fcntl
except ImportError:  # Windows: everything but serving runs there
    fcntl = None  # type: ignore[assignment]

MAGIC = b"RcS1"
HEADER = struct.Struct("<4sII")
SEGMENT_BYTES = 16 << 20
SEGMENT_SECONDS = 60.0
"""A segment with records is closed at this age at the latest; what was shipped of it is then deleted."""
LARGEST_RECORD = 1 << 30
CHECKPOINT = "checkpoint"
SLOT = struct.Struct("<QQQI")  # sequence, segment, offset, crc32
SLOT_BYTES = 512
_DEPTH_EVERY = 0.2  # seconds between looks at the reader's checkpoint


def frame(payload: bytes) -> bytes:
    """Return a record as it lies in a segment."""
    return HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def _lock(folder: Path, name: str, who: str) -> int:
    """Take an exclusive lock that dies with the process. Raises SpoolError when another process holds it."""
    if fcntl is None:
        raise SpoolError(
            "serving needs the file locks of Linux or macOS, which this system does not have. Serve in a container"
        )
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(20):  # a reader that looks whether a writer lives holds the lock for a moment
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.01)
    else:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise SpoolError(
            f"spool '{folder}' already has a {who} (process {holder}). Stop it, or set serve.spool to another folder"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _has_writer(folder: Path) -> bool:
    """True while some process appends to the folder."""
    if fcntl is None:
        return False
    with contextlib.suppress(FileNotFoundError), (folder / "writer.lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _folder(directory: str | Path) -> Path:
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SpoolError(
            f"spool '{folder}' cannot be made: {error.strerror}. Set serve.spool to a folder that can be written"
        ) from None
    return folder


def segments(folder: Path) -> list[int]:
    """Return the numbers of the segment files, oldest first."""
    return sorted(int(entry.name[:-4]) for entry in os.scandir(folder) if entry.name.endswith(".log"))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:016d}.log"


def _slots(folder: Path) -> list[tuple[int, int, int]]:
    """Return the intact checkpoints as (sequence, segment, offset), oldest first."""
    try:
        raw = (folder / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return []
    slots = [raw[start : start + SLOT.size] for start in (0, SLOT_BYTES)]
    known = [
        SLOT.unpack(slot) for slot in slots if len(slot) == SLOT.size and zlib.crc32(slot[:-4]) == SLOT.unpack(slot)[3]
    ]
    return sorted((sequence, segment, offset) for sequence, segment, offset, _ in known)


def _checkpoint(folder: Path) -> tuple[int, int]:
    """Return (segment, offset) up to which everything is in the store; the start when both slots are damaged, because
    shipping again costs nothing."""
    slots = _slots(folder)
    return slots[-1][1:] if slots else (0, 0)


def unshipped_bytes(folder: Path) -> int:
    """Return how many bytes the reader has not committed."""
    segment, offset = _checkpoint(folder)
    total = 0
    for number in segments(folder):
        with contextlib.suppress(FileNotFoundError):
            size = _path(folder, number).stat().st_size
            total += size if number > segment else max(size - offset, 0) if number == segment else 0
    return total


def first_waiting(folder: Path) -> bytes | None:
    """Return the oldest record that was not shipped, None without one. Takes no lock: a server may go on writing."""
    segment, offset = _checkpoint(folder)
    for number in segments(folder):
        if number < segment:
            continue
        with contextlib.suppress(FileNotFoundError), _path(folder, number).open("rb") as file:
            file.seek(offset if number == segment else 0)
            head = file.read(HEADER.size)
            length = HEADER.unpack(head)[1] if len(head) == HEADER.size else 0
            records, _, _ = _parse(head + file.read(min(length, LARGEST_RECORD)), final=True)
            if records:
                return records[0]
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Spool:
    """The writing end; one per folder, safe to use from several threads.

    directory : folder of the segments; made when it does not exist
    limit : bytes not yet shipped from which ``over_limit()`` is true
    durability : ``process``: ``append`` returns when the operating system has the bytes, which survives the death of
        the process; a group fsync follows within ``sync_ms``, which is all that a power cut can take.
        ``power``: ``append`` returns after an fsync that covers it; appends that wait share one.
    seconds : age at which a segment with records is closed
    Raises SpoolError when another process writes to the folder, SpoolFullError when the disk is full.
    """

    def __init__(
        self,
        directory: str | Path,
        limit: int = 1 << 30,
        durability: str = "process",
        sync_ms: float = 50,
        *,
        seconds: float = SEGMENT_SECONDS,
    ) -> None:
        if durability not in ("process", "power"):
            raise SpoolError(f"unknown durability '{durability}'. Set serve.durability to one of: power, process")
        self.folder = _folder(directory)
        self._lock_file = _lock(self.folder, "writer.lock", "writer")
        self._limit, self._power, self._window = limit, durability == "power", sync_ms / 1000
        self._segment_bytes = max(min(SEGMENT_BYTES, limit // 4), 1 << 12)
        self._seconds, self._opened = seconds, 0.0
        self._changed = threading.Condition()
        self._written = self._synced = 0  # bytes since opening
        self._failure: OSError | None = None
        self._closed = False
        # apart from _changed: an append must not wake a syncer that keeps its window
        self._stopping = threading.Event()
        self._descriptor, self._offset = -1, 0
        self._depth, self._depth_at = 0, -1.0
        self._open_segment()
        self._syncer = threading.Thread(target=self._sync_forever, name="spool-fsync", daemon=True)
        self._syncer.start()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, records: bytes | Sequence[bytes]) -> None:
        """Write records with one ``write()``; what they log may be answered when this returns. All of them or none.

        Raises SpoolFullError when the disk is full, SpoolError for any other failure of the disk.
        """
        block = frame(records) if isinstance(records, bytes) else b"".join(map(frame, records))
        with self._changed:
            if self._closed:
                raise SpoolError(f"spool '{self.folder}' is closed")
            if self._offset >= self._segment_bytes or self._aged():
                self._open_segment()
            self._write(block)
            self._offset += len(block)
            self._written += len(block)
            mine = self._written
            self._changed.notify_all()
            if self._power:
                self._changed.wait_for(lambda: self._synced >= mine or self._failure is not None)
                if self._synced < mine:
                    raise SpoolError(f"spool '{self.folder}' cannot be synced: {self._failure}")

    def _write(self, block: bytes) -> None:
        """Append to the segment, and take back a part that was written when the rest does not fit."""
        done = 0
        try:
            while done < len(block):  # one turn, but for a disk that is filling up
                done += os.write(self._descriptor, block[done:] if done else block)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._offset)
            if os.fstat(self._descriptor).st_size:
                self._offset = self._segment_bytes  # the next append begins a segment, so that this one can be deleted
            raise SpoolFullError(
                f"spool '{self.folder}' cannot take the record: {error.strerror}. Free its disk; "
                "requests are refused until then"
            ) from None

    def _open_segment(self) -> None:
        """Begin the next segment; the old one is synced first, so that later segments never outlive it."""
        found = segments(self.folder)
        number = max(found[-1] if found else 0, _checkpoint(self.folder)[0]) + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)
                self._synced = self._written
            fresh = os.open(_path(self.folder, number), flags, 0o600)
            _sync_folder(self.folder)
        except OSError as error:
            raise SpoolFullError(
                f"spool '{self.folder}' cannot begin a segment: {error.strerror}. Free its disk"
            ) from None
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._offset, self._opened = fresh, 0, time.monotonic()

    def _aged(self) -> bool:
        return self._offset > 0 and time.monotonic() - self._opened >= self._seconds

    def _sync_forever(self) -> None:
        """Group fsync: one for everything written since the last, at once (power) or once per window (process)."""
        while True:
            with self._changed:
                while not self._changed.wait_for(
                    lambda: self._closed or self._written > self._synced, timeout=self._seconds
                ):
                    if self._aged():  # nothing was written since: a failing disk is told at the next append
                        with contextlib.suppress(SpoolFullError):
                            self._open_segment()
                if self._closed:
                    return
                target, descriptor = self._written, os.dup(self._descriptor)
            try:
                os.fsync(descriptor)
                failure = None
            except OSError as error:
                failure = error
            finally:
                os.close(descriptor)
            with self._changed:
                self._failure = failure
                if failure is None:
                    self._synced = max(self._synced, target)
                self._changed.notify_all()
            if failure is not None or not self._power:
                self._stopping.wait(self._window)

    def depth(self) -> int:
        """Return the bytes that are not in the store yet (a look at the folder)."""
        return unshipped_bytes(self.folder)

    def drained(self) -> bool:
        """True when everything is in the store."""
        return self.depth() == 0

    def over_limit(self) -> bool:
        """True while more than ``limit`` bytes wait: rows decided 0 should be sampled.

        Cheap enough for every request.
        """
        now = time.monotonic()
        if now - self._depth_at > _DEPTH_EVERY:
            self._depth, self._depth_at = self.depth(), now
        return self._depth > self._limit

    def close(self) -> None:
        """Sync, and give the folder to the next writer."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._stopping.set()
            self._changed.notify_all()
        self._syncer.join()
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
        os.close(self._descriptor)
        os.close(self._lock_file)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in the order of writing, and where the next ones begin."""

    records: tuple[bytes, ...]
    segment: int
    offset: int
    damaged_bytes: int = 0


class SpoolReader:
    """The reading end; one per folder, in the writer's process or in another. Raises SpoolError when there is one."""

    def __init__(self, directory: str | Path) -> None:
        self.folder = _folder(directory)
        self._lock_file = _lock(self.folder, "reader.lock", "reader")
        self._checkpoint_file = os.open(self.folder / CHECKPOINT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._checkpoint_file).st_size < 2 * SLOT_BYTES:
            os.pwrite(self._checkpoint_file, bytes(2 * SLOT_BYTES), 0)  # takes its space now, not when the disk is full
            os.fsync(self._checkpoint_file)

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder to the next reader."""
        os.close(self._checkpoint_file)
        os.close(self._lock_file)

    def depth(self) -> int:
        """Return the bytes that are not committed."""
        return unshipped_bytes(self.folder)

    def read(self, max_bytes: int = 8 << 20) -> Batch:
        """Return the records after the last commit, about ``max_bytes`` of them; none when there is nothing new."""
        segment, offset = _checkpoint(self.folder)
        records: list[bytes] = []
        damaged = taken = 0
        found = [number for number in segments(self.folder) if number >= segment]
        for number in found:  # listed before they are read: only the last of them can still grow
            start = offset if number == segment else 0
            with _path(self.folder, number).open("rb") as file:
                file.seek(start)
                data = file.read(max(max_bytes - taken, 0) + HEADER.size)
                some, used, bad = _parse(data, final=False)
                if used == 0 and len(data) >= HEADER.size:  # one record larger than what was asked for
                    data += file.read()
                    some, used, bad = _parse(data, final=False)
                ended = not file.read(1)
            # a dead writer's last segment is complete too: the next writer begins another one
            if ended and used < len(data) and (number != found[-1] or not _has_writer(self.folder)):
                some, used, bad = _parse(data, final=True)
            records += some
            damaged += bad
            taken += used
            segment, offset = number, start + used
            if not ended or taken >= max_bytes:
                break
        return Batch(tuple(records), segment, offset, damaged)

    def commit(self, batch: Batch) -> None:
        """Remember, atomically, that a batch is in the store; delete the segments before it."""
        slots = _slots(self.folder)
        if slots and slots[-1][1:] == (batch.segment, batch.offset):
            return
        sequence = slots[-1][0] + 1 if slots else 1
        body = SLOT.pack(sequence, batch.segment, batch.offset, 0)[:-4]
        # two slots in turn, overwritten in place: one is always whole, and a full disk can still be shipped empty
        os.pwrite(self._checkpoint_file, body + struct.pack("<I", zlib.crc32(body)), SLOT_BYTES * (sequence % 2))
        os.fsync(self._checkpoint_file)
        for number in segments(self.folder):
            if number < batch.segment or (number == batch.segment and self._complete(batch)):
                _path(self.folder, number).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete segments that were shipped before this release deleted them at once."""
        segment, offset = _checkpoint(self.folder)
        for number in segments(self.folder):
            if number < segment or (number == segment and self._complete(Batch((), segment, offset))):
                _path(self.folder, number).unlink(missing_ok=True)

    def _complete(self, batch: Batch) -> bool:
        """True when nothing more will come into the batch's segment: a writer never goes on with another one's."""
        if _has_writer(self.folder):
            return False
        with contextlib.suppress(FileNotFoundError):
            return batch.offset >= _path(self.folder, batch.segment).stat().st_size
        return False


def _parse(data: bytes, *, final: bool) -> tuple[list[bytes], int, int]:
    """Return the intact records of ``data``, the bytes used, and how many of those were damaged.

    final : nothing will be appended any more, so an incomplete record at the end is damage and not a wait.
    """
    records: list[bytes] = []
    position = damaged = 0
    while len(data) - position >= HEADER.size:
        magic, length, crc = HEADER.unpack_from(data, position)
        start = position + HEADER.size
        if magic == MAGIC and length <= LARGEST_RECORD:
            payload = data[start : start + length]
            if len(payload) == length and zlib.crc32(payload) == crc:
                records.append(payload)
                position = start + length
                continue
            if len(payload) < length and not final:
                break  # still being written, or cut off by the size of the read
        following = data.find(MAGIC, position + 1)
        if following < 0:
            break
        damaged += following - position
        position = following
    if final:
        damaged += len(data) - position
        position = len(data)
    return records, position, damaged
