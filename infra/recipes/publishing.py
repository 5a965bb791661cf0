"""Publishing summaries: a policy version's text about every product, as a field of a new version of the index."""

from __future__ import annotations

import contextlib

import msgspec

from infra.app.app import App
from infra.app.home import SETTINGS_FILE, read_settings_file
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.recipes.recipe import writer_of
from search_env.engine.index import IndexVersion, Summaries, build_index, claim_name, load_documents


class BegunOn(msgspec.Struct, frozen=True, kw_only=True):
    """The one part of a run's settings that says which index version it needs."""

    index_version: str


def publish_summaries(app: App, run: RunSettings, *, policy: str, report: Report) -> IndexVersion:
    """Write what is missing, index all documents anew with their summaries, and move the alias; return the version.

    The documents are those of the index as it is. Versions that a run was begun on stay, whatever the alias says.
    """
    with contextlib.closing(app.engine()) as client:  # Asked before hours of writing; `build_index` asks again.
        claim_name(client, run.index, installation=app.installation)
    texts = writer_of(run.settings.train.recipe).write_catalogue(
        app.with_settings(run.settings), run, policy=policy, report=report
    )
    documents = load_documents(app.home.index(run.index))
    with contextlib.closing(app.engine()) as client:
        return build_index(
            client,
            run.index,
            documents,
            report,
            installation=app.installation,
            directory=app.home.index(run.index),
            total=len(documents),
            summaries=Summaries(policy=texts.policy, by_document=texts.by_document),
            keep=versions_in_use(app),
        )


def versions_in_use(app: App) -> set[str]:
    """Return the index versions that runs of this home were begun on."""
    return {read_settings_file(path.parent, BegunOn).index_version for path in app.home.runs.glob(f"*/{SETTINGS_FILE}")}
