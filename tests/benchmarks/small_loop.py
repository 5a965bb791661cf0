"""A small loop for benchmarks: the demo's recipe at a smaller size, with its index and its warmed-up policy ready."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.run_settings import RunSettings, write_run_settings
from infra.recipes.files import recipe_path
from infra.recipes.leser.preparation import prepare
from infra.recipes.recipe import NewRun
from search_env.catalogue.generated import demo_catalogue
from tests.benchmarks.guarantees import services, small

INDEX, FIRST = "bench", "first"


@contextmanager
def small_loop(**changes: Any) -> Iterator[App]:
    """Give an app with services of its own, the index `INDEX` and the run `FIRST`; changes: tables of its settings."""
    with ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="loop-", ignore_cleanup_errors=True)))
        home.chmod(0o755)
        app = small(App(Home(home), recipe=recipe_path("demo")).at(services(home, opened)))
        no_dev = msgspec.structs.replace(app.settings.dev, every=0)
        app = app.with_settings(msgspec.structs.replace(app.settings, dev=no_dev, **changes))
        index_corpus(app, name=INDEX, documents=demo_catalogue(app.settings.demo), report=say)
        keep_first(app, INDEX)
        yield app


def keep_first(app: App, index: str) -> None:
    """Prepare the run `FIRST`, with the settings that `train` would keep, so that other runs can begin from it."""
    prepared = prepare(app, NewRun(run=FIRST, index=index), say)
    kept = RunSettings(
        run=FIRST, recipe="demo", index=index, index_version=prepared.index, seed=0, updates=0, settings=app.settings
    )
    write_run_settings(app.home.run(FIRST), kept)


def say(what: str, done: int, total: int) -> None:
    """Say what is going on, on standard error."""
    print(f"{what} {done}/{total}" if total else what, file=sys.stderr, flush=True)
