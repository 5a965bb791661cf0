"""The spool: what is in it stays, in order, whatever is killed, and half a record never hides the others."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.spool
from streams.spool import Spool, Spooled, SpoolError, SpoolFull

MIB = 2**20


def record(number: int, size: int = 10) -> Spooled:
    return Spooled("impressions", f"k{number}".encode(), f"{number}:".encode() + b"x" * size)


def all_of(spool: Spool, at_once: int = 7) -> list[bytes]:
    """Return every waiting record's value, reading as the forwarder does."""
    found: list[bytes] = []
    while True:
        records, place = spool.read(at_once)
        if not records:
            return found
        found += [each.value for each in records]
        spool.done(place)


def test_records_come_out_once_in_order_over_segments_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.spool, "SEGMENT_BYTES", 300)
    chosen, written, read = random.Random(1), 0, []
    for _ in range(6):
        spool = Spool(tmp_path, bytes_max=MIB)
        for _ in range(chosen.randrange(20)):
            spool.append([record(written + n, chosen.randrange(60)) for n in range(3)])
            written += 3
        records, place = spool.read(chosen.randrange(1, 30))
        read += [each.value for each in records]
        spool.done(place)
        spool.close()
    spool = Spool(tmp_path, bytes_max=MIB)
    read += all_of(spool)
    assert [value.partition(b":")[0] for value in read] == [str(n).encode() for n in range(written)]
    assert spool.waiting_bytes == 0
    assert len(list(tmp_path.glob("*.spool"))) == 1, "segments that Kafka has are deleted"


def test_what_was_not_acknowledged_comes_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=MIB)
    spool.append([record(0), record(1)])
    assert len(spool.read(10)[0]) == 2
    spool.close()
    assert len(all_of(Spool(tmp_path, bytes_max=MIB))) == 2


@given(st.integers(min_value=1, max_value=60))
def test_half_a_record_at_the_end_is_cut_off_and_the_next_one_follows(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        spool = Spool(path, bytes_max=MIB)
        for number in range(3):
            spool.append([record(number)])
        spool.close()
        segment = next(path.glob("*.spool"))
        frame = segment.stat().st_size // 3
        whole = 2 - (cut - 1) // frame if cut < 3 * frame else 0
        os.truncate(segment, max(segment.stat().st_size - cut, 0))
        spool = Spool(path, bytes_max=MIB)
        spool.append([record(9)])
        assert [value[:1] for value in all_of(spool)] == [*[str(n).encode() for n in range(max(whole, 0))], b"9"]
        spool.close()


def test_a_damaged_record_in_the_middle_is_told_and_nothing_is_skipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=MIB)
    spool.append([record(n) for n in range(3)])
    segment = next(tmp_path.glob("*.spool"))
    content = bytearray(segment.read_bytes())
    content[12] ^= 1
    segment.write_bytes(content)
    with pytest.raises(SpoolError, match="byte 0 is damaged"):
        spool.read(10)


def test_a_full_spool_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=500)
    taken = 0
    with pytest.raises(SpoolFull, match=r"serve\.spool_mib_max"):
        while True:
            spool.append([record(taken)])
            taken += 1
    assert taken > 3
    assert len(all_of(spool)) == taken
    spool.append([record(taken)])
    assert len(all_of(spool)) == 1


def test_one_process_alone_has_a_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, bytes_max=MIB)
    with pytest.raises(SpoolError, match="another process"):
        Spool(tmp_path, bytes_max=MIB)
    spool.close()
    Spool(tmp_path, bytes_max=MIB).close()


WRITER = """
import sys
from pathlib import Path
from streams.spool import Spool, Spooled
spool = Spool(Path(sys.argv[1]), bytes_max=2**26)
number = 0
while True:
    spool.append([Spooled("impressions", b"k", str(number).encode())])
    print(number, flush=True)
    number += 1
"""


def test_a_killed_writer_has_lost_nothing_that_it_told(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = -1
    for line in process.stdout:
        told = int(line)
        if told >= 500:
            process.send_signal(signal.SIGKILL)
            break
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    values = [int(value) for value in all_of(Spool(tmp_path, bytes_max=2**26), at_once=100)]
    assert values[: told + 1] == list(range(told + 1))
    assert len(values) - told <= 2
