"""Metrics of runs in Prometheus' text format, as bytes that any web server can answer with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from storage.monitor import metrics
from storage.monitor.loop_values import LoopValues
from storage.monitor.metrics import Metric
from streams.inputs.text import clean_text

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABEL_CHARACTERS_MAX = 100
Family = CounterMetricFamily | GaugeMetricFamily
Series = tuple[tuple[str, ...], float | None]


class Families(Collector):
    """Metrics that are known now, as a collector of the client library."""

    def __init__(self, found: Iterable[tuple[Metric, Iterable[Series]]]) -> None:
        self._families = [family(metric, series) for metric, series in found]

    def collect(self) -> Iterator[Family]:
        """Yield each metric that has a value."""
        yield from (each for each in self._families if each.samples)


def metrics_text(values: Sequence[LoopValues]) -> bytes:
    """Return the metrics of these runs in Prometheus' text format, with the type `CONTENT_TYPE`."""
    registry = CollectorRegistry()
    registry.register(Families(_loop(values)))
    return generate_latest(registry)


def family(metric: Metric, series: Iterable[Series]) -> Family:
    """Return one metric with its series: the labels' values in the table's order, and a value; None is left out.

    Values of labels come from logs, so characters that turn or hide text are removed.
    """
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    made: Family = kind(metric.name, metric.says, labels=metric.labels)
    for labels, value in series:
        if value is not None:
            made.add_metric([clean_text(label, characters_max=LABEL_CHARACTERS_MAX) for label in labels], value)
    return made


def _loop(values: Sequence[LoopValues]) -> Iterator[tuple[Metric, list[Series]]]:
    def one(metric: Metric, of: Mapping[str, float | None]) -> tuple[Metric, list[Series]]:
        return metric, [((run,), value) for run, value in of.items()]

    def by(metric: Metric, of: Mapping[str, Mapping[str, float]]) -> tuple[Metric, list[Series]]:
        return metric, [((run, name), value) for run, found in of.items() for name, value in sorted(found.items())]

    yield metrics.RUN_INFO, [((each.run, each.recipe, each.state), 1) for each in values]
    yield (
        metrics.RUN_POLICY_INFO,
        [((each.run, role, name), 1) for each in values for role, name in sorted(each.policies.items())],
    )
    yield one(metrics.GROUPS, {each.run: each.groups for each in values})
    yield by(metrics.CANDIDATES, {each.run: each.candidates for each in values})
    yield one(metrics.UPDATES, {each.run: each.updates for each in values})
    yield one(metrics.UPDATES_WANTED, {each.run: each.updates_wanted for each in values})
    yield by(metrics.LETTERS, {each.run: each.dead_letters for each in values})
    yield one(metrics.RESIDUAL, {each.run: each.residual for each in values})
    yield by(metrics.LAG_RECORDS, {each.run: each.lag_records for each in values})
    yield by(metrics.LAG_SECONDS, {each.run: each.lag_seconds for each in values})
    yield by(metrics.STALENESS, {each.run: each.staleness for each in values})
    yield one(metrics.REWARD, {each.run: each.reward for each in values})
    yield (
        metrics.DEV,
        [((each.run, role, each.measure), value) for each in values for role, value in sorted(each.dev.items())],
    )
    yield by(metrics.LEARNING, {each.run: each.learning for each in values})
    known = [each for each in values if each.alerts is not None]
    yield one(metrics.ALERTS, {each.run: sum((each.alerts or {}).values()) for each in known})
    yield by(metrics.ALERT, {each.run: {name: int(on) for name, on in (each.alerts or {}).items()} for each in known})
    yield one(metrics.LAST_GROUP, {each.run: each.last_group for each in values})
    yield one(metrics.LAST_UPDATE, {each.run: each.last_update for each in values})
    yield one(metrics.READ, {each.run: each.read_at for each in values})
