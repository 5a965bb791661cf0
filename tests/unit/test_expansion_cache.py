"""Kept expansions: found by the exact text, for one policy version and one index version alone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from search_env.catalogue.corpora import Query
from search_env.leser.expansion_cache import Expanded, ExpansionCache, head_queries

MUG = Expanded(
    query_id="1", query="steel mug", expansions=("camping", "cup"), valid=True, text="<v2><v1>", policy="1-a-000002"
)
INVALID = msgspec.structs.replace(MUG, query_id="2", query="lamp", expansions=(), valid=False, text="oh no")


def cache(run_dir: Path, *, policy: str = "1-a-000002", index_version: str = "shop-1") -> ExpansionCache:
    return ExpansionCache(run_dir, policy=policy, index_version=index_version)


def test_what_is_kept_is_found_under_the_id_that_asks(tmp_path: Path) -> None:
    assert cache(tmp_path).keep([MUG, INVALID]) == 2
    asked = [Query(id="9", text="steel mug"), Query(id="8", text="Steel mug"), Query(id="7", text="lamp")]
    found = cache(tmp_path).known(asked)
    assert found == {
        "9": msgspec.structs.replace(MUG, query_id="9"),
        "7": msgspec.structs.replace(INVALID, query_id="7"),
    }


def test_another_policy_or_index_version_knows_nothing(tmp_path: Path) -> None:
    cache(tmp_path).keep([MUG])
    asked = [Query(id="1", text="steel mug")]
    assert cache(tmp_path, policy="1-a-000003").known(asked) == {}
    assert cache(tmp_path, index_version="shop-2").known(asked) == {}


def test_keeping_again_replaces_and_forgets_nothing(tmp_path: Path) -> None:
    cache(tmp_path).keep([MUG, INVALID])
    assert cache(tmp_path).keep([msgspec.structs.replace(MUG, expansions=("flask",))]) == 2
    assert cache(tmp_path).known([Query(id="1", text="steel mug")])["1"].expansions == ("flask",)


def test_a_damaged_file_holds_nothing_and_is_made_again(tmp_path: Path) -> None:
    cache(tmp_path).keep([MUG])
    (file,) = (tmp_path / "expansions").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert cache(tmp_path).known([Query(id="1", text="steel mug")]) == {}
    assert cache(tmp_path).keep([MUG]) == 1
    assert cache(tmp_path).known([Query(id="1", text="steel mug")])["1"] == MUG


def test_head_queries_are_the_texts_asked_most_often() -> None:
    asked = [Query(id=str(number), text=text) for number, text in enumerate(["b", "a", "c", "a", "b", "a", "d"])]
    assert [(query.id, query.text) for query in head_queries(asked, 3)] == [("1", "a"), ("0", "b"), ("2", "c")]
    assert len(head_queries(asked, 100)) == 4
