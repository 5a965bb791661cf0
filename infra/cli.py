"""The command `searchloop`: global options, one group of verbs, one line for every error."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

import click

from infra.app.home import DEFAULT_HOME, Home
from infra.app.interrupts import end_on_signals, exit_status, leave
from infra.app.libraries import set_library_variables
from streams.errors import SearchloopError, explain_os_error
from streams.secrets import redact

log = logging.getLogger(__name__)

# By the package of an error: whose it is. Such a one is about a service more often than about us.
SERVICES = {"kafka": "Kafka", "elastic_transport": "Elasticsearch", "elasticsearch": "Elasticsearch"}

# By heading, in the order of a first day's work: where each verb lives, and what --help says of it. A verb's module is
# imported only when the verb is used.
GROUPS = {
    "Start": {
        "demo": ("demo", "Run the whole loop, from nothing to a report."),
        "up": ("services", "Start Kafka and Elasticsearch."),
        "down": ("services", "Stop them."),
        "status": ("services", "Show every process with pid, port and health."),
        "doctor": ("services", "Say what is there, what is missing, and what to do."),
        "acls": ("acls", "Print the rights that a run's roles need on a Kafka of one's own."),
    },
    "Prepare": {
        "index": ("search", "Load a corpus, and make training queries from it."),
        "relevance": ("train", "Train the relevance model that rewards are made of."),
        "premise": ("measure", "Check whether a recipe's reward leads to better search, before any training."),
    },
    "Learn": {
        "train": ("train", "Teach a policy from the search engine's answers."),
        "alternate": ("alternate", "Let a summarizer and what reads its summaries learn from each other in turn."),
        "prefer": ("measure", "Teach a run's first policy by DPO on its logged groups."),
        "loop": ("loop", "Run the whole loop in one process, without Kafka, to read and to debug."),
        "run": ("train", "Run one worker, for scale-out."),
    },
    "Use": {
        "search": ("search", "Search queries, raw or helped, into a TREC run file."),
        "dense": ("dense", "Search by dense vectors of documents or summaries, into a TREC run file."),
        "expand": ("search", "Show what a policy version writes for queries."),
        "summarize": ("measure", "Write and store the summary of every product."),
    },
    "Measure": {
        "evaluate": ("evaluate", "Measure run files against judgments, with intervals."),
        "score": ("score", "Score run files' documents with the relevance model, for the relevance gain."),
        "measure": ("measure", "Measure policy versions on their recipe's held-out sets."),
        "experiment": ("experiment", "Run a paper's whole table: arms by seeds, with intervals and plots."),
    },
    "Watch and prove": {
        "watch": ("watch", "Show a run while it learns."),
        "report": ("report", "Tell a run's story from its log."),
        "verify": ("ledger", "Prove that nothing was lost and nothing counted twice."),
        "lineage": ("ledger", "Show which events made a version, or which versions an event taught."),
        "replay": ("replay", "Use a recorded window again: copied, reproduced, scored anew, or as load."),
        "dead-letters": ("dead_letters", "Read what was given up, and send it again."),
        "rebuild": ("report", "Build a run's DuckDB file anew from its archive."),
    },
}
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}


class Verbs(click.Group):
    """A group whose verbs are imported when they are used."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the verbs in the order of their headings."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a verb, or None if there is none of that name."""
        if name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"infra.commands.{VERBS[name][0]}"), name.replace("-", "_"))
        return command if isinstance(command, click.Command) else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs and their one-line help under headings, without importing any."""
        width = max(map(len, VERBS))
        for heading, verbs in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in verbs.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_HOME,
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
    set_library_variables()
    from infra.app.app import App
    from infra.services.private_variables import take_private

    private = take_private(os.environ)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        handlers=[to_stderr],
    )
    for name in ("kafka", "elastic_transport"):  # They warn of every retry; what comes of it is told by our own error.
        logging.getLogger(name).setLevel(logging.WARNING if verbose else logging.ERROR)
    context.obj = App(Home(home.absolute()), config=config, private=private)


class RedactingFormatter(logging.Formatter):
    """Lines, tracebacks included, without the secrets of this process."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line as it may be kept."""
        return redact(super().format(record))


def main() -> None:
    """Run the command; an error that a person can mend is one line and exit status 1.

    Ctrl-C and SIGTERM end it within seconds, with one line and the status 130 or 143.
    """
    sys.excepthook = _show_without_secrets
    if "--supervised" not in sys.argv:  # Whoever supervises a worker has more patience with it, and ends it.
        end_on_signals()
    leave(_status())


def _status() -> int:
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return exit_status()
    except SearchloopError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except BrokenPipeError:  # Whoever read our output, as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        log.info("the operating system refused", exc_info=True)
        click.echo(f"error: {explain_os_error(error)}", err=True)
        return 1
    except Exception as error:  # The last net: what reads files and talks to services says more, and says it itself.
        click.echo(f"error: {_explain_unexpected(error)}", err=True)
        return 1
    return 0


def _explain_unexpected(error: Exception) -> str:
    """Return in one line what nobody caught, what to do, and where its trace is."""
    service = SERVICES.get(type(error).__module__.partition(".")[0])
    said = str(SearchloopError(f"{service + ': ' if service else ''}{type(error).__name__}: {error}"))
    said = redact(said)[:500]
    remedy = "Look with: searchloop status" if service else "Nobody expected this: please report it"
    try:
        handle, name = tempfile.mkstemp(prefix="searchloop-error-", suffix=".log")
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            file.write(redact("".join(traceback.format_exception(error))))
    except OSError:
        return f"{said}. {remedy}"
    return f"{said}. {remedy}; the trace is in {name}"


def _show_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what nobody has caught, an error of ours in the code, without the secrets that it may repeat."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


if __name__ == "__main__":
    main()
