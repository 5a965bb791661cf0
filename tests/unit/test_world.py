"""The world that changes: the same for all who live in it, and changed by as much as it says."""

from __future__ import annotations

from itertools import islice

import pytest

from infra.simulating.world import Day, WorldSettings, asked, days
from search_env.catalogue.analysis import surface_tokens

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
