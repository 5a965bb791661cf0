"""`searchloop search --by vectors`: search by dense vectors of documents or of texts that represent them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from infra.app.app import App
from infra.app.progress import progress
from infra.commands.options import ArmChoice, as_one
from search_env.catalogue.corpora import Query, write_run


class VectorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that apply to a search by vectors alone."""

    recipe: str
    texts: str
    retriever: str
    retriever_of: str | None
    adapt: int
    seed: int


vector_options = as_one(
    "vectors",
    VectorOptions,
    click.option(
        "--recipe",
        default="resume",
        show_default=True,
        help="By vectors: recipe whose settings apply; with --run, the run's own settings apply.",
    ),
    click.option(
        "--texts",
        type=ArmChoice(["description", "title", "lead", "random", "key-counts", "policy"]),
        default="description",
        show_default=True,
        help="By vectors: text that represents each document.",
    ),
    click.option("--retriever", default="", help="By vectors: retriever version. Default: the unadapted one."),
    click.option(
        "--retriever-of", metavar="INDEX", help="By vectors: index on which the retriever was adapted. [--index]"
    ),
    click.option(
        "--adapt",
        "--tune",
        "adapt",
        type=click.IntRange(min=0),
        default=0,
        help="By vectors: number of steps to adapt the retriever to these texts first.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="By vectors: seed of the adapting and of --texts random.",
    ),
)


def check_vectors(vectors: VectorOptions, *, index: str, run_name: str | None) -> None:
    """Raise UsageError for options that do not apply together."""
    if (vectors.texts == "policy") != (run_name is not None):
        raise click.UsageError("--run belongs to --texts policy: give both, or neither")
    if vectors.adapt and vectors.retriever_of not in (None, index):
        raise click.UsageError(
            f"--adapt adapts retrievers of --index {index}, not of --retriever-of {vectors.retriever_of}. Leave one of "
            "the two out"
        )


def search_by_vectors(
    app: App,
    asked: Sequence[tuple[Sequence[Query], Path]],
    vectors: VectorOptions,
    *,
    index: str,
    run_name: str | None,
    policy: str,
    top: int,
) -> None:
    """Search each list of queries by vectors, and write its run file.

    run_name, policy: the run and the version that write the summaries, for `--texts policy`.
    """
    from infra.app.run_settings import read_run_settings
    from infra.recipes.files import recipe_path
    from infra.recipes.resume.bi_encoders import (
        VectorIndex,
        adapt_to_texts,
        dense_search,
        first_retriever,
        open_encoder,
    )
    from infra.recipes.resume.texts import texts_without_policy
    from infra.recipes.resume.writing import policy_texts

    folder, made_on = app.home.index(index), app.home.index(vectors.retriever_of or index)
    app = app.with_recipe(recipe_path(vectors.recipe))
    with progress() as report, app.running_services(report) as running:
        if run_name is not None:
            run_dir = running.home.run(run_name)
            kept = read_run_settings(run_dir)
            running = running.with_settings(kept.settings)
            embedded = policy_texts(running.home.index(kept.index), run_dir, kept, policy=policy, report=report)
        else:
            embedded = texts_without_policy(
                folder,
                vectors.texts,
                budget=running.settings.resume.summary,
                prompts=running.settings.product_prompts,
                seed=vectors.seed,
            )
        retriever = running.settings.retriever
        name = vectors.retriever or first_retriever(made_on, retriever).name
        if vectors.adapt:
            adapted = running.with_changes("--adapt", {"retriever": {"steps": vectors.adapt}}).settings.retriever
            name = adapt_to_texts(
                folder, adapted, parent=name, texts=embedded, held_out=[], turn=1, seed=vectors.seed
            ).name
        indexed = VectorIndex(
            alias=f"{index}-dense-{vectors.texts}",
            installation=running.installation,
            engine=running.engine,
            settings=running.settings.vectors,
        )
        encoder = open_encoder(made_on, name, retriever)
        for queries, out in asked:
            rankings = dense_search(folder, encoder, embedded, queries, top=top, indexed=indexed)
            write_run(out, rankings, tag=f"{vectors.texts}-{name}")
    click.echo(f"retriever {name}; {', '.join(str(out) for _, out in asked)}")
