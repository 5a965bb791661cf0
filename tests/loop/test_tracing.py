"""Traces: one request is followed through generation, reward and update, over real Kafka and through all processes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.replaying.reproduction import reproduce
from infra.runs.training import stream
from infra.runs.verification import verify_run
from streams.clients import connect_consumer
from streams.codec import decode
from streams.delivery import DeliverySettings, poll
from streams.events import Update
from streams.lag import end_offsets
from streams.records import Received
from streams.topics import topic_name, version_name
from streams.tracing import TracingSettings
from tests.loop.conftest import SMALL, quiet
from tests.spans import Collector, Span, collecting

Make = Callable[..., Prepared]
PRODUCER, CONSUMER = 4, 5
TRACED_KINDS = ("requests", "generations", "rewards", "updates")


def records_of(app: App, run: str, kind: str) -> list[Received]:
    """Read a topic's records from its beginning to its end."""
    partition = TopicPartition(topic_name(run, kind), 0)
    end = end_offsets(app.settings.kafka, [partition])[partition]
    consumer = connect_consumer(app.settings.kafka, {partition: None}, client_id="test", records_max=1000)
    found: list[Received] = []
    while consumer.position(partition) < end:
        found += poll(consumer, DeliverySettings())
    consumer.close()
    return found


def trace_of(record: Received) -> tuple[str, str]:
    """Return trace and span in a record's header, as W3C Trace Context writes them: version-trace-span-flags."""
    (header,) = [value.decode() for name, value in record.headers if name == "traceparent"]
    version, trace, span, flags = header.split("-")
    assert (version, len(trace), len(span), int(flags, 16) & 1) == ("00", 32, 16, 1), "it is sampled"
    return trace, span


def the_span(collector: Collector, span: str) -> Span:
    (found,) = [each for each in collector.spans if each.span == span]
    return found


def test_one_request_is_followed_through_generation_reward_and_update(small_world: App, new_run: Make) -> None:
    with collecting() as collector:
        settings = msgspec.structs.replace(SMALL, tracing=TracingSettings(on=True, endpoint=collector.url))
        prepared = new_run(settings, updates=2)
        app, run = small_world.with_settings(settings), prepared.run
        stream(app, prepared, updates=2, seed=0, report=quiet)
    records = {kind: records_of(app, run, kind) for kind in TRACED_KINDS}
    first = next(
        event for record in records["updates"] if isinstance(event := decode(record.value), Update) and event.trained
    )
    group = first.trained[0]
    reward = next(record for record in records["rewards"] if record.key == group.encode())
    trace, _ = trace_of(reward)

    # The same trace lies in the headers of all three records, and each names the span of its own sending.
    chain = [next(record for record in records[kind] if trace_of(record)[0] == trace) for kind in TRACED_KINDS[:3]]
    sends = [the_span(collector, trace_of(record)[1]) for record in chain]
    assert [span.name for span in sends] == [f"send {run}.{kind}" for kind in TRACED_KINDS[:3]]
    assert all(span.kind == PRODUCER for span in sends)
    assert sends[0].parent == "", "the request begins the trace"
    assert [span.service["service.instance.id"] for span in sends] == ["requests", "generator", "environment"]

    # Between two records lies the span of the worker that answered the first with the second.
    for record, sent, answer in zip(chain, sends, sends[1:], strict=False):
        worker = the_span(collector, answer.parent)
        assert (worker.name, worker.kind, worker.parent) == (f"process {record.position.topic}", CONSUMER, sent.span)
        assert worker.attributes["messaging.system"] == "kafka"
        assert worker.attributes["messaging.operation.type"] == "process"
        assert worker.attributes["messaging.destination.name"] == record.position.topic
        assert worker.attributes["messaging.destination.partition.id"] == "0"
        assert worker.attributes["messaging.kafka.offset"] == record.position.offset
        assert sent.start_ns <= worker.start_ns < worker.end_ns

    # The update has a trace of its own. The last span of the request's trace and the update name each other.
    last = collector.of(trace)[-1]
    assert (last.name, last.parent) == (f"process {run}.rewards", sends[2].span)
    assert last.attributes["searchloop.fate"] == "trained"
    assert last.attributes["searchloop.policy.version"] == version_name(first.policy)
    ((update_trace, update_span),) = last.links
    update = the_span(collector, update_span)
    assert update.name == "update" and update.trace == update_trace != trace
    assert (trace, sends[2].span) in update.links
    assert update.attributes["messaging.batch.message_count"] == SMALL.batch.groups
    announced = next(record for record in records["updates"] if decode(record.value) == first)
    assert trace_of(announced)[0] == update_trace

    # Every record is counted, by the names of OpenTelemetry's conventions.
    written = len(records["generations"])
    assert collector.counts["messaging.client.sent.messages", "requests", f"{run}.requests"] == len(records["requests"])
    assert collector.counts["messaging.client.sent.messages", "generator", f"{run}.generations"] == written
    assert collector.counts["messaging.client.consumed.messages", "environment", f"{run}.generations"] >= written
    assert collector.counts["messaging.process.duration", "environment", f"{run}.generations"] == written

    # Nothing of it is in an event: the proof holds, and the log makes the same weights again.
    assert verify_run(app, run, rebuild=True, offline=False).findings == ()
    made = reproduce(app, run, begin="0", updates_max=None, report=quiet)
    assert (made.updates, made.different) == (2, None)


def test_without_the_switch_no_record_has_a_header(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    for kind in (*TRACED_KINDS, "policy-versions"):
        records = records_of(app, "streamed", kind)
        assert records
        assert all(record.headers == () and record.taken_ns == 0 for record in records)
