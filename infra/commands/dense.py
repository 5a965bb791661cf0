"""`searchloop dense`: search by dense vectors of the documents or of the texts that represent them."""

from __future__ import annotations

from pathlib import Path

import click

from infra.app.app import App
from infra.app.progress import progress


@click.command()
@click.option(
    "--recipe",
    default="resume",
    show_default=True,
    help="Recipe whose settings apply; with --run, the run's own settings apply.",
)
@click.option("--index", default="catalogue", show_default=True, help="Index to search.")
@click.option(
    "--texts",
    type=click.Choice(["documents", "titles", "lead", "random", "key-prior", "policy"]),
    default="documents",
    show_default=True,
    help="Text that represents each document.",
)
@click.option("--run", "run_name", help="Run whose policy writes the summaries; required with --texts policy.")
@click.option("--policy", default="latest", show_default=True, help="Policy version of that run.")
@click.option("--retriever", default="", help="Retriever version. Default: the unadapted one.")
@click.option("--retriever-of", metavar="INDEX", help="Index on which the retriever was adapted. [--index]")
@click.option(
    "--tune",
    type=click.IntRange(min=0),
    default=0,
    help="Number of steps to adapt the retriever to these texts first.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the tuning and of --texts random."
)
@click.option(
    "--queries",
    "pairs",
    nargs=2,
    multiple=True,
    required=True,
    help="Query file (JSONL) and the run file to write; may be repeated.",
)
@click.option(
    "--top", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Number of documents per query."
)
@click.pass_obj
def dense(
    app: App,
    recipe: str,
    index: str,
    texts: str,
    run_name: str | None,
    policy: str,
    retriever: str,
    retriever_of: str | None,
    tune: int,
    seed: int,
    pairs: tuple[tuple[str, str], ...],
    top: int,
) -> None:
    """Search by dense vectors of documents, or of texts that represent them, and write TREC run files.

    \b
    Example:
      searchloop dense --index shop --texts lead --tune 450 --queries test.jsonl lead.run
      searchloop dense --index shop --texts policy --run resume-shop-0-t3 --retriever r3-… --queries test.jsonl it.run
      searchloop dense --index library --retriever r3-… --retriever-of shop --queries test.jsonl elsewhere.run
    """
    from infra.app.run_settings import read_run_settings
    from infra.recipes.files import recipe_path
    from infra.recipes.resume.bi_encoders import adapt_to_texts, dense_search, first_retriever, open_encoder
    from infra.recipes.resume.texts import texts_without_policy
    from infra.recipes.resume.writing import policy_texts
    from search_env.catalogue.corpora import load_queries, write_run

    if (texts == "policy") != (run_name is not None):
        raise click.UsageError("--run belongs to --texts policy: give both, or neither")
    made_on = retriever_of or index
    if tune and made_on != index:
        raise click.UsageError(f"--tune adapts retrievers of --index {index}, not of --retriever-of {retriever_of}")
    asked = [(load_queries(queries), Path(out)) for queries, out in pairs]
    app = app.with_recipe(recipe_path(recipe))
    with progress() as report, app.running_services(report) as running:
        if run_name is not None:
            kept = read_run_settings(running.home.run(run_name))
            running = running.with_settings(kept.settings)
            embedded = policy_texts(running, kept, policy=policy, report=report)
        else:
            embedded = texts_without_policy(running, index, texts, seed=seed)
        name = retriever or first_retriever(running, made_on).name
        if tune:
            tuned = running.with_changes("--tune", {"retriever": {"steps": tune}})
            name = adapt_to_texts(tuned, index, parent=name, texts=embedded, held_out=[], turn=1, seed=seed).name
        for queries, out in asked:
            rankings = dense_search(
                running,
                open_encoder(running, made_on, name),
                embedded,
                queries,
                index=index,
                alias=f"{index}-dense-{texts}",
                top=top,
                settings=running.settings.vectors,
            )
            write_run(out, rankings, tag=f"{texts}-{name}")
    click.echo(f"retriever {name}; {', '.join(str(out) for _, out in asked)}")
