"""An experiment's table in Markdown, and the pages of recipes that show it.

    python -m infra.experiments.markdown HOME/experiments/leser-icecat/results.json --recipe leser

keeps the results as `infra/recipes/leser/results/leser-icecat.json` and writes their table into the recipe's page that
has two comments with its name, between these. Without a file it writes the tables of all kept results again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import msgspec

from infra.experiments.tables import ArmRow, Results
from storage.evaluation.comparison import Interval
from storage.evaluation.measures import JUDGED_ONLY
from storage.evaluation.tables import RETRIEVAL_GAIN
from streams.errors import SettingsError
from streams.whole_file import write_file

RECIPES = Path(__file__).parents[1] / "recipes"
SHOWN_MEASURES = 3


def markdown_table(results: Results) -> str:
    """Return one row for each arm: its measures on each set, and its difference to the baseline in the first measure.

    The intervals are those of the results: 95 %, paired by query. A set with unjudged documents has its difference in
    judged-nDCG@k, too, and a line under the table that says which measure to believe.
    """
    shown = [measure for measure in results.measures if measure != RETRIEVAL_GAIN][:SHOWN_MEASURES]
    names = [f"{each.name} ({each.queries:,})" for each in results.sets]
    compared = [
        (place, measure)
        for place, each in enumerate(results.sets)
        for measure in (shown[0], *(name for name in each.added if name.startswith(JUDGED_ONLY)))
    ]
    over = [f"{measure} over {results.baseline}: {results.sets[place].name}" for place, measure in compared]
    heads = ["arm (seeds)", *names, *over]
    rows = [heads, ["---"] * len(heads)]
    for place, first in enumerate(results.sets[0].arms):
        arms = [each.arms[place] for each in results.sets]
        seeds = f" ({', '.join(map(str, first.seeds))})" if len(first.seeds) > 1 else ""
        rows.append(
            [
                f"{first.name}{seeds}",
                *(_reached(arm, shown) for arm in arms),
                *(_gained(arms[of], measure) for of, measure in compared),
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    believed = [f"{each.name}: {each.believed.line}." for each in results.sets if each.believed and each.believed.line]
    if believed:
        lines += ["", "  \n".join(believed)]
    return "\n".join([f"{' / '.join(shown)} on index {results.index}; {results.samples:,} draws.", "", *lines]) + "\n"


def with_table(page: str, name: str, table: str) -> str:
    """Return a page with this table between its two comments. Raises SettingsError if the page has no such place."""
    begin, end = _begin(name), f"<!-- end of {name} -->"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not found.search(page):
        raise SettingsError(f"expected {begin.strip()!r} and {end!r} in the page, found neither; add both lines")
    return found.sub(lambda _: f"{begin}{table}{end}", page)


def kept_results(recipe: Path) -> dict[str, Results]:
    """Return the results that a recipe's folder keeps, by the experiment's name."""
    return {
        file.stem: msgspec.json.decode(file.read_bytes(), type=Results)
        for file in sorted((recipe / "results").glob("*.json"))
    }


def keep_results(source: Path, recipe: Path) -> None:
    """Keep an experiment's results in a recipe's folder, without curves, and without commands that name local files."""
    results = msgspec.json.decode(source.read_bytes(), type=Results)
    results = msgspec.structs.replace(results, curves={}, commands=())
    (recipe / "results").mkdir(exist_ok=True)
    kept = recipe / "results" / f"{source.parent.name}.json"
    write_file(kept, msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def pages_of(recipe: Path) -> dict[Path, str]:
    """Return a recipe's pages with the tables of all its kept results.

    Raises SettingsError if no page has a place for a table.
    """
    pages = {path: path.read_text() for path in sorted(recipe.glob("*.md"))}
    for name, results in kept_results(recipe).items():
        place = next((path for path in pages if _begin(name) in pages[path]), recipe / "README.md")
        pages[place] = with_table(pages[place], name, markdown_table(results))
    return pages


def _begin(name: str) -> str:
    return f"<!-- {name}: this table is generated -->\n"


def _reached(arm: ArmRow, measures: list[str]) -> str:
    return " / ".join(number(arm.measures[measure].value) for measure in measures)


def _gained(arm: ArmRow, measure: str) -> str:
    if measure not in arm.differences:
        return ""
    found: Interval = arm.differences[measure].interval
    return f"{number(found.value, sign=True)} [{number(found.low, sign=True)}, {number(found.high, sign=True)}]"


def number(value: float | None, *, sign: bool = False) -> str:
    """Return a number with three decimals, as tables print it: no zero before the point, a true minus."""
    if value is None:
        return "–"
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", "−")


def main() -> None:
    """Keep results if a file is named, and write the tables of every recipe's page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, help="results.json of an experiment; it is kept")
    parser.add_argument("--recipe", help="the recipe whose page shows them")
    options = parser.parse_args()
    if (options.results is None) != (options.recipe is None):
        parser.error("a results file and --recipe belong together: give both, or neither")
    if options.results is not None:
        keep_results(options.results, RECIPES / options.recipe)
    for recipe in sorted(path.parent for path in RECIPES.glob("*/README.md")):
        for path, page in pages_of(recipe).items():
            write_file(path, page.encode())


if __name__ == "__main__":
    main()
