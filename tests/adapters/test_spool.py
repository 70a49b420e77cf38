"""The spool on a real disk, with writers that are really killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareclass.adapters.spool import Batch, Spool, SpoolReader, _parse, first_waiting, frame
from rareclass.errors import SpoolError, SpoolFullError


def everything(folder: Path, max_bytes: int = 8 << 20) -> list[bytes]:
    """Read and commit until nothing comes any more."""
    records: list[bytes] = []
    with SpoolReader(folder) as reader:
        while (batch := reader.read(max_bytes)).records:
            records += batch.records
            reader.commit(batch)
        reader.commit(batch)
    return records


@pytest.mark.parametrize("durability", ["process", "power"])
def test_records_come_out_as_they_went_in(tmp_path: Path, durability: str) -> None:
    with Spool(tmp_path, durability=durability) as spool:
        assert spool.drained()
        spool.append(b"one")
        spool.append([b"two", b"", b"three" * 1000])
        assert not spool.drained()
        assert everything(tmp_path) == [b"one", b"two", b"", b"three" * 1000]
        assert spool.drained()


def test_what_is_not_committed_comes_again_also_to_another_reader(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append([b"a", b"b"])
        with SpoolReader(tmp_path) as reader:
            assert reader.read().records == (b"a", b"b")
            assert reader.read().records == (b"a", b"b")
        with SpoolReader(tmp_path) as reader:
            reader.commit(reader.read())
            assert reader.read().records == ()
            spool.append(b"c")
            assert reader.read().records == (b"c",)


@pytest.mark.parametrize("max_bytes", [1, 40, 5000, 1 << 20])
def test_segments_roll_over_and_go_when_they_are_shipped(tmp_path: Path, max_bytes: int) -> None:
    sent = [f"{i}:".encode() * (i % 97) for i in range(300)]
    with Spool(tmp_path, limit=1 << 14) as spool:
        for record in sent:
            spool.append(record)
        assert len(list(tmp_path.glob("*.log"))) > 5
        assert spool.over_limit()
        assert everything(tmp_path, max_bytes) == sent
        assert len(list(tmp_path.glob("*.log"))) == 1
        assert spool.depth() == 0


def test_over_limit_starts_above_the_limit(tmp_path: Path) -> None:
    with Spool(tmp_path, limit=1 << 16) as spool:
        assert not spool.over_limit()
        spool.append(b"x" * (1 << 16))
        assert spool.depth() > 1 << 16
        spool._depth_at = -1.0  # the next look at the folder is due
        assert spool.over_limit()


def test_a_second_writer_and_a_second_reader_are_refused(tmp_path: Path) -> None:
    with Spool(tmp_path), SpoolReader(tmp_path):
        with pytest.raises(SpoolError, match=rf"already has a writer \(process {os.getpid()}\)"):
            Spool(tmp_path)
        with pytest.raises(SpoolError, match="already has a reader"):
            SpoolReader(tmp_path)
    Spool(tmp_path).close()


def test_an_unknown_durability_and_a_closed_spool_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"Set serve\.durability to one of: power, process"):
        Spool(tmp_path, durability="eternal")
    spool = Spool(tmp_path)
    spool.close()
    spool.close()
    with pytest.raises(SpoolError, match="is closed"):
        spool.append(b"x")


def test_threads_do_not_mix_their_records(tmp_path: Path) -> None:
    with Spool(tmp_path, limit=1 << 16, durability="power") as spool:

        def write(name: int) -> None:
            for i in range(50):
                spool.append([f"{name}.{i}.{part}".encode() * 20 for part in range(3)])

        threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = everything(tmp_path)
    assert sorted(got) == sorted(
        f"{n}.{i}.{part}".encode() * 20 for n in range(6) for i in range(50) for part in range(3)
    )
    first = {n: [r for r in got if r.startswith(f"{n}.".encode())] for n in range(6)}
    assert all(
        records == [f"{n}.{i}.{p}".encode() * 20 for i in range(50) for p in range(3)] for n, records in first.items()
    )


WRITER = """
import itertools, os, sys
from rareclass.adapters.spool import Spool
spool = Spool(sys.argv[1], limit=1 << 18, durability=sys.argv[2])
for i in itertools.count():
    spool.append(f"{i}:".encode() + b"x" * (i % 500))
    os.write(1, b"%d\\n" % i)
"""


@pytest.mark.parametrize("durability", ["process", "power"])
def test_kill_minus_9_under_load_loses_nothing_that_was_answered(tmp_path: Path, durability: str) -> None:
    got: list[bytes] = []
    for life in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), durability], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(200 + 100 * life)]  # the answers it has given
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        answered = int([line for line in lines if line.endswith(b"\n")][-1])
        got = everything(tmp_path, 3000)
        numbers = [int(record.partition(b":")[0]) for record in got]
        assert numbers[: answered + 1] == list(range(answered + 1))
        assert len(numbers) <= answered + 2  # at most the one that was written and not yet answered
        assert all(len(record.partition(b":")[2]) == number % 500 for record, number in zip(got, numbers, strict=True))


def test_a_torn_tail_of_a_dead_writer_is_skipped_and_leaves_nothing_waiting(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append(b"whole")
    [segment] = tmp_path.glob("*.log")
    with segment.open("ab") as file:
        file.write(frame(b"never answered")[:-3])
    with SpoolReader(tmp_path) as reader:
        batch = reader.read()
        assert batch.records == (b"whole",)
        assert batch.damaged_bytes == len(frame(b"never answered")) - 3
        reader.commit(batch)
        assert reader.depth() == 0
    with Spool(tmp_path) as spool:
        spool.append(b"next")
        assert everything(tmp_path) == [b"next"]


def test_a_record_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool, SpoolReader(tmp_path) as reader:
        spool.append(b"whole")
        block = frame(b"slow" * 10)
        os.write(spool._descriptor, block[:20])
        batch = reader.read()
        assert (batch.records, batch.damaged_bytes) == ((b"whole",), 0)
        reader.commit(batch)
        os.write(spool._descriptor, block[20:])
        assert reader.read().records == (b"slow" * 10,)


def test_bytes_that_the_disk_damaged_cost_only_their_own_records(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for i in range(10):
            spool.append(f"record {i}".encode())
    [segment] = tmp_path.glob("*.log")
    size = len(frame(b"record 0"))
    content = bytearray(segment.read_bytes())
    content[3 * size + 14] ^= 0xFF  # payload of 3
    content[6 * size + 5] ^= 0xFF  # length of 6
    segment.write_bytes(content)
    assert everything(tmp_path) == [f"record {i}".encode() for i in range(10) if i not in (3, 6)]


@settings(max_examples=200, deadline=None)
@given(
    records=st.lists(st.binary(max_size=40), max_size=8), cut=st.integers(0, 400), flip=st.none() | st.integers(0, 399)
)
def test_parsing_returns_only_records_that_were_written(records: list[bytes], cut: int, flip: int | None) -> None:
    block = bytearray(b"".join(map(frame, records)))[:cut]
    if flip is not None and flip < len(block):
        block[flip] ^= 0x5A
    got, used, damaged = _parse(bytes(block), final=True)
    assert used == len(block)
    assert damaged + sum(len(frame(record)) for record in got) == used
    rest = iter(records)
    assert all(record in rest for record in got)  # a subsequence
    if flip is None:
        assert got == records[: len(got)]
        assert _parse(bytes(block), final=False)[0] == got


def test_a_damaged_checkpoint_ships_again_what_is_left(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append(b"a")
        assert everything(tmp_path) == [b"a"]
        (tmp_path / "checkpoint").write_bytes(b"nonsense" * 128)
        assert everything(tmp_path) == [b"a"]


def test_a_checkpoint_torn_by_a_power_cut_falls_back_to_the_one_before(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool, SpoolReader(tmp_path) as reader:
        for record in (b"a", b"b", b"c"):
            spool.append(record)
            if record != b"c":
                reader.commit(reader.read())
        content = bytearray((tmp_path / "checkpoint").read_bytes())
        content[9] ^= 0xFF  # the second commit lies in the first slot
        (tmp_path / "checkpoint").write_bytes(content)
        assert reader.read().records == (b"b", b"c")


def test_new_segments_never_fall_behind_the_checkpoint(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append(b"a")
    everything(tmp_path)
    for segment in tmp_path.glob("*.log"):
        segment.unlink()
    with Spool(tmp_path) as spool:
        spool.append(b"b")
        assert everything(tmp_path) == [b"b"]


FULL_DISK = """
import resource, signal, sys
from rareclass.adapters.spool import Spool
from rareclass.errors import SpoolFullError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
taken = 0
try:
    while True:
        spool.append(b"%06d" % taken * 10)
        taken += 1
except SpoolFullError as error:
    print(taken, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(b"space again")
"""


def test_a_file_system_that_takes_half_a_record_refuses_it_whole_and_goes_on_later(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    taken, message = done.stdout.strip().split(" ", 1)
    assert int(taken) == 1000 // len(frame(b"0" * 60))
    assert "cannot take the record: File too large. Free its disk" in message
    assert everything(tmp_path) == [b"%06d" % i * 10 for i in range(int(taken))] + [b"space again"]


def _mount_tmpfs(folder: Path, size: str) -> bool:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    return mounted.returncode == 0


def test_a_full_disk_refuses_the_answer_keeps_what_it_took_and_can_be_shipped_empty(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not _mount_tmpfs(disk, "256k"):
        pytest.skip("needs the right to mount a small file system (root)")
    try:
        with Spool(disk) as spool, SpoolReader(disk) as reader:
            sent = [b"%06d" % i * 100 for i in range(1000)]
            with pytest.raises(SpoolFullError, match=os.strerror(errno.ENOSPC)):  # noqa: PT012
                for record in sent:
                    spool.append(record)
            batch = reader.read()
            assert list(batch.records) == sent[: len(batch.records)]
            assert len(batch.records) > 300
            with pytest.raises(SpoolFullError):
                spool.append(b"x" * 8000)
            reader.commit(batch)
            reader.commit(reader.read())
            assert reader.depth() == 0
            spool.append(b"space again" * 1000)
            assert reader.read().records == (b"space again" * 1000,)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_cannot_sync_refuses_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Spool(tmp_path, durability="power", sync_ms=1) as spool:
        spool.append(b"a")

        def broken(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("rareclass.adapters.spool.os.fsync", broken)
            with pytest.raises(SpoolError, match="cannot be synced"):
                spool.append(b"b")


def test_an_empty_batch_is_where_the_reader_stands(tmp_path: Path) -> None:
    with SpoolReader(tmp_path) as reader:
        assert reader.read() == Batch((), 0, 0)
        reader.commit(reader.read())
        assert reader.depth() == 0


def test_the_oldest_record_on_its_way_can_be_looked_at_while_others_write_and_read(tmp_path: Path) -> None:
    assert first_waiting(tmp_path) is None
    with Spool(tmp_path) as spool:
        assert first_waiting(tmp_path) is None
        spool.append([b"old" * 5000, b"old too"])
        assert first_waiting(tmp_path) == b"old" * 5000
        with SpoolReader(tmp_path) as reader:
            batch = reader.read()
            spool.append([b"new", b"newer"])
            reader.commit(batch)
            assert first_waiting(tmp_path) == b"new"
            reader.commit(reader.read())
            assert first_waiting(tmp_path) is None
