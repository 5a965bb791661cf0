"""The search environment over the real engine: rewards add up, and an engine's failure is never a reward."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from search_env.catalogue.corpora import Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import build_index
from search_env.engine.searching import EngineUnavailable, RetrievalSettings, Searcher
from search_env.leser.context import ContextBuilder, ContextSettings
from search_env.leser.environment import LeserEnvironment, LeserEnvironmentSettings
from search_env.leser.reward import LeserSettings, SetMeasurements, leser_reward
from search_env.models.relevance import Floats, Pairs
from streams.codec import content_sha256, encode_event
from streams.events import Completion, Generation, PolicyRef, Position, Request, Reward, Sampling
from tests.engine_fakes import fake_engine, hits, responses

COLOURS = ["red", "green", "blue", "black"]
KINDS = ["mug", "lamp", "chair"]


def products() -> list[Document]:
    """120 products; every third says "teacup", which nobody types for a mug."""
    return [
        Document(
            id=f"d{n:03d}",
            title=f"{COLOURS[n % 4]} {'teacup' if n % 3 == 0 else KINDS[n % 3]}",
            text="for the kitchen" if n % 2 else "",
            metadata={
                "brand": "Acme",
                "attributes": {"material": "Steel" if n % 5 else "Oak", "dishwasher_safe": True},
            },
        )
        for n in range(120)
    ]


class TeacupsAreMugs:
    """Relevance for these tests: a mug is a teacup, of the colour that was asked for."""

    name = "teacups-are-mugs"

    def __init__(self) -> None:
        self.asked: list[Pairs] = []
        self._documents = {document.id: document for document in products()}

    def score(self, query: str, document_ids: list[str]) -> Floats:
        return self.score_many([(query, document_ids)])[0]

    def score_many(self, pairs: Pairs) -> list[Floats]:
        self.asked.append(pairs)
        return [
            np.array(
                [
                    0.5 * ("teacup" in self._documents[d].title) + 0.5 * (query.split()[0] in self._documents[d].title)
                    for d in ids
                ],
                dtype=np.float32,
            )
            for query, ids in pairs
        ]


def generation(query: str, *texts: str, number: int = 0) -> Generation:
    return Generation(
        group_id=f"g{number}",
        request=Request(request_id=f"r{number}", run="run", query_id=f"q{number}", query=query, index="i-1"),
        source=Position(topic="requests", partition=0, offset=number),
        policy=PolicyRef(lineage="a", step=3, sha256="s"),
        tokenizer_sha256="t",
        prompt_sha256="p",
        sampling=Sampling(candidates=len(texts), temperature=0.9, tokens_max=16),
        prompt_token_ids=(1, 2),
        completions=tuple(Completion(text=text, token_ids=(1,), logprobs=(-1.0,), finish="stop") for text in texts),
        made_at_ms=17,
    )


def inputs(*groups: Generation) -> list[tuple[Generation, Position, str]]:
    return [
        (group, Position(topic="generations", partition=0, offset=place), content_sha256(encode_event(group)))
        for place, group in enumerate(groups)
    ]


def answer(*expansions: str) -> str:
    return f"<answer>{msgspec.json.encode(list(expansions)).decode()}</answer>"


@pytest.fixture(scope="module")
def retriever(local_services: object) -> Iterator[Searcher]:
    client = connect(ElasticsearchSettings(url=local_services.elasticsearch))  # type: ignore[attr-defined]
    version = build_index(client, "test-environment", products(), installation="test")
    made = Searcher(client, version.name, RetrievalSettings())
    yield made
    made.close()
    client.indices.delete(index=version.name)
    client.close()


@pytest.fixture
def environment(retriever: Searcher) -> LeserEnvironment:
    return LeserEnvironment(
        retriever, TeacupsAreMugs(), LeserEnvironmentSettings(reward=LeserSettings(relevance_depth=10))
    )


def test_a_good_expansion_earns_more_than_none_and_none_more_than_rubbish(environment: LeserEnvironment) -> None:
    group = generation("red mug", answer("teacup"), answer(), answer("lamp", "chair"), "no list at all")
    (reward,) = environment.score_many(inputs(group))
    good, none, bad, invalid = reward.outcomes
    assert [outcome.status for outcome in reward.outcomes] == ["scored"] * 4
    assert good.reward > none.reward == environment.settings.reward.format_bonus > bad.reward  # type: ignore[operator]
    assert (invalid.valid, invalid.reward, invalid.hits) == (False, 0.0, ())
    assert "expected <answer>" in invalid.error


ENDLESS = "<answer>[" + '"mug", ' * 5_000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected <answer>"),
        (ENDLESS, "bytes"),
        ('<answer>["mug"', "expected <answer>"),
        ('<answer>["a\x00b\x1b[31m"]</answer>', "malformed: invalid character"),
        (r'<answer>["\u0000\u001b"]</answer>', "expected 1 to 6 words, got 0"),
    ],
    ids=["empty", "endless", "broken off", "control characters", "escaped control characters"],
)
def test_what_is_no_answer_is_worth_nothing_and_says_why(
    environment: LeserEnvironment, text: str, complaint: str
) -> None:
    (reward,) = environment.score_many(inputs(generation("red mug", text, answer("teacup"))))
    bad, good = reward.outcomes
    assert (bad.status, bad.valid, bad.reward, bad.hits) == ("scored", False, 0.0, ())
    assert complaint in bad.error and len(bad.error) < 300
    assert good.reward > 0  # type: ignore[operator]


@pytest.mark.parametrize("text", [answer("кружка", "マグ", "tazón"), answer("red mug"), answer("red", "mug")])
def test_another_language_or_the_query_itself_earns_what_saying_nothing_earns(
    environment: LeserEnvironment, text: str
) -> None:
    (reward,) = environment.score_many(inputs(generation("red mug", text, answer())))
    said, nothing = reward.outcomes
    assert said.valid and said.status == "scored"
    assert said.reward == pytest.approx(nothing.reward)
    assert [hit.document_id for hit in said.hits] == [hit.document_id for hit in nothing.hits]


def test_every_reward_can_be_worked_out_again_from_its_event(
    environment: LeserEnvironment, retriever: Searcher
) -> None:
    settings = LeserEnvironmentSettings(reward=LeserSettings(relevance_depth=10, size_depth=15), hits_logged=15)
    small = LeserEnvironment(retriever, TeacupsAreMugs(), settings)
    (reward,) = small.score_many(inputs(generation("red mug", answer("teacup", "kitchen"), answer("steel"))))
    relevance = TeacupsAreMugs()
    raw = [hit.document_id for hit in reward.raw_hits]
    for outcome in reward.outcomes:
        found = [hit.document_id for hit in outcome.hits]
        assert [hit.rank for hit in outcome.hits] == list(range(1, 16))
        again, components = leser_reward(
            SetMeasurements(
                relevance.score("red mug", raw[:10]).tolist(),
                relevance.score("red mug", found[:10]).tolist(),
                len(raw),
                len({*raw, *found}),
                len(outcome.expansions),
            ),
            settings.reward,
        )
        assert outcome.reward == pytest.approx(again)
        assert outcome.components == pytest.approx(components)


def test_what_the_ranker_lacks_can_be_worked_out_again_from_the_events_hits(retriever: Searcher) -> None:
    reward = LeserSettings(relevance_depth=5, size_depth=5, reach_weight=1.0, reach_depth=15, relevance_weight=0.0)
    settings = LeserEnvironmentSettings(reward=reward, hits_logged=15)
    reaching = LeserEnvironment(retriever, TeacupsAreMugs(), settings)
    (scored,) = reaching.score_many(inputs(generation("red mug", answer("teacup", "kitchen"), answer())))
    relevance = TeacupsAreMugs()
    raw = [hit.document_id for hit in scored.raw_hits]
    for outcome in scored.outcomes:
        hits = [hit.document_id for hit in outcome.hits]

        def total(ids: list[str]) -> float:
            return sum(value for value in relevance.score("red mug", ids).tolist() if value >= 0.5)

        found, lost = total([name for name in hits if name not in raw]), total([n for n in raw if n not in hits])
        assert outcome.components["found"] == pytest.approx(found)
        assert outcome.components["lost"] == pytest.approx(lost)
        gain = min(max((found - lost) / max(total(raw), 1.0), -1.0), 2.0)
        assert outcome.components["reach"] == pytest.approx(gain)
        assert outcome.reward == pytest.approx(0.2 + gain + 0.1 * outcome.components["size"])
    first, none = scored.outcomes
    assert first.components["found"] > 0 == none.components["found"]


def test_the_event_carries_what_an_audit_asks_for(environment: LeserEnvironment, retriever: Searcher) -> None:
    group = generation("red mug", answer("teacup"))
    ((_, source, digest),) = inputs(group)
    reward = environment.score(group, source, digest)
    assert (reward.group_id, reward.generation, reward.source, reward.content_sha256) == ("g0", group, source, digest)
    assert reward.index == retriever.index
    assert reward.relevance_model == "teacups-are-mugs"
    template = msgspec.json.decode(reward.search_body)
    _, first, second, whole = (part["match"]["contents"] for part in template[0]["query"]["bool"]["should"])
    assert first == {"query": "{expansion 1}", "boost": 1.0}
    assert second == {"query": "{expansion 2}", "boost": 0.707107}
    assert whole == {"query": "{query}", "operator": "and", "boost": 20.0}
    assert encode_event(reward) == encode_event(environment.score(group, source, digest))
    other = LeserEnvironment(
        retriever, TeacupsAreMugs(), LeserEnvironmentSettings(reward=LeserSettings(size_weight=0.5))
    )
    assert other.reward_sha256 != environment.reward_sha256


def test_many_groups_at_once_get_what_each_gets_alone(retriever: Searcher) -> None:
    groups = [
        generation(f"{colour} {kind}", answer("teacup"), answer(kind, "kitchen"), answer(), "x", number=number)
        for number, (colour, kind) in enumerate((c, k) for c in COLOURS for k in [*KINDS, "mug"])
    ]
    few = Searcher(retriever.client, retriever.index, RetrievalSettings(batch_searches=7, in_flight=3))
    together = LeserEnvironment(few, TeacupsAreMugs(), LeserEnvironmentSettings(raw_queries_kept=2)).score_many(
        inputs(*groups)
    )
    few.close()

    def alone(entry: tuple[Generation, Position, str]) -> Reward:
        return LeserEnvironment(retriever, TeacupsAreMugs(), LeserEnvironmentSettings()).score(*entry)

    assert together == [alone(entry) for entry in inputs(*groups)]


def test_no_groups_give_no_rewards(environment: LeserEnvironment) -> None:
    assert environment.score_many([]) == []


def test_only_the_documents_that_count_are_scored(retriever: Searcher) -> None:
    relevance = TeacupsAreMugs()
    settings = LeserEnvironmentSettings(reward=LeserSettings(relevance_depth=5))
    LeserEnvironment(retriever, relevance, settings).score_many(
        inputs(generation("red mug", answer("teacup"), answer()))
    )
    ((pair,),) = relevance.asked
    assert pair[0] == "red mug"
    assert len(pair[1]) == len(set(pair[1])) <= 10


def test_one_failed_search_fails_its_candidate_and_not_its_neighbours() -> None:
    def script(number: int, bodies: list[dict]) -> object:  # type: ignore[type-arg]
        items = []
        for body in bodies:
            words = str(body)
            broken = {"status": 400, "error": {"type": "too_many_clauses", "reason": "too many"}}
            items.append(broken if "teacup" in words else hits(("d000", 2.0), ("d001", 1.0)))
        return responses(*items)

    with fake_engine(script) as engine:
        client = connect(ElasticsearchSettings(url=engine.url))
        broken = LeserEnvironment(
            Searcher(client, "i-1", RetrievalSettings()), TeacupsAreMugs(), LeserEnvironmentSettings()
        )
        group = generation("red mug", answer("teacup"), answer("cup"), "rubbish")
        (reward,) = broken.score_many(inputs(group))
        failed, scored, invalid = reward.outcomes
        assert (failed.status, failed.reward, failed.valid) == ("failed", None, True)
        assert "too_many_clauses: too many" in failed.error
        assert (scored.status, invalid.status) == ("scored", "scored")
        (raw_failed,) = broken.score_many(inputs(generation("teacup", answer("cup"), answer())))
        assert [outcome.status for outcome in raw_failed.outcomes] == ["failed", "failed"]
        assert raw_failed.raw_hits == ()
        # A failure is not remembered: the raw query is asked for again.
        asked = len(engine.requests)
        broken.score_many(inputs(generation("teacup", answer())))
        assert len(engine.requests) == asked + 1
        client.close()


def test_an_engine_that_is_down_decides_nothing_and_giving_up_is_failed() -> None:
    with fake_engine(lambda number, bodies: (503, b"{}")) as engine:
        client = connect(ElasticsearchSettings(url=engine.url, retries_max=0))
        down = LeserEnvironment(
            Searcher(client, "i-1", RetrievalSettings()), TeacupsAreMugs(), LeserEnvironmentSettings()
        )
        groups = inputs(generation("red mug", answer("teacup"), "rubbish"))
        with pytest.raises(EngineUnavailable):
            down.score_many(groups)
        (reward,) = down.failed_many(groups, error="Elasticsearch did not answer for 900 s")
        assert [outcome.status for outcome in reward.outcomes] == ["failed", "failed"]
        assert [outcome.reward for outcome in reward.outcomes] == [None, None]
        assert [outcome.valid for outcome in reward.outcomes] == [True, False]
        client.close()


def test_contexts_come_from_relevant_documents_and_repeat_nothing(retriever: Searcher) -> None:
    catalogue = Catalogue(products())
    builder = ContextBuilder(catalogue, retriever, TeacupsAreMugs(), ContextSettings(relevance_min=0.4))
    context, nothing, again = builder.build_contexts(["red kitchen", "unheardof", "red kitchen"])
    assert context == again
    assert "teacup" in context.terms
    assert not {"red", "kitchen"} & set(context.terms)
    assert "Steel" in context.attributes
    assert 0 < context.documents <= 20
    assert (nothing.terms, nothing.attributes, nothing.documents) == ((), (), 0)


def test_a_context_falls_back_to_the_best_few_where_nothing_is_relevant(retriever: Searcher) -> None:
    settings = ContextSettings(relevance_min=1.0, documents_min=2)
    builder = ContextBuilder(Catalogue(products()), retriever, TeacupsAreMugs(), settings)
    assert builder.build_contexts(["lamp"])[0].documents == 2
    strict = ContextBuilder(
        Catalogue(products()), retriever, TeacupsAreMugs(), ContextSettings(relevance_min=1.0, documents_min=0)
    )
    assert strict.build_contexts(["lamp"])[0].documents == 0
