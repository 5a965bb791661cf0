"""The pages' share of the processor in a running loop: `searchloop ui` against everything that it looks at.

    python tests/benchmarks/page_share.py [--page rewards] [--seconds 120]

The loop is `searchloop demo` on a small catalogue: a real Kafka and Elasticsearch, and the workers. A client does what
an open page does: it listens to the stream of events, and on news it asks again for every chart of its page, at most
once a second. What rests is asked for when its rest is over. `--rest` makes it wait so many times as long as a refresh
took, which the pages do not do.

Counted are processor seconds of `ui` and of all processes of the loop with its services, between two moments in
mid-run. A browser's own time is not counted: it is usually another machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from storage.questions.question import saved_questions
from tests.commands import ROOT, command
from tests.shown_pages import TOKEN, shown

GOAL = 0.05
START_SECONDS = 1_800
PAUSE_SECONDS, REST, REST_SECONDS_MOST = 1.0, 0.0, 10.0
RUN_SETTINGS = {
    "SEARCHLOOP_DEMO__PRODUCTS": "500",
    "SEARCHLOOP_INTENTS__QUERIES": "300",
    "SEARCHLOOP_TRAIN__WARM_UP": "false",
    "SEARCHLOOP_LESSONS__CATALOGUE": "600",
}


class PageClient:
    """One open page. asked: how many questions it has asked. rest: times as long as a refresh took."""

    def __init__(self, address: str, run: str, page: str) -> None:
        self._address, self._run = address, run
        paths = [f"/api/ask/{name}" for name, each in saved_questions().items() if each.page == page]
        self._rests = dict.fromkeys([*paths, *(["/api/overview", "/api/alerts"] if page == "overview" else [])], 0.0)
        if page == "live":
            self._rests["/api/people"] = 0.0
        self._ended = False
        self.asked = 0
        self.rest = REST
        self._changed = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._refresh)]

    def begin(self) -> None:
        """Open the page."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Close the page."""
        self._ended = True
        self._changed.set()

    def _open(self, path: str) -> Any:
        given = urllib.parse.urlencode({"run": self._run})
        asked = urllib.request.Request(f"{self._address}{path}?{given}", headers={"authorization": f"Bearer {TOKEN}"})
        return urllib.request.urlopen(asked, timeout=120)

    def _listen(self) -> None:
        with self._open("/api/stream") as stream:
            for line in stream:
                if self._ended:
                    return
                if line.startswith(b"event:"):
                    self._changed.set()

    def _refresh(self) -> None:
        """Ask again after news, at most once a second; what rests is asked for when it has rested."""
        waiting: set[str] = set()  # Asked for by a timer of their own, also without news.
        while not self._ended:
            if self._changed.wait(PAUSE_SECONDS):
                time.sleep(PAUSE_SECONDS)
                self._changed.clear()
                waiting = set(self._rests)
            began = time.monotonic()
            for path in [each for each in waiting if self._rests[each] <= began]:
                with self._open(path) as answer:
                    rest = json.load(answer).get("rest", 0.0)
                self.asked += 1
                self._rests[path] = time.monotonic() + rest
                if not rest:
                    waiting.discard(path)
            time.sleep(min(self.rest * (time.monotonic() - began), REST_SECONDS_MOST))


def processes_of(process: psutil.Process, home: Path) -> dict[int, psutil.Process]:
    """Return a process, all that it has started, and the services of its home."""
    found = {each.pid: each for each in [process, *process.children(recursive=True)]}
    for each in psutil.process_iter():
        try:
            if any(str(home) in part for part in each.cmdline()) and "ui" not in each.cmdline():
                found[each.pid] = each
        except psutil.Error:
            continue
    found.pop(os.getpid(), None)
    return found


def seconds_of(processes: dict[int, psutil.Process]) -> dict[int, float]:
    """Return the processor seconds of each process that lives."""
    found = {}
    for pid, each in processes.items():
        try:
            found[pid] = sum(each.cpu_times()[:2])
        except psutil.Error:
            continue
    return found


def wait_for_updates(demo: subprocess.Popen[bytes], home: Path) -> str:
    """Return the name of the run when its learner has made updates."""
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        if demo.poll() is not None:
            sys.exit(f"page_share: the demo ended with status {demo.returncode} before it made updates")
        for run in sorted(home.glob("runs/*/checkpoints/CURRENT")):
            if len(list(run.parent.glob("*-00000[3-9]"))) > 0:
                return run.parents[1].name
        time.sleep(1)
    sys.exit(f"page_share: no update within {START_SECONDS} s")


def main() -> None:
    """Run the loop and the pages, and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", default="overview", help="overview, rewards, learning or live")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to count")
    parser.add_argument("--rest", type=float, nargs="+", default=[REST], help="one measurement with each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-share-") as folder:
        home = Path(folder)
        demo = subprocess.Popen(
            command(home, "demo", "--updates", "2000"),
            cwd=ROOT,
            env={**os.environ, **RUN_SETTINGS},
            stdout=subprocess.DEVNULL,
        )
        try:
            run = wait_for_updates(demo, home)
            with shown(home) as address:
                client = PageClient(address, run, given.page)
                client.begin()
                ui = next(each for each in psutil.Process().children() if "ui" in each.cmdline())
                time.sleep(10)  # The copy of the log is made once.
                for rest in given.rest:
                    client.rest = rest
                    show(
                        given.page, rest, count(client, ui, processes_of(psutil.Process(demo.pid), home), given.seconds)
                    )
                client.end()
        finally:
            demo.terminate()
            demo.wait(120)


def count(client: PageClient, ui: psutil.Process, loop: dict[int, psutil.Process], seconds: float) -> dict[str, float]:
    """Return the processor seconds of the loop and of the pages, and the questions, within some seconds."""
    before, pages, asked = seconds_of(loop), sum(ui.cpu_times()[:2]), client.asked
    time.sleep(seconds)
    after = seconds_of(loop)
    return {
        "seconds": seconds,
        "loop_s": sum(used - before[pid] for pid, used in after.items() if pid in before),
        "ui_s": sum(ui.cpu_times()[:2]) - pages,
        "asked": client.asked - asked,
    }


def show(page: str, rest: float, found: dict[str, float]) -> None:
    """Print a table and a JSON line."""
    share = found["ui_s"] / (found["ui_s"] + found["loop_s"])
    print(f"\n| {page} open for {found['seconds']:g} s, rest {rest:g} | processor s |\n|---|---|")
    print(f"| the loop with its services | {found['loop_s']:.1f} |")
    print(f"| ui, {found['asked']:.0f} questions | {found['ui_s']:.1f} |")
    print(f"\nshare of the pages: {share:.1%} (goal {GOAL:.0%})")
    result = {"benchmark": "page_share", "page": page, "rest": rest, **found, "share": share}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
