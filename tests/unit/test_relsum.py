"""The ReLSum rewards by hand, and the environment that pays them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.recipes.relsum.labelling import usable
from search_env.models.crossencoder import Calibration, CrossEncoder, CrossEncoderSettings
from search_env.relsum.environment import LabelledQuery, RelsumEnvironment, RelsumEnvironmentSettings
from search_env.relsum.reward import RelsumSettings, Scored, list_likelihood, reciprocal_rank, relsum_reward
from streams.codec import encode_event
from streams.events import Completion, Generation, PolicyRef, Position, Product, Request, Sampling

LAMP = Product(document_id="d", title="lamp", values=(("colour", "red"), ("power", "9 w")))
CALIBRATION = Calibration(version="v", scale=2.0, shift=-1.0, pairs=2, ece_before=0.0, ece_after=0.0, auc=1.0)


class FakeCrossEncoder(CrossEncoder):
    """Gives a pair as its logit the number of the query's words that stand in the text."""

    def __init__(self) -> None:
        super().__init__(None, CrossEncoderSettings(), CALIBRATION)
        self.asked: list[tuple[str, str]] = []

    def _read(self, pairs, tokens_max, report):  # type: ignore[no-untyped-def]
        self.asked += pairs
        return [float(sum(word in text.split() for word in query.split())) for query, text in pairs]


def environment(kind: str = "error", queries_max: int = 4) -> tuple[RelsumEnvironment, FakeCrossEncoder]:
    encoder = FakeCrossEncoder()
    queries = {
        "d": [
            LabelledQuery(query_id="a", query="red", label=1, delta=0.5, others=(0.5, 2.0)),
            LabelledQuery(query_id="b", query="w", label=1, delta=0.5, others=(0.0,)),
        ]
    }
    settings = RelsumEnvironmentSettings(reward=RelsumSettings(kind=kind, queries_max=queries_max))  # type: ignore[arg-type]
    made = RelsumEnvironment(
        encoder,
        queries,
        settings,
        index="i-1",
        count=lambda text: len(text.split()),
        text_of=lambda document, summary: f"lamp {summary}".replace(",", " "),
    )
    return made, encoder


def generation(texts: list[str], product: Product | None = LAMP, group: str = "g") -> Generation:
    request = Request(request_id="r", run="run", query_id="d", query="", index="i-1")
    if product is not None:
        request = Request(request_id="r", run="run", query_id="d", query="", index="i-1", product=product)
    return Generation(
        group_id=group,
        request=request,
        source=Position(topic="run.requests", partition=0, offset=0),
        policy=PolicyRef(lineage="1-a", step=0, sha256=""),
        tokenizer_sha256="",
        prompt_sha256="",
        sampling=Sampling(candidates=len(texts), temperature=0.9, tokens_max=4),
        prompt_token_ids=(1,),
        completions=tuple(Completion(text=t, token_ids=(1,), logprobs=(-1.0,), finish="stop") for t in texts),
    )


def score(made: RelsumEnvironment, event: Generation):  # type: ignore[no-untyped-def]
    return made.score_many([(event, Position(topic="run.generations", partition=0, offset=0), "h")])[0]


def test_the_papers_reward_is_the_distance_from_the_label() -> None:
    scored = [
        Scored(logit=0.0, probability=0.8, label=1, others=()),
        Scored(logit=0.0, probability=0.3, label=0, others=()),
    ]
    reward, parts = relsum_reward(scored, 10, RelsumSettings(kind="error", queries_max=2))
    assert reward == pytest.approx(-(0.2 + 0.3) / 2)
    assert parts["probability"] == pytest.approx(0.55)
    assert relsum_reward(scored, 10, RelsumSettings(token_cost=0.01))[0] == pytest.approx(-0.25 - 0.1)


def test_the_reciprocal_rank_counts_others_above_and_half_of_those_beside() -> None:
    assert reciprocal_rank(Scored(logit=1.0, probability=0.5, label=1, others=(2.0, 1.0, 0.0))) == 1 / 2.5
    assert reciprocal_rank(Scored(logit=1.0, probability=0.5, label=1, others=())) == 1.0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=10))
def test_the_list_likelihood_is_the_log_softmax(logits: list[float]) -> None:
    found = list_likelihood(Scored(logit=logits[0], probability=0.5, label=1, others=tuple(logits[1:])))
    assert found == pytest.approx(
        math.log(math.exp(logits[0] - max(logits)) / sum(math.exp(z - max(logits)) for z in logits)), abs=1e-9
    )


def test_a_group_is_paid_summary_by_summary_and_each_pair_is_read_once() -> None:
    made, encoder = environment()
    reward = score(made, generation(["<v1>", "<v1>", "", "<v1><v2>"]))
    one, same, nothing, both = reward.outcomes
    assert one == same
    assert (one.summary, nothing.summary, both.summary) == ("red", "", "red, 9 w")
    sigmoid = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    assert both.reward == pytest.approx(-(1 - sigmoid(2 * 1 - 1)))
    assert nothing.reward == pytest.approx(-(1 - sigmoid(-1)))
    assert both.reward > one.reward > nothing.reward
    assert len(encoder.asked) == len(set(encoder.asked)) == 6
    assert reward.relevance_model == "cross-encoder-v"
    encode_event(reward)


def test_a_reward_by_rank_places_the_product_among_the_querys_others() -> None:
    made, _ = environment("reciprocal_rank")
    nothing, both = score(made, generation(["", "<v1><v2>"])).outcomes
    assert nothing.reward == pytest.approx((1 / 3 + 1 / 1.5) / 2)
    assert both.reward == pytest.approx((1 / 2 + 1 / 1) / 2)


def test_the_same_group_is_scored_with_the_same_queries_and_others_with_others() -> None:
    made, _ = environment(queries_max=1)
    assert score(made, generation(["<v1>"])) == score(made, generation(["<v1>"]))
    assert len({score(made, generation(["<v1>"], group=str(n))).outcomes[0].reward for n in range(20)}) == 2


def test_what_cannot_be_scored_is_failed_and_what_is_malformed_is_worth_least() -> None:
    made, _ = environment()
    lacking = score(made, generation(["<v1>", "red"], product=None))
    assert [(o.status, o.reward) for o in lacking.outcomes] == [("failed", None)] * 2
    stranger = score(made, generation(["<v1>"], product=Product(document_id="x", title="t", values=(("a", "b"),))))
    assert stranger.outcomes[0].status == "failed"
    malformed = score(made, generation(["<v9>", "x" * 9000])).outcomes
    assert [(o.status, o.valid, o.reward) for o in malformed] == [("scored", False, -1.0)] * 2
    failed = made.failed_many([(generation(["<v1>"]), Position(topic="t", partition=0, offset=0), "h")], error="down")
    assert failed[0].outcomes[0].error == "down"


def test_a_score_that_is_no_number_fails_its_candidate() -> None:
    made, encoder = environment()
    encoder._read = lambda pairs, tokens_max, report: [math.nan] * len(pairs)  # type: ignore[method-assign]
    [outcome] = score(made, generation(["<v1>"])).outcomes
    assert (outcome.status, outcome.reward) == ("failed", None)
    assert np.isnan(encoder.logits([("red", "lamp red")])).all()


def labelled(label: int, delta: float) -> LabelledQuery:
    return LabelledQuery(query_id=f"{label}{delta}", query="q", label=label, delta=delta, others=(0.0,))


def test_the_filter_keeps_pairs_that_the_description_moves_either_way() -> None:
    pairs = {"a": (labelled(1, 0.3), labelled(0, -0.3), labelled(1, 0.01)), "b": (labelled(1, -0.05),)}
    by_error = RelsumEnvironmentSettings(filter_delta=0.05)
    assert usable(pairs, by_error) == {"a": pairs["a"][:2]}
    by_rank = RelsumEnvironmentSettings(reward=RelsumSettings(kind="reciprocal_rank"), filter_delta=0.05)
    assert usable(pairs, by_rank) == {"a": pairs["a"][:1]}
