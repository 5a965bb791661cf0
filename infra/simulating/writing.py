"""Simulated searches as a run of live traffic, without a server: the same events, joined and stored as any others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.replaying.importing import LaterActions, store_log
from infra.runs.listening import join
from infra.runs.new_log import new_log
from infra.simulating.lists import QueryLists, kept_lists, sellers
from infra.simulating.people import Fraud, Population, simulated_searches
from search_env.catalogue.attributes import document_brand
from search_env.catalogue.corpora import Qrels, Query
from search_env.catalogue.term_matrices import Catalogue
from search_env.clicks.published import PublishedModel
from search_env.engine.opening import open_catalogue, open_searcher
from streams.clients import connect_producer, partitions_of
from streams.codec import encode_event
from streams.delivery import Outbox
from streams.errors import SettingsError
from streams.events import Event
from streams.inputs.values import TIME_MS_MAX
from streams.pseudonyms import Pseudonyms
from streams.stopping import Stop
from streams.topics import BY_EVENT, topic_name
from streams.traffic_events import Impression, UserAction

FLUSH_EVERY = 1_000


def shop_of(
    app: App, index: str, queries: Sequence[Query], *, size: int, seed: int, report: Report
) -> tuple[dict[str, QueryLists], Fraud]:
    """Return the lists that the index would show for these queries, and a fraud client's wishes.

    Its seller is the brand that stands in the lists of the most queries. Raises SettingsError if no search finds
    anything.
    """
    folder = app.home.index(index)
    with closing(app.engine()) as client, closing(open_searcher(client, folder, app.settings.retrieval)) as searcher:
        catalogue = open_catalogue(client, folder)
        lists = kept_lists(folder.simulated, searcher, catalogue, queries, seed=seed, report=report)
    if not lists:
        raise SettingsError(f"index {index!r}: expected searches that find something, got none. Give other --queries")
    return lists, _fraud(catalogue, queries, lists, size)


def write_searches(
    app: App,
    searches: Iterable[tuple[Impression, Sequence[UserAction]]],
    *,
    into: str,
    total: int,
    report: Report,
) -> int:
    """Write searches to the topics of the new run `into`, join them, store all, and return their number.

    If that fails, everything that it made is removed. Raises SettingsError if the run exists.
    """
    kafka = app.connections.kafka
    with new_log(app.home, kafka, into, option="--into"):
        partitions = len(partitions_of(kafka, [topic_name(into, "impressions")]))
        producer = connect_producer(kafka, client_id=f"{into}-simulated")
        outbox = Outbox(producer, into, stage="import", settings=app.settings.delivery)

        def send(event: Event, partition: int, at_ms: int) -> None:
            topic = BY_EVENT[type(event)]
            outbox.forward(
                topic=topic_name(into, topic.kind),
                partition=partition,
                key=topic.key(event).encode(),
                value=encode_event(event),
                timestamp_ms=at_ms,
            )

        later, count = LaterActions(), 0
        with closing(producer), Pseudonyms(app.home.people) as pseudonyms:
            for impression, actions in searches:
                for waited in later.until(impression.at_ms):
                    send(*waited)
                partition = count % partitions
                client, _ = pseudonyms.of(impression.client, "")
                send(msgspec.structs.replace(impression, client=client), partition, impression.at_ms)
                for action in actions:
                    later.add(action, partition, action.at_ms)
                count += 1
                if count % FLUSH_EVERY == 0:
                    outbox.flush()
                    report("simulated searches", count, total)
            for waited in later.until(TIME_MS_MAX):
                send(*waited)
            outbox.flush()
        report("joining", 0, 0)
        join(app, into, worker=1, stop=Stop(), until_read=True)
        report("storing", 0, 0)
        store_log(app, into)
    return count


def asked_most_first(queries: Sequence[Query], qrels: Qrels) -> list[Query]:
    """Return the judged queries in the order of their ids, which are hashes: so the head is a random sample."""
    return sorted((query for query in queries if query.id in qrels), key=lambda query: query.id)


def simulate_into(
    app: App,
    *,
    into: str,
    index: str,
    judged: tuple[Sequence[Query], Qrels],
    published: PublishedModel,
    people: Population,
    report: Report,
) -> int:
    """Let simulated people search an index in this process, write all into a new run, and return the searches."""
    asked = asked_most_first(*judged)
    lists, fraud = shop_of(app, index, asked, size=people.size, seed=people.seed, report=report)
    searches = simulated_searches(asked, lists, judged[1], published, people, fraud)
    return write_searches(app, searches, into=into, total=people.impressions, report=report)


def _fraud(catalogue: Catalogue, queries: Sequence[Query], lists: dict[str, QueryLists], size: int) -> Fraud:
    brand_of = {document.id: document_brand(document) for document in catalogue.documents}
    shown = {query: each for query, each in lists.items() if all(name in brand_of for name in each.raw)}
    brands = sellers(brand_of, shown, size)
    products = frozenset(name for name, brand in brand_of.items() if brands and brand == brands[0])
    wanted = [query for query in queries if query.id in shown and products & set(shown[query.id].raw[:size])]
    return Fraud(products=products, queries=wanted)
