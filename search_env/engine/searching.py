"""Searches, many queries at a time: each gives a ranking or an error, and never an empty list by accident.

`forms` says how an index is asked: generated text is searched as words, never as a query language. Searches travel in
`_msearch` batches, a few in flight at once. Partial shards, a timed-out item and any status but 200 are failures.

There are three ways to search an expanded query:
- weighted: one search, bool.should of the query (boost 1) and of each expansion; scores add up. Earlier expansions
  weigh more: the boost of the expansion at rank r is `weight` · r^(−`rank_discount`).
- union: the query and each expansion are searched separately; documents are sorted by their best rank in any list.
- fusion: the same lists, by reciprocal rank fusion (Cormack et al., SIGIR 2009): Σ 1 / (fusion_k + rank).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from elastic_transport import ConnectionError as EngineConnectionError
from elastic_transport import SerializationError, TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import Ranking, rank_by_score
from search_env.engine.errors import EngineUnavailable as EngineUnavailable
from search_env.engine.errors import RetrievalError as RetrievalError
from search_env.engine.errors import SearchRefusedError, explain
from search_env.engine.forms import Body, Boosted, OwnForm, QueryForm
from search_env.engine.pace import Pace
from search_env.engine.remembered import RememberedRankings
from search_env.engine.rights import NO_RIGHT, NOT_LET_IN, login_refused
from streams.descriptions import describe

Mode = Literal["weighted", "union", "fusion"]
RESULT_WINDOW_MAX = 10_000  # Elasticsearch's own limit for one search.
_HEADER = b'{"allow_partial_search_results":false}\n'  # `_msearch` takes this per search, not as a parameter.
_RETRY_STATUS = frozenset({429, 502, 503, 504})
_REFUSED_STATUS = frozenset({400, 413})


class RetrievalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for searching the raw and the expanded query."""

    mode: Annotated[
        Mode,
        describe(
            'Way to search an expanded query: "weighted", one search with boosts; "union", lists sorted by best '
            'rank; "fusion", reciprocal ranks.'
        ),
    ] = "weighted"
    weight: Annotated[
        float,
        msgspec.Meta(ge=0, le=10),
        describe(
            'Boost of the first expansion in the mode "weighted"; the query has 1. Tuned on `dev` for the '
            "policy, and separately for every other arm."
        ),
    ] = 1.0
    # On icecat's dev intents, the same 14 words of a look-up give nDCG@10 / R@100 .278 / .579 at equal boosts of .5,
    # and .306 / .582 with the discount. The safe words then lead, and the others find the remaining documents.
    rank_discount: Annotated[
        float,
        msgspec.Meta(ge=0, le=2),
        describe(
            'Speed at which the boosts of later expansions fall in the mode "weighted". 0 gives all expansions '
            "the same boost."
        ),
    ] = 0.5
    whole_boost: Annotated[
        float,
        msgspec.Meta(ge=0, le=100),
        describe(
            'Boost of the query for documents that contain every word of it, in the mode "weighted". 0 adds nothing.'
        ),
    ] = 20.0
    expanded_terms_min: Annotated[
        int,
        msgspec.Meta(ge=1, le=10),
        describe("Least number of different terms in a query. A shorter query is searched without its expansions."),
    ] = 1
    fusion_k: Annotated[
        int,
        msgspec.Meta(ge=1, le=1000),
        describe('Cormack\'s constant of the mode "fusion". A larger value makes the top ranks count less.'),
    ] = 60
    batch_searches: Annotated[
        int, msgspec.Meta(ge=1, le=1000), describe("Number of searches in one `_msearch` request.")
    ] = 64
    in_flight: Annotated[
        int,
        msgspec.Meta(ge=1, le=16),
        describe(
            "Largest number of `_msearch` requests that are under way at once. A worker begins with 2, and has fewer "
            "while the engine refuses some or is slow."
        ),
    ] = 4
    slow_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=600),
        describe("Time of an answer (99th percentile of 100) from which on fewer requests are under way at once."),
    ] = 5.0
    remembered: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000_000),
        describe(
            "Rankings that a worker remembers, about 8 kB each at 100 documents. An index version never changes, so a "
            "search that is asked again has the same answer. 0 remembers none."
        ),
    ] = 4096
    item_retries: Annotated[
        int,
        msgspec.Meta(ge=0, le=20),
        describe(
            "Number of times that a single search is sent again if it was refused (429, 502, 503, 504) or "
            "partly answered."
        ),
    ] = 5
    item_pause_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=60),
        describe("Pause before a single search is sent again. It doubles with each further retry."),
    ] = 0.2


def has_fewer_terms(query: str, count: int) -> bool:
    """Return whether a query has fewer than `count` different terms."""
    return len(set(analyze(query))) < count


def searched_below(settings: RetrievalSettings, terms_min: int | None) -> RetrievalSettings:
    """Return the settings of a search whose results stand below raw ones. terms_min: None changes nothing."""
    if terms_min is None:
        return settings
    return msgspec.structs.replace(settings, expanded_terms_min=terms_min)


class ExpandedQuery(NamedTuple):
    """A query and the expansions that are searched with it; without expansions, it is the raw query."""

    query: str
    expansions: tuple[str, ...] = ()


def expanded_bodies(
    form: QueryForm, query: str, expansions: Sequence[str], settings: RetrievalSettings, *, size: int
) -> list[Body]:
    """Return the searches for an expanded query: one for "weighted", otherwise one per list."""
    # A single word does not determine which words go with it: for "switch", a look-up finds words of medicine.
    if not expansions or has_fewer_terms(query, settings.expanded_terms_min):
        return [form.body(query, size=size)]
    if settings.mode == "weighted":
        words = list(map(Boosted, expansions, expansion_boosts(len(expansions), settings)))
        return [form.body(query, words, whole_boost=settings.whole_boost, size=size)]
    return [form.body(text, size=size) for text in (query, *expansions)]


def expansion_boosts(count: int, settings: RetrievalSettings) -> list[float]:
    """Return the boosts of `count` expansions, in their order: weight · rank^(−rank_discount)."""
    return [settings.weight * rank**-settings.rank_discount for rank in range(1, count + 1)]


def union_of(rankings: Sequence[Ranking], *, size: int) -> Ranking:
    """Merge rankings by each document's best rank, earlier lists first; scores are 1 / best rank."""
    best: dict[str, tuple[int, int]] = {}
    for number, ranking in enumerate(rankings):
        for rank, document_id in enumerate(ranking.ids, start=1):
            place = (rank, number)
            if document_id not in best or place < best[document_id]:
                best[document_id] = place
    order = sorted(best, key=lambda document_id: (best[document_id], document_id))[:size]
    return Ranking(order, [1.0 / best[document_id][0] for document_id in order])


def fusion_of(rankings: Sequence[Ranking], *, size: int, fusion_k: int = 60) -> Ranking:
    """Merge rankings by reciprocal rank fusion, Σ 1 / (fusion_k + rank); ties by document id."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, document_id in enumerate(ranking.ids, start=1):
            scores[document_id] = scores.get(document_id, 0.0) + 1.0 / (fusion_k + rank)
    merged = rank_by_score(list(scores), list(scores.values()))
    return Ranking(merged.ids[:size], merged.scores[:size])


class PendingSearches:
    """Searches that are under way."""

    def __init__(
        self,
        batches: list[Future[list[Ranking | RetrievalError]]],
        merge: Callable[[list[Ranking | RetrievalError]], list[Ranking | RetrievalError]],
    ) -> None:
        self._batches = batches
        self._merge = merge

    def wait(self) -> list[Ranking | RetrievalError]:
        """Return the outcome of each query, in order. Raises as `Searcher.try_many` does."""
        try:
            return self._merge([answer for batch in self._batches for answer in batch.result()])
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the searches that were not sent yet; the results of the others are discarded."""
        for batch in self._batches:
            batch.cancel()


class Searcher:
    """Searches one index. Thread-safe. It owns a small thread pool, which `close` ends."""

    def __init__(
        self, client: Elasticsearch, index: str, settings: RetrievalSettings, form: QueryForm | None = None
    ) -> None:
        """index: a versioned name, so that the result can be reproduced. form: None asks an index of ours."""
        self.client = client
        self.index = index
        self.settings = settings
        self.form: QueryForm = form or OwnForm(index)
        self._pool = ThreadPoolExecutor(max_workers=settings.in_flight, thread_name_prefix="search")
        self._pace = Pace(settings.in_flight, slow_seconds=settings.slow_seconds)
        # Only a version of ours never changes.
        self._remembered = RememberedRankings(settings.remembered if isinstance(self.form, OwnForm) else 0)

    def close(self) -> None:
        """End the pool's threads; the client stays open."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def search_many(self, queries: Sequence[str | ExpandedQuery], *, size: int) -> list[Ranking]:
        """Return one ranking per query, in order.

        Raises RetrievalError at the first failed search; EngineUnavailable if the engine may recover.
        """
        rankings = []
        for outcome in self.try_many(queries, size=size):
            if isinstance(outcome, RetrievalError):
                raise outcome
            rankings.append(outcome)
        return rankings

    def try_many(self, queries: Sequence[str | ExpandedQuery], *, size: int) -> list[Ranking | RetrievalError]:
        """Return, for each query, its ranking or the error of its search; a failed search never gives a ranking.

        Raises EngineUnavailable if the engine is down or overloaded, because no query has an outcome then.
        """
        return self.start_many(queries, size=size).wait()

    def start_many(self, queries: Sequence[str | ExpandedQuery], *, size: int) -> PendingSearches:
        """Send the searches of `try_many` and return at once, so that the caller can work until it needs the answers.

        Raises RetrievalError for a size outside the result window.
        """
        if not 1 <= size <= RESULT_WINDOW_MAX:
            raise RetrievalError(f"expected to retrieve 1 to {RESULT_WINDOW_MAX} documents, got {size}")
        settings = self.settings
        bodies: list[Body] = []
        spans: list[tuple[int, int]] = []
        for item in queries:
            query, expansions = (item, ()) if isinstance(item, str) else item
            found = expanded_bodies(self.form, query, expansions, settings, size=size)
            spans.append((len(bodies), len(bodies) + len(found)))
            bodies.extend(found)
        return PendingSearches(
            self._send_batches(bodies), lambda answers: [self._merged(answers[a:b], size=size) for a, b in spans]
        )

    def search_bodies(self, bodies: Sequence[Body]) -> list[Ranking]:
        """Return one ranking per body (see `forms`), in order. Raises as `search_many` does."""
        rankings = []
        for answer in self.msearch(bodies):
            if isinstance(answer, RetrievalError):
                raise answer
            rankings.append(answer)
        return rankings

    def msearch(self, bodies: Sequence[Body]) -> list[Ranking | RetrievalError]:
        """Search all bodies in batches, several in flight at once; answers are in the order of the bodies."""
        return PendingSearches(self._send_batches(bodies), lambda answers: answers).wait()

    def _merged(self, lists: list[Ranking | RetrievalError], *, size: int) -> Ranking | RetrievalError:
        """Return the merged ranking of one query's searches, or the first error among them."""
        if len(lists) == 1:
            return lists[0]
        rankings = []
        for each in lists:
            if isinstance(each, RetrievalError):
                return each
            rankings.append(each)
        if self.settings.mode == "union":
            return union_of(rankings, size=size)
        return fusion_of(rankings, size=size, fusion_k=self.settings.fusion_k)

    def _send_batches(self, bodies: Sequence[Body]) -> list[Future[list[Ranking | RetrievalError]]]:
        step = self.settings.batch_searches
        return [self._pool.submit(self._batch, bodies[start : start + step]) for start in range(0, len(bodies), step)]

    def _batch(self, bodies: Sequence[Body]) -> list[Ranking | RetrievalError]:
        """Send one `_msearch` of the searches that nobody remembers, and send its refused searches again."""
        texts = [msgspec.json.encode(body) for body in bodies]
        answers: list[Ranking | RetrievalError | None] = [self._remembered.get(text) for text in texts]
        waiting = [position for position, answer in enumerate(answers) if answer is None]
        for attempt in range(self.settings.item_retries + 1):
            if not waiting:
                break
            if attempt:
                pause = self.settings.item_pause_seconds * 2 ** (attempt - 1)
                time.sleep(pause * random.uniform(0.5, 1.0))
            self.form.require_unchanged(self.client)
            sent = [texts[position] for position in waiting]
            items = self._pace.run(partial(self._send, sent), _is_refusal)
            refused: list[int] = []
            complaint = ""
            for position, item in zip(waiting, items, strict=True):
                if item.get("status") in _RETRY_STATUS:
                    refused.append(position)
                    complaint = _reason(item)
                elif _in_part(item):
                    refused.append(position)
                    complaint = "answered in part only (timed out, or a shard failed); a part is not an answer"
                else:
                    answers[position] = answer = self._ranking(item)
                    if isinstance(answer, Ranking):
                        self._remembered.put(texts[position], answer)
            waiting = refused
        if not waiting:
            return [answer for answer in answers if answer is not None]
        raise EngineUnavailable(
            f"Elasticsearch refused {len(waiting)} of {len(bodies)} searches on '{self.index}' "
            f"{self.settings.item_retries + 1} times: {complaint}"
        )

    def _ranking(self, item: dict[str, Any]) -> Ranking | RetrievalError:
        """Return one item of an `_msearch` answer as a ranking, or as an error if it is not complete."""
        if item.get("status") != 200 or "error" in item:
            kind = SearchRefusedError if item.get("status") in _REFUSED_STATUS else RetrievalError
            return kind(f"search failed with status {item.get('status')}: {_reason(item)}")
        return self.form.ranking(item.get("hits", {}).get("hits", ()))  # filter_path omits an empty list.

    def _send(self, bodies: Sequence[bytes]) -> list[dict[str, Any]]:
        lines = bytearray()
        for body in bodies:
            lines += _HEADER + body + b"\n"
        try:
            answer = self.client.perform_request(
                "POST",
                f"/{self.form.path}/_msearch",
                params={"filter_path": self.form.answer_filter},
                headers={
                    "accept": "application/vnd.elasticsearch+json; compatible-with=9",
                    "content-type": "application/vnd.elasticsearch+x-ndjson; compatible-with=9",
                },
                body=bytes(lines),
            ).body
        except ApiError as error:
            message = f"search on '{self.index}' failed: {explain(error)}"
            if (
                error.meta.status in NOT_LET_IN
            ):  # A revoked key may be restored, so this is transient: nothing is scored until then.
                told = login_refused() if error.meta.status == 401 else NO_RIGHT
                raise EngineUnavailable(f"search on '{self.index}' failed: {told}") from error
            if error.meta.status in _RETRY_STATUS:
                raise EngineUnavailable(message) from error
            if error.meta.status == 404:
                raise RetrievalError(f"{message}. Run: searchloop index CORPUS") from error
            raise (SearchRefusedError if error.meta.status in _REFUSED_STATUS else RetrievalError)(message) from error
        except (EngineConnectionError, SerializationError, TransportError) as error:
            raise EngineUnavailable(
                f"Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
            ) from error
        items = answer.get("responses") if isinstance(answer, dict) else None
        if not isinstance(items, list) or len(items) != len(bodies):
            raise EngineUnavailable(f"Elasticsearch cut its answer off: expected {len(bodies)} results in one batch")
        return items


def _is_refusal(items: Sequence[Mapping[str, Any]]) -> bool:
    return any(item.get("status") in _RETRY_STATUS for item in items)


def _in_part(item: dict[str, Any]) -> bool:
    """Return whether a search succeeded only on some shards; a retry may soon succeed on all of them."""
    return bool(item.get("timed_out") or item.get("_shards", {}).get("failed"))


def _reason(item: dict[str, Any]) -> str:
    error = item.get("error")
    if not isinstance(error, dict):
        return str(error or "no reason given")
    causes = error.get("root_cause") or [error]
    return f"{error.get('type', '')}: {causes[0].get('reason') or error.get('reason', '')}"[:400]
