"""Publishing summaries: a policy version's summary of every product, as a field of a new version of the index."""

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
    """The index version that a run was begun on: the only part of its settings that is read here."""

    index_version: str


def publish_summaries(app: App, run: RunSettings, *, policy: str, report: Report) -> IndexVersion:
    """Write the missing summaries, index all documents again with them, move the alias, and return the version.

    The documents are those of the current index. A version that a run was begun on stays, wherever the alias points.
    """
    with contextlib.closing(app.engine()) as client:  # Checked before hours of writing; `build_index` checks again.
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
