"""The entry point of `searchloop`: it hears Ctrl-C during the imports, which take a second, and runs the command."""

from __future__ import annotations

from infra.app.beginning import end_at_once_on_signals


def main() -> None:
    """Run the command; a signal during its imports ends it with one line and the status 130 or 143."""
    end_at_once_on_signals()
    from infra.cli import main as run

    run()


if __name__ == "__main__":
    main()
