"""The world that changes: the same for all who live in it, and changed by as much as it says."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from infra.simulating.world import Day, WorldSettings, asked, days
from infra.simulating.world_files import CORPUS, QRELS, QUERIES, write_days
from search_env.catalogue.analysis import surface_tokens
from search_env.catalogue.corpora import load_corpus, load_qrels, load_queries
from streams.errors import SettingsError

SMALL = WorldSettings(products=400, seed=3)


def lived(settings: WorldSettings, count: int) -> list[Day]:
    return list(islice(days(settings), count))


def test_one_seed_is_one_world_and_another_seed_another() -> None:
    changing = WorldSettings(products=200, replaced=0.1, renamed=0.1, moved=0.1, seed=1)
    assert lived(changing, 4) == lived(changing, 4)
    other = WorldSettings(products=200, replaced=0.1, renamed=0.1, moved=0.1, seed=2)
    assert lived(changing, 1)[0].documents != lived(other, 1)[0].documents


def test_a_still_world_never_changes() -> None:
    first, *later = lived(SMALL, 5)
    assert all(day == first for day in later)


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_each_day_changes_by_the_share_that_the_settings_say(share: float) -> None:
    before, after = lived(WorldSettings(products=400, replaced=share, seed=3), 2)
    kept = {each.id for each in before.documents} & {each.id for each in after.documents}
    assert len(kept) == round(400 * (1 - share))
    assert len(after.documents) == 400

    before, after = lived(WorldSettings(products=400, moved=share, seed=3), 2)
    moved = sum(one != other for one, other in zip(before.popularity, after.popularity, strict=True))
    assert 0.5 * share <= moved / len(before.popularity) <= share
    assert sorted(before.popularity) == sorted(after.popularity)

    before, after = lived(WorldSettings(products=400, renamed=share, seed=3), 2)
    assert [each.id for each in before.documents] == [each.id for each in after.documents]
    assert before.grades == after.grades, "a new word for an old thing changes no relevance"
    new = {word for words in after.words.values() for word in words}
    old = {word for words in before.words.values() for word in words}
    assert new - old and old & new


def test_words_find_what_sellers_call_a_thing_and_grades_follow_from_attributes_alone() -> None:
    day = lived(WorldSettings(products=400, renamed=0.3, seed=3), 3)[-1]
    by_id = {each.id: each for each in day.documents}
    for query in [query for query in day.queries if query.id in day.grades][:50]:
        wanted = {value for _, value in query.metadata["attributes"]}
        relevant = {
            each.id
            for each in day.documents
            if wanted <= set(each.metadata["attributes"].values())
            and query.text.endswith(each.metadata["attributes"]["product_type"])
        }
        assert relevant == set(day.grades[query.id])
        for name in relevant:
            said = set(surface_tokens(f"{by_id[name].title} {by_id[name].text}"))
            assert said & set(day.words[query.id]), "a relevant product is called by one of these words"


def test_popular_queries_are_asked_most_and_queries_without_products_never() -> None:
    day = lived(SMALL, 1)[0]
    searches = asked(day, 3_000, seed=5)
    assert searches == asked(day, 3_000, seed=5)
    assert {query.id for query in searches} <= set(day.grades)
    known = [place for place, query in enumerate(day.queries) if query.id in day.grades]
    best = max(known, key=lambda place: day.popularity[place])
    counts = [sum(query.id == day.queries[place].id for query in searches) for place in known]
    assert max(counts) == counts[known.index(best)]


def test_days_are_written_as_files_that_index_and_simulate_read(tmp_path: Path) -> None:
    settings = WorldSettings(products=200, replaced=0.2, renamed=0.2, moved=0.2, seed=4)
    places = write_days(tmp_path, settings, 2, lambda *_: None)
    assert [place.name for place in places] == ["day-01", "day-02"]
    for place, day in zip(places, lived(settings, 2), strict=True):
        assert list(load_corpus(place / CORPUS)) == day.documents
        queries, qrels = load_queries(place / QUERIES), load_qrels(place / QRELS)
        assert [query.id for query in queries] == list(qrels)
        assert qrels == {query.id: day.grades[query.id] for query in queries}
        popularity = dict(zip((query.id for query in day.queries), day.popularity, strict=True))
        assert [popularity[query.id] for query in queries] == sorted(
            (popularity[name] for name in day.grades), reverse=True
        )
    with pytest.raises(SettingsError, match=r"day-02: expected no such folder yet"):
        (tmp_path / "day-01").rename(tmp_path / "mine")
        write_days(tmp_path, settings, 2, lambda *_: None)
    assert not (tmp_path / "day-01").exists()
