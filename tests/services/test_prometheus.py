"""A real Prometheus: it finds no fault with the metrics and the rules, and its answers are what was served."""

from __future__ import annotations

import http.server
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from infra.app.app import App
from infra.app.home import Home
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.monitoring.exposition import CONTENT_TYPE, metrics_text
from infra.monitoring.scraping import LoopMetrics
from services.local import Endpoints
from streams.clients import connect_producer, create_topics
from streams.delivery import Outbox
from streams.kafka_settings import KafkaSettings
from tests.kafka_cluster import wait_until
from tests.prometheus import prometheus, promtool
from tests.services.test_serving import Server, click, serving, shop
from tests.stored_events import request
from tests.unit.test_metrics import Samples, full_values, samples

__all__ = ["shop"]

SCRAPE = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
scrape_configs:
  - job_name: searchloop
    authorization: {{credentials: "{token}"}}
    static_configs: [{{targets: [{targets}]}}]
"""
TOKEN = "let-me-in"


def scraped(server: Server, token: str = "") -> Samples:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/metrics", headers=headers)) as answer:
        assert answer.headers["content-type"] == CONTENT_TYPE
        return samples(answer.read())


@contextmanager
def answering(text: bytes) -> Iterator[str]:
    """Answer every request with this text; give host and port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_prometheus_finds_no_fault_with_the_names_and_reads_what_was_served(
    shop: tuple[Path, str], local_services: Endpoints, tmp_path: Path
) -> None:
    home, index = shop
    loop = metrics_text([full_values()])
    promtool("check", "metrics", given=loop)
    with (
        serving(home, index, local_services, SEARCHLOOP_SERVE__TOKEN=TOKEN) as server,
        answering(loop) as other,
    ):
        allowed = {"authorization": f"Bearer {TOKEN}"}
        found = [server.get("/search?query=red+mug", **allowed)[1] for _ in range(3)]
        assert server.get("/search?query=mug&helped=1-abcdef-000004", **allowed)[0] == 200
        assert server.get("/nowhere/of/a/client", **allowed)[0] == 404
        assert server.get("/search?query=", **allowed)[0] == 400
        assert server.post("/events", [click(found[0]["query_id"]), {"no": "event"}], **allowed)[0] == 200
        assert server.get("/metrics")[0] == 401, "it is behind the same guard"

        mine = scraped(server, TOKEN)
        served = "searchloop_serve_requests_total"
        assert mine[served, (("route", "/search"), ("status", "2xx"))] == 4
        assert mine[served, (("route", "/search"), ("status", "4xx"))] == 1
        assert mine[served, (("route", "other"), ("status", "4xx"))] == 1
        assert mine["searchloop_serve_events_total", (("outcome", "accepted"),)] == 1
        assert mine["searchloop_serve_events_total", (("outcome", "refused"),)] == 1
        shown = {labels[0][1]: value for (name, labels), value in mine.items() if name.endswith("searches_total")}
        assert shown["helped"] >= 1 and sum(shown.values()) == 4
        assert mine["searchloop_serve_ready_answers", ()] == 1
        assert not [labels for _, labels in mine if "nowhere" in str(labels) or "mug" in str(labels)]
        request = urllib.request.Request(f"{server.url}/metrics", headers=allowed)
        promtool("check", "metrics", given=urllib.request.urlopen(request).read())

        targets = ", ".join(f'"{each}"' for each in (server.url.removeprefix("http://"), other))
        with prometheus(tmp_path / "prometheus", SCRAPE.format(token=TOKEN, targets=targets)) as asked:
            wait_until(asked.targets_up, "both targets were scraped", seconds=60)
            assert asked.value('searchloop_serve_requests_total{route="/search", status="2xx"}') == 4
            assert asked.value('searchloop_run_reward_mean{run="shop-0"}') == 0.5
            assert asked.value("sum(searchloop_run_candidates)") == 96
            rate = "histogram_quantile(0.99, sum by (le) (searchloop_serve_request_duration_seconds_bucket))"
            assert asked.value(rate) > 0


def test_events_that_wait_for_kafka_are_counted_and_trouble_shows(shop: tuple[Path, str]) -> None:
    home, index = shop
    services = Endpoints(kafka="127.0.0.1:1", elasticsearch="http://127.0.0.1:1")
    with serving(home, index, services, SEARCHLOOP_SERVE__METRICS="open", SEARCHLOOP_SERVE__TOKEN=TOKEN) as server:
        event = [click("of-another-time")]
        assert server.post("/events", event, authorization=f"Bearer {TOKEN}")[0] == 200
        wait_until(lambda: scraped(server)["searchloop_serve_trouble", (("part", "kafka"),)] == 1, "Kafka is missed")
        assert scraped(server)["searchloop_serve_spool_waiting_bytes", ()] > 100
    with serving(home, index, services, SEARCHLOOP_SERVE__METRICS="off") as server:
        assert server.get("/metrics")[0] == 404


def test_one_scrape_has_the_counts_of_all_processes_also_of_one_that_was_killed(
    shop: tuple[Path, str], local_services: Endpoints
) -> None:
    home, index = shop
    with serving(home, index, local_services, "--workers", "2") as server:

        def answered() -> float:
            found = scraped(server)
            return found["searchloop_serve_requests_total", (("route", "/search"), ("status", "2xx"))]

        for _ in range(20):
            assert server.get("/search?query=red+mug")[0] == 200
        assert {answered() for _ in range(6)} == {20}, "whichever process answers"
        victim = psutil.Process(server.process.pid).children()[0]
        victim.kill()
        victim.wait(30)
        wait_until(lambda: len(psutil.Process(server.process.pid).children()) == 2, "it is back")
        assert answered() == 20


def test_the_lag_of_each_stage_is_what_lies_in_the_topics(
    local_services: Endpoints, tmp_path: Path, unique_name: str
) -> None:
    app = App(Home(tmp_path), settings=Settings(kafka=KafkaSettings(partitions=2))).at(local_services)
    kafka = app.connections.kafka
    kept = RunSettings(
        run=unique_name, recipe="leser", index="i", index_version="i-1", seed=0, updates=50, settings=app.settings
    )
    write_run_settings(app.home.run(unique_name), kept)
    create_topics(kafka, unique_name)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="requests", settings=app.settings.delivery)
    for number in range(5):
        outbox.send(msgspec.structs.replace(request(number), run=unique_name), partition=number % 2)
    outbox.flush()
    producer.close()
    brokers = iter([None, kafka])  # It was started after the pages.
    scraped = LoopMetrics(app.home, lambda: next(brokers), age_seconds=0.0)
    run = ("run", unique_name)
    assert ("searchloop_run_lag_records", (run, ("stage", "generator"))) not in samples(metrics_text(scraped.values()))
    found = samples(metrics_text(scraped.values()))
    assert found["searchloop_run_lag_records", (run, ("stage", "generator"))] == 5
    assert found["searchloop_run_lag_records", (run, ("stage", "environment"))] == 0
    assert found["searchloop_run_lag_seconds", (run, ("stage", "generator"))] > 0
    assert found["searchloop_run_info", (("recipe", "leser"), run, ("state", "stopped"))] == 1
    assert found["searchloop_run_updates_wanted", (run,)] == 50
    gone = samples(LoopMetrics(app.home, lambda: KafkaSettings(bootstrap="127.0.0.1:1")).text())
    assert gone["searchloop_run_info", (("recipe", "leser"), run, ("state", "unknown"))] == 1
    assert not [name for name, _ in gone if "lag" in name], "unknown is not 0"
