"""A small dose of what `make faults` does to files: flipped bits, full disks, a log repeated and reordered."""

from __future__ import annotations

import pytest

from tests.faults.damage import flip_checkpoints, flip_ledger
from tests.faults.disks import KINDS, SIZES_MIB, fill_disk
from tests.faults.late import repeat_events


def test_a_flipped_bit_of_a_checkpoint_is_noticed_and_the_one_before_is_used() -> None:
    (row,) = flip_checkpoints(dose=3)
    assert row.dose >= 12 and row.broken == ()


def test_a_flipped_bit_of_the_ledger_or_its_archive_is_noticed_or_harmless_and_mended() -> None:
    rows = flip_ledger(dose=3)
    assert [row.broken for row in rows] == [(), (), ()]
    assert any("noticed" in row.held and not row.held.startswith("0 ") for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_gives_a_clear_error_and_with_room_it_goes_on(kind: str) -> None:
    assert fill_disk(kind, SIZES_MIB[kind][0]) == ""


def test_groups_repeated_reordered_and_late_train_once_and_count_once() -> None:
    (row,) = repeat_events(events=1600)
    assert row.dose > 1000 and row.broken == ()
