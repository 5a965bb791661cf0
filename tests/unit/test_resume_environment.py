"""ReSuMe's environment with a retriever worked by hand: what is drawn, what is scored, what fails."""

from __future__ import annotations

import numpy as np
import pytest

from search_env.catalogue.corpora import Document
from search_env.resume.environment import (
    ResumeEnvironment,
    ResumeEnvironmentSettings,
    embedded_text,
    measured_deltas,
)
from search_env.resume.reward import ResumeSettings
from search_env.summaries.products import description_of, lead, product_of, random_values
from search_env.summaries.reading import SummarySettings
from streams.events import Completion, Generation, Outcome, PolicyRef, Position, Product, Request, Sampling

PLACE = Position(topic="t", partition=0, offset=0)
PRODUCT = Product(
    document_id="d1", title="Cable", values=(("colour", "yellow"), ("length", "2 m"), ("shield", "shielded"))
)
QUERIES = {"q1": "yellow", "q2": "black", "q3": "flat"}
SETTINGS = ResumeEnvironmentSettings(
    reward=ResumeSettings(edge_scale=1.0, tokens_low=1, tokens_high=3, tokens_over=4),
    summary=SummarySettings(tokens_max=4),
    negatives=2,
)


class FakeEncoder:
    """Axes are the words of the queries and one for the rest; a text is the mean of its words, scaled to length 1."""

    name = "r7-fake"
    axes = ("yellow", "black", "flat")

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        return self.embed_documents(texts)

    def embed_documents(self, texts: list[str]) -> np.ndarray:
        rows = []
        for text in texts:
            words = text.replace(",", " ").replace(".", " ").lower().split()
            row = [float(words.count(axis)) for axis in self.axes]
            rows.append([*row, float(sum(word not in self.axes for word in words))])
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), 4)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def token_count(self, text: str) -> int:
        return len(text.replace(",", " ").split())


def environment(settings: ResumeEnvironmentSettings = SETTINGS, **changes: object) -> ResumeEnvironment:
    given = {"documents": {"d1": "Cable. yellow, 2 m, shielded"}, "queries": QUERIES, "answered": {"d1": ["q1"]}}
    return ResumeEnvironment(FakeEncoder(), index="shop-1", settings=settings, **(given | changes))  # type: ignore[arg-type]


def group(*texts: str, product: Product | None = PRODUCT, group_id: str = "g1") -> Generation:
    asked = Request(request_id="r", run="run", query_id="d1", query="", index="shop-1")
    if product is not None:
        asked = Request(request_id="r", run="run", query_id="d1", query="", index="shop-1", product=product)
    return Generation(
        group_id=group_id,
        request=asked,
        source=PLACE,
        policy=PolicyRef(lineage="1-a", step=0, sha256="s"),
        tokenizer_sha256="t",
        prompt_sha256="p",
        sampling=Sampling(candidates=len(texts), temperature=1.0, tokens_max=4),
        prompt_token_ids=(1,),
        completions=tuple(Completion(text=text, token_ids=(2,), logprobs=(-0.5,), finish="stop") for text in texts),
        made_at_ms=5,
    )


def outcomes(*texts: str, **changes: object) -> tuple[Outcome, ...]:
    (reward,) = environment().score_many([(group(*texts, **changes), PLACE, "sha")])  # type: ignore[arg-type]
    assert (reward.index, reward.relevance_model, reward.made_at_ms) == ("shop-1", "r7-fake", 5)
    return reward.outcomes


def test_a_summary_is_scored_behind_its_title_as_worked_by_hand() -> None:
    """<v1> is "Cable. yellow": (1, 0, 0, 1)/√2, cosine .7071 with yellow, 0 with black and flat.

    The document "Cable. yellow, 2 m, shielded" is (1, 0, 0, 4)/√17, cosine .2425. So RetScore is .85355/(.85355 + 1) =
    .46050 against .62127/(.62127 + 1) = .38320; Δ = .0773 pays .3, and one token is in the band.
    """
    (outcome,) = outcomes("<v1>")
    assert outcome.summary == "yellow"
    assert outcome.components["delta"] == pytest.approx(0.0773, abs=1e-4)
    assert outcome.components["tokens"] == 1
    assert outcome.reward == pytest.approx(1.3)


def test_what_is_over_the_budget_counts_in_the_length_and_is_not_embedded() -> None:
    (outcome,) = outcomes("<v2><v3><v1>")
    assert outcome.summary == "2 m, shielded, yellow"
    tight = environment(
        ResumeEnvironmentSettings(reward=SETTINGS.reward, summary=SummarySettings(tokens_max=3), negatives=2)
    )
    (reward,) = tight.score_many([(group("<v2><v3><v1>"), PLACE, "sha")])
    assert reward.outcomes[0].summary == "2 m, shielded"
    assert reward.outcomes[0].components["tokens"] == 4
    assert reward.outcomes[0].components["structure"] == 0.9


def test_a_pointer_to_nothing_is_worth_minus_two_and_an_empty_summary_is_a_title() -> None:
    invalid, empty = outcomes("<v9>", "")
    assert (invalid.valid, invalid.reward) == (False, -2.0)
    assert (empty.valid, empty.summary, empty.components["structure"]) == (True, "", 0.3)


def test_a_product_without_queries_and_a_request_without_product_fail_with_a_reason() -> None:
    (reward,) = environment(answered={}).score_many([(group("<v1>", "<v2>"), PLACE, "sha")])
    assert [outcome.status for outcome in reward.outcomes] == ["failed", "failed"]
    assert "needs queries that it answers" in reward.outcomes[0].error
    (reward,) = environment().score_many([(group("<v1>", product=None), PLACE, "sha")])
    assert "about a product of the index" in reward.outcomes[0].error


def test_a_cosine_that_is_not_finite_fails_and_is_no_reward() -> None:
    class Broken(FakeEncoder):
        def embed_documents(self, texts: list[str]) -> np.ndarray:
            return super().embed_documents(texts) * np.float32("nan" if any("2 m" in text for text in texts) else 1)

    broken = ResumeEnvironment(
        Broken(),  # type: ignore[arg-type]
        index="shop-1",
        documents={"d1": "Cable. yellow, 2 m, shielded"},
        queries=QUERIES,
        answered={"d1": ["q1"]},
        settings=SETTINGS,
    )
    (reward,) = broken.score_many([(group("<v1>"), PLACE, "sha")])
    assert (reward.outcomes[0].status, reward.outcomes[0].reward) == ("failed", None)


def test_a_replay_scores_the_same_whatever_was_scored_before() -> None:
    many = {f"q{number}": f"word {('yellow ' * (number % 5))}black" for number in range(90)}
    answered = {"d1": [f"q{number}" for number in range(1, 60, 2)]}
    inputs = [(group("<v1>", "<v2><v3>", group_id=f"g{number}"), PLACE, "sha") for number in range(5)]
    first = environment(queries=many, answered=answered).score_many(inputs)
    again = environment(queries=many, answered=answered).score_many(inputs[::-1])[::-1]
    assert first == again
    assert len({reward.outcomes[0].components["summary_score"] for reward in first}) > 1  # Each group draws its own.


def test_the_spread_is_measured_on_valid_candidates() -> None:
    (deltas,) = measured_deltas(environment(), [(group("<v1>", "<v9>", "<v3>"), PLACE, "sha")])
    assert len(deltas) == 2


def test_products_and_the_texts_that_need_no_policy() -> None:
    attributes = {"colour": "Yellow", "cable_length": 2, "package_weight": "3 kg", "shielded": True, "finish": "Yellow"}
    product = product_of(Document(id="d", title="Cable", text="A cable", metadata={"attributes": attributes}))
    said = [value for _, value in product.values]
    assert said == ["Yellow", "2 m", "shielded"]
    assert description_of(product) == "Yellow, 2 m, shielded"
    assert description_of(Product(document_id="d", title="t", text="A cable")) == "A cable"
    count = FakeEncoder().token_count
    budget = SummarySettings(tokens_max=3)
    assert lead(product, budget, count) == "Yellow, 2 m,"
    drawn = {random_values(product, budget, count, seed=seed) for seed in range(20)}
    assert len(drawn) > 2
    assert random_values(product, budget, count, seed=1) == random_values(product, budget, count, seed=1)
    assert embedded_text("Cable", "") == "Cable"
    assert embedded_text("Cable", "Yellow") == "Cable. Yellow"
