"""An environment on an attached index, whose owner changes it while a run learns."""

from __future__ import annotations

from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.searching import RetrievalSettings, Searcher
from search_env.leser.environment import LeserEnvironment, LeserEnvironmentSettings
from tests.engine_fakes import fake_engine, responses
from tests.services.test_environment import TeacupsAreMugs, answer, generation, inputs
from tests.unit.test_marked_query import PLAIN, attached


def test_the_raw_results_of_a_group_are_those_of_the_index_as_it_is_now() -> None:
    found = ["d001"]

    def item() -> dict[str, object]:
        return {"status": 200, "hits": {"hits": [{"_id": found[-1], "_score": 1.0}]}}

    with fake_engine(lambda number, bodies: responses(*(item() for _ in bodies))) as engine:
        client = connect(ElasticsearchSettings(url=engine.url))
        searcher = Searcher(client, "shop", RetrievalSettings(), attached(PLAIN))
        environment = LeserEnvironment(searcher, TeacupsAreMugs(), LeserEnvironmentSettings())
        group = generation("red mug", answer("teacup"), answer())
        seen = []
        for _ in range(2):
            (reward,) = environment.score_many(inputs(group))
            seen.append([[hit.document_id for hit in hits] for hits in (reward.raw_hits, reward.outcomes[0].hits)])
            found.append("d002")
        searcher.close()
        client.close()
    assert seen == [[["d001"], ["d001"]], [["d002"], ["d002"]]]
