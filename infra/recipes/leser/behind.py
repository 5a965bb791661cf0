"""LESER's rankings behind a ranker: the relevance model of the index orders the first documents of each search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from infra.app.app import OpenEngine
from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.held_out import HeldOut, ranked
from infra.recipes.leser.relevance import open_relevance
from infra.recipes.recipe import Ranked
from search_env.catalogue.corpora import Ranking
from search_env.engine.index import load_manifest
from search_env.engine.opening import open_catalogue
from search_env.engine.ranker import BEHIND, behind_ranker
from search_env.models.relevance import RelevanceModel
from search_env.models.relevance_versions import version_folder


class Rankers:
    """The rankers of indexes, each read once, as long as its documents need no engine."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bytes], RelevanceModel] = {}

    @contextlib.contextmanager
    def open(
        self, folder: IndexFolder, settings: Settings, engine: OpenEngine, report: Report
    ) -> Iterator[RelevanceModel]:
        """Yield the relevance model of an index; one of an attached index reads documents until the end."""
        manifest = load_manifest(folder)
        model = version_folder(folder.relevance, settings.relevance.version) / "manifest.json"
        digest = msgspec.json.encode([settings.relevance, model.read_text() if model.is_file() else ""])
        key = (str(folder), manifest.name, digest)
        with contextlib.closing(engine()) as client:
            found = self._known.get(key)
            if found is None:
                catalogue = open_catalogue(client, folder)
                found = open_relevance(folder, settings, catalogue=catalogue, report=report)
                if manifest.attached is None:
                    self._known[key] = found
            yield found


def set_behind(asked: HeldOut, rankings: Mapping[str, Ranking], model: RelevanceModel, *, depth: int) -> Ranked:
    """Return a set's rankings behind the ranker, as a set of its own."""
    queries = [query for query in asked.queries if query.id in rankings]
    found = behind_ranker([q.text for q in queries], [rankings[q.id] for q in queries], model, depth=depth)
    made = ranked(asked, dict(zip((query.id for query in queries), found, strict=True)))
    return msgspec.structs.replace(made, name=asked.name + BEHIND)


def sets_behind(
    sets: Sequence[tuple[HeldOut, Mapping[str, Ranking]]], model: RelevanceModel, *, depth: int
) -> list[Ranked]:
    """Return every set as the search ranks it, then every set behind the ranker."""
    return [
        *(ranked(asked, rankings) for asked, rankings in sets),
        *(set_behind(asked, rankings, model, depth=depth) for asked, rankings in sets),
    ]
