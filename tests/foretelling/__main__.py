"""`python -m tests.foretelling`: measure parts of the evidence, keep their results, and write the page's tables."""

from __future__ import annotations

import argparse
import importlib
import time

from tests.foretelling.evidence import PAGE, keep, with_tables

PARTS = ("published", "coverage", "winners", "clicks", "versions", "canary")


def main() -> None:
    """Measure the named parts, or all."""
    parser = argparse.ArgumentParser(description="Measure evidence about offline evaluation.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="Parts. Default: all.")
    parser.add_argument("--page", action="store_true", help="Write the page's tables, measure nothing.")
    options = parser.parse_args()
    for name in () if options.page else options.parts or PARTS:
        began = time.time()
        found = importlib.import_module(f"tests.foretelling.{name}").measure()
        keep(found)
        print(f"{found.markdown}\n{name}: {time.time() - began:.0f} s", flush=True)
    if PAGE.exists():
        PAGE.write_text(with_tables(PAGE.read_text()))


if __name__ == "__main__":
    main()
