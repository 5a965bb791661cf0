"""The command `searchloop`: its global options, its group of verbs, and its one-line errors."""

from __future__ import annotations

if __name__ == "__main__":  # `python -m infra.cli`, as `infra.__main__` does for the installed command.
    from infra.app.beginning import end_at_once_on_signals

    end_at_once_on_signals()

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
from infra.app.interrupts import end_on_signals, exit_status, leave, received
from infra.app.libraries import set_library_variables
from streams.errors import SearchloopError, explain_os_error
from streams.secrets import redact

log = logging.getLogger(__name__)

# Service by the package of an error. Such an error is about the service more often than about this code.
SERVICES = {"kafka": "Kafka", "elastic_transport": "Elasticsearch", "elasticsearch": "Elasticsearch"}

# The verbs by heading, in the order of a first day's work: each verb's module and its line in --help. A verb's module
# is imported only when the verb is used.
GROUPS = {
    "Start": {
        "demo": ("demo", "Run the whole loop, from nothing to a report."),
        "up": ("services", "Start Kafka and Elasticsearch."),
        "down": ("services", "Stop Kafka, Elasticsearch and vLLM."),
        "status": ("services", "Show every process with pid, port and health."),
        "doctor": ("services", "Report what is missing and how to fix it, or a run's rights on Kafka."),
    },
    "Prepare": {
        "index": ("search", "Load a corpus and generate training queries from it."),
        "attach": ("attach", "Attach an index that you have, with your own search."),
        "relevance": ("relevance", "Train and check the relevance model that computes the rewards."),
        "premise": ("measure", "Check whether a recipe's reward leads to better search, before any training."),
    },
    "Learn": {
        "train": ("train", "Train a policy on the search engine's answers."),
        "alternate": ("alternate", "Train a summarizer and the reader of its summaries in turns."),
        "loop": ("loop", "Run the whole loop in one process, without Kafka, for debugging."),
        "run": ("train", "Run one worker, to scale out."),
    },
    "Use": {
        "search": ("search", "Search queries, raw or expanded, by words or vectors."),
        "expand": ("search", "Show the expansions that a policy version writes for queries."),
        "summarize": ("measure", "Write and store the summary of every product."),
    },
    "Serve and listen": {
        "serve": ("serve", "Serve search results over HTTP, and take events."),
        "listen": ("listen", "Join what people saw with what they did, and store both."),
        "simulate": ("simulate", "Let simulated people search on a server and click."),
        "promote": ("promote", "Bring a version to people step by step, and back if it harms."),
        "compare": ("compare", "Compare versions by what people did, from the log alone."),
    },
    "Measure": {
        "evaluate": ("evaluate", "Evaluate run files against judgments, with intervals."),
        "measure": ("measure", "Measure policy versions on their recipe's held-out sets."),
        "experiment": ("experiment", "Run all arms and seeds of a paper's table, with intervals and plots."),
        "bench": ("bench", "Measure our speed beside a peer's, both sides in turn."),
    },
    "Watch and prove": {
        "ui": ("ui", "Show every run in a browser, and the results behind each number."),
        "watch": ("watch", "Show the progress of a run."),
        "alerts": ("alerts", "Show which alert rules fire, silence one, and test rules on a log."),
        "report": ("report", "Report on a run from its log, or on a version's events."),
        "verify": ("ledger", "Verify that no record was lost and none counted twice."),
        "replay": ("replay", "Replay a recorded window: copy, reproduce, rescore, or use as load."),
        "dead-letters": ("dead_letters", "Read dead letters and resend them."),
        "rebuild": ("report", "Rebuild a run's DuckDB file from its archive."),
    },
}
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}
OLD_NAMES = ("dense", "score", "acls", "lineage", "prefer", "what-changed")  # Hidden verbs of one more release.


class Verbs(click.Group):
    """A group that imports a verb when the verb is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the verbs in the order of their headings."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a verb, also by its old name, or None if no verb has this name."""
        if name not in VERBS and name not in OLD_NAMES:
            return None
        module = VERBS[name][0] if name in VERBS else "old_names"
        command = getattr(importlib.import_module(f"infra.commands.{module}"), name.replace("-", "_"))
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
    help="Directory of all state.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="SEARCHLOOP_CONFIG",
    help="TOML file with settings; SEARCHLOOP_TABLE__KEY variables override it. `python -m infra.app.reference` "
    "describes every setting.",
)
@click.option("--verbose", is_flag=True, help="Write a log with times to standard error.")
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
    from services.private_variables import take_private

    private = take_private(os.environ)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        handlers=[to_stderr],
    )
    for name in ("kafka", "elastic_transport"):  # They warn of every retry; our own error reports the result.
        logging.getLogger(name).setLevel(logging.WARNING if verbose else logging.ERROR)
    context.obj = App(Home(home.absolute()), config=config, private=private)


class RedactingFormatter(logging.Formatter):
    """A formatter that removes this process's secrets from log lines, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without secrets."""
        return redact(super().format(record))


def main() -> None:
    """Run the command; an error that the user can fix becomes one line and exit status 1.

    Ctrl-C and SIGTERM end it within seconds, with one line and the status 130 or 143.
    """
    sys.excepthook = _show_without_secrets
    if "--supervised" not in sys.argv:  # A worker's supervisor gives it more time, and ends it.
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
        return error.exit_status
    except BrokenPipeError:  # The reader of our output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        log.info("the operating system refused", exc_info=True)
        click.echo(f"error: {explain_os_error(error)}", err=True)
        return 1
    except Exception as error:  # The last resort: code that reads files or calls services raises clearer errors.
        if received():  # A library that was being imported has made another error of the interrupt.
            log.info("stopped by a signal", exc_info=True)
            click.echo("stopped", err=True)
            return exit_status()
        click.echo(f"error: {_explain_unexpected(error)}", err=True)
        return 1
    return 0


def _explain_unexpected(error: Exception) -> str:
    """Return one line for an uncaught error: the error, the remedy, and the file of its traceback."""
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
    """Print an uncaught error, a bug of ours, without the secrets that its message may contain."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


if __name__ == "__main__":
    main()
