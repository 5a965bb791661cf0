"""Clicks that come after a promotion: which stage of the ramp they count for, and where else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb

from infra.promotion.evidence import seen_at_stage
from search_env.feedback.attribution import JoinSettings
from search_env.feedback.joining import Joiner
from search_env.feedback.outcomes import TOO_LATE, Decided, LeftOutAction
from search_env.serving.ramp import Ramp, RampSettings, StageResult, next_step, taken
from storage.ledger import build_batch, store_batch
from storage.log import Log
from storage.offpolicy.reading import read_traffic
from storage.offpolicy.traffic import Traffic
from storage.schema import migrate
from streams.events import Position
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from streams.utility import UtilitySettings
from tests.stored_events import RUN, record

VERSION, RAW = "1-new-000001", ""
RULES = JoinSettings(window_ms=500, lateness_ms=10, early_ms=5, memory_ms=50_000)
SETTINGS = RampSettings(stages=(0.05, 0.25, 1.0), impressions_min=40)
ADVANCED_MS = 10_000  # The second stage begins.
FIRST = Ramp(version=VERSION, stage=0, share=0.05, since_ms=1_000)
SECOND = taken(
    FIRST, next_step(FIRST, StageResult(treated=50, others=900, worth=1.0, difference=0.0, low=-0.01, high=0.01,
                                        mismatch=1.0), SETTINGS), SETTINGS, now_ms=ADVANCED_MS
)  # fmt: skip


def search(name: str, at_ms: int, policy: str, share: float) -> Impression:
    return Impression(
        impression_id=name,
        query_id=name,
        query="red mug",
        client=name,
        shown=(Shown(document_id="a", rank=1),),
        at_ms=at_ms,
        policy=policy,
        action_propensity=share if policy == VERSION else 1 - share,
        offered={RAW: 1 - share, VERSION: share},
    )


def click(name: str, at_ms: int) -> UserAction:
    return UserAction(action_id=f"a-{name}", impression_id=name, kind="click", document_id="a", at_ms=at_ms)


class Joined:
    """What the joiner has decided so far, as the ledger has it."""

    def __init__(self, folder: Path) -> None:
        self._joiner, self._folder, self._offset = Joiner(RULES), folder, 0
        self._searches: dict[str, Impression] = {}
        self.decided: list[Decided] = []

    def came(self, events: Iterable[Impression | UserAction]) -> None:
        for event in events:
            if isinstance(event, Impression):
                self._searches[event.impression_id] = event
            self.decided += self._joiner.add(event, Position(topic="live.events", partition=0, offset=self._offset))
            self._offset += 1

    def traffic(self, *, since_ms: int = 0) -> Traffic:
        path = self._folder / f"{self._offset}.duckdb"
        with duckdb.connect(str(path)) as connection:
            migrate(connection)
            events = [*self._searches.values(), *(each for each in self.decided if isinstance(each, ImpressionOutcome))]
            store_batch(connection, build_batch([record(event, number) for number, event in enumerate(events)]))
            log = Log(connection, self._folder / "archive", live=False)
            return read_traffic(log, RUN, UtilitySettings(), since_ms=since_ms)


def stage(joined: Joined, ramp: Ramp) -> StageResult:
    """Return what a look at this stage sees, read as `promote` reads it."""
    return seen_at_stage(joined.traffic(since_ms=ramp.since_ms), ramp, SETTINGS)


def around_the_promotion(joined: Joined) -> None:
    """Sixty people of each side search shortly before the second stage begins, and sixty of each side after it."""
    for number in range(60):
        for policy in (RAW, VERSION):
            joined.came([search(f"before-{number}-{policy}", ADVANCED_MS - 100 + number, policy, 0.05)])
    for number in range(60):
        for policy in (RAW, VERSION):
            joined.came([search(f"after-{number}-{policy}", ADVANCED_MS + number, policy, 0.25)])


def test_a_late_click_counts_for_the_stage_of_its_search_and_for_no_later_one(tmp_path: Path) -> None:
    joined = Joined(tmp_path)
    around_the_promotion(joined)
    assert SECOND.stage == 1 and SECOND.since_ms == ADVANCED_MS
    assert stage(joined, FIRST).treated == 0, "no outcome is final yet"
    # Everybody who got raw results before the promotion clicks after it; nobody else clicks.
    joined.came(click(f"before-{number}-{RAW}", ADVANCED_MS + 100) for number in range(60))
    joined.came([search("much-later", ADVANCED_MS + 5_000, RAW, 0.25)])  # Moves the watermark past every window.
    first, second = stage(joined, FIRST), stage(joined, SECOND)
    assert (first.treated, first.others, first.worth, first.difference) == (60, 60, 1.0, -1.0)
    assert (second.treated, second.others, second.worth, second.difference) == (60, 60, 0.0, 0.0)
    assert next_step(SECOND, second, SETTINGS).kind != "roll back"


def test_a_late_click_still_tells_what_the_version_is_worth(tmp_path: Path) -> None:
    joined = Joined(tmp_path)
    around_the_promotion(joined)
    joined.came(click(f"before-{number}-{VERSION}", ADVANCED_MS + 100) for number in range(60))
    joined.came([search("much-later", ADVANCED_MS + 5_000, RAW, 0.25)])
    traffic = joined.traffic()  # As `compare` and the gate of the next version read it: with the logged probabilities.
    clicked = traffic.where(traffic.utilities > 0)
    assert len(clicked) == 60
    assert set(clicked.policies) == {VERSION} and set(clicked.propensities.tolist()) == {0.05}


def test_a_click_after_its_window_counts_for_no_stage_and_is_kept_with_its_reason(tmp_path: Path) -> None:
    joined = Joined(tmp_path)
    around_the_promotion(joined)
    joined.came([search("much-later", ADVANCED_MS + 5_000, RAW, 0.25)])
    before = stage(joined, FIRST), stage(joined, SECOND)
    joined.came(click(f"before-{number}-{RAW}", ADVANCED_MS + 100) for number in range(60))
    left_out = [each for each in joined.decided if isinstance(each, LeftOutAction)]
    assert [each.reason for each in left_out] == [TOO_LATE] * 60
    assert (stage(joined, FIRST), stage(joined, SECOND)) == before


def test_a_server_that_learns_of_the_stage_late_gives_it_no_evidence(tmp_path: Path) -> None:
    joined = Joined(tmp_path)
    # It still draws with the share of the first stage, for some seconds of the second.
    joined.came(search(f"old-{number}", ADVANCED_MS + number, VERSION, 0.05) for number in range(60))
    joined.came([search("much-later", ADVANCED_MS + 5_000, RAW, 0.25)])
    assert stage(joined, SECOND).treated == 0
