"""The command `searchloop`: global options, one group of verbs, one line for every error."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from infra.commands.evaluate import evaluate
from infra.commands.report import report
from infra.commands.search import expand, index, search
from infra.commands.services import doctor, down, status, up
from infra.commands.train import demo, relevance, run, train
from infra.config import load_settings
from infra.context import App
from infra.home import Home
from streams.errors import SearchloopError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".searchloop"),
    envvar="SEARCHLOOP_HOME",
    show_default=True,
    help="Where all state lives.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="SEARCHLOOP_CONFIG",
    help="A TOML file with settings; SEARCHLOOP_TABLE__KEY variables win over it.",
)
@click.option("--verbose", is_flag=True, help="Log what happens, with times, to standard error.")
@click.version_option(package_name="searchloop")
@click.pass_context
def cli(context: click.Context, home: Path, config: Path | None, verbose: bool) -> None:
    """Let a search engine teach the language model that helps it.

    \b
    Example:
      searchloop up
      searchloop index catalogue.jsonl.gz --name shop
      searchloop train --recipe leser --index shop
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("kafka").setLevel(logging.ERROR if not verbose else logging.WARNING)
    context.obj = App(home=Home(home.absolute()), settings=load_settings(config, os.environ), config=config)


for verb in (up, down, status, doctor, index, train, run, relevance, expand, search, evaluate, report, demo):
    cli.add_command(verb)


def main() -> None:
    """Run the command; an error that a person can mend is one line and exit status 1, Ctrl-C is 130."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)
    except SearchloopError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
