"""How soon a record is on the screen: from Kafka's acknowledgement to the line of news in an open page, in a real
browser. Charts follow within a second, or after their rest on a long log.

    python tests/benchmarks/event_to_screen.py

A sink holds the run's file, so the page follows Kafka. Each event is four rewarded groups and an update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect

from infra.app.app import App
from infra.app.home import Home
from streams.clients import create_topics
from streams.kafka_settings import KafkaSettings
from tests.browser.tabs import open_browser
from tests.services.test_live_pages import Going
from tests.shown_pages import TOKEN, shown

RUN = "screen"
WAIT_MS = 30_000


def say(what: str, done: int, total: int) -> None:
    """Report on standard error."""
    print(what, done, total, file=sys.stderr)


def main() -> None:
    """Print a table, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=40, help="events to wait for")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, App(Home(Path(folder))).running_services(say) as app:
        kafka = KafkaSettings(bootstrap=app.connections.kafka.bootstrap)
        create_topics(kafka, RUN)
        run = app.home.runs / RUN
        run.mkdir(parents=True)
        going = Going(run, RUN, kafka)
        times = []
        try:
            going.write(4)
            going.start_sink()
            with shown(app.home.root) as address, open_browser() as browser:
                page = browser.new_page()
                page.goto(f"{address}/?token={TOKEN}")
                expect(page.locator("main")).to_contain_text("1 updates, 4 rewarded groups", timeout=WAIT_MS)
                told = page.locator("#live")
                for number in range(1, given.events + 1):
                    going.write(4)
                    began = time.perf_counter()
                    expect(told).to_contain_text(f" {number} updates", timeout=WAIT_MS)
                    times.append(time.perf_counter() - began)
        finally:
            going.close()
    times.sort()
    found = {"median_s": statistics.median(times), "p95_s": times[int(0.95 * len(times))], "largest_s": times[-1]}
    print("| event to screen | s |\n|---|---|")
    for name, value in found.items():
        print(f"| {name.removesuffix('_s')} | {value:.2f} |")
    print(json.dumps({"benchmark": "event_to_screen", "events": given.events, **found}))


if __name__ == "__main__":
    main()
