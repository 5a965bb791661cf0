"""What LESER's reward by a relevance model says, beside the true gain: texts of a run, searched again.

    python tests/benchmarks/click_reward.py --home HOME --index icecat --run leser-clicks-icecat-clicks-corrected-0 \\
        --version clicks-pbm --version clicks-none

The index has judgments of its training queries (its intents); they are the truth that no model of clicks knows. For
each version of the relevance model ("": the newest) and each bound on the relevance that counts, as a multiple of the
median of all lists (0: all counts), the table has

- the correlation of a text's advantage by r_rel with that by the true gain (nDCG@10 + R@100, over the raw query);
- what a text that changes anything gains, by r_rel, against the texts of its group that change nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from infra.app.app import App
from infra.app.home import Home
from infra.recipes.files import recipe_path
from infra.recipes.leser.relevance import open_relevance
from search_env.catalogue.corpora import Ranking
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.index import load_documents
from search_env.engine.opening import open_searcher
from search_env.engine.searching import ExpandedQuery
from search_env.leser.reward import LeserSettings, SetMeasurements, leser_reward
from search_env.queries.intents import load_intents
from storage.evaluation.measures import measure_run
from storage.log import open_log
from tests.drift.arms import silent

DEPTH = 100
MEASURES = ("nDCG@10", "R@100")
BOUNDS = (0.0, 1.5, 2.0, 3.0)
GROUPS = """
SELECT r.group_id, r.query_id, r.query, list(o.expansions ORDER BY o.candidate) AS texts
FROM first_rewards r JOIN outcomes o USING (topic, partition, record_offset)
WHERE o.status = 'scored' AND o.valid AND r.step < ? GROUP BY ALL HAVING count(*) > 1 ORDER BY r.group_id LIMIT ?
"""


class Searched(NamedTuple):
    """One group. raw, texts: its rankings to depth 100. gains: [C] true gains over raw."""

    query: str
    raw: Ranking
    texts: Sequence[Ranking]
    gains: np.ndarray[tuple[int], np.dtype[np.float64]]

    def ids(self) -> list[str]:
        """Return every document of these rankings."""
        return list(dict.fromkeys(name for each in (self.raw, *self.texts) for name in each.ids))


def gains_of(raw: Ranking, texts: Sequence[Ranking], grades: dict[str, int]) -> list[float]:
    """Return the true gain of each ranking over the raw one."""
    runs = {f"{at}": dict(zip(each.ids, each.scores, strict=True)) for at, each in enumerate((raw, *texts))}
    found = measure_run(runs, dict.fromkeys(runs, grades), list(MEASURES))
    worth = [sum(found[measure][name] for measure in MEASURES) for name in runs]
    return [each - worth[0] for each in worth[1:]]


def row(groups: Sequence[Searched], scores: Sequence[dict[str, float]], least: float) -> tuple[float, float, float]:
    """Return the correlation of advantages, and what changing anything gains, by the reward and in truth."""
    settings = LeserSettings(relevance_min=min(least, 1.0))
    rewards, gains, changes = [], [], []
    for group, of in zip(groups, scores, strict=True):
        raw = [of[name] for name in group.raw.ids]
        parts = [
            leser_reward(SetMeasurements(raw, [of[name] for name in each.ids], len(raw), len(each.ids), 0), settings)[1]
            for each in group.texts
        ]
        reward = np.array([each["relevance"] for each in parts])
        changed = np.array([float(each.ids != group.raw.ids) for each in group.texts])
        for into, values in ((rewards, reward), (gains, group.gains), (changes, changed)):
            into.append(values - values.mean())
    by_reward, by_truth, change = map(np.concatenate, (rewards, gains, changes))
    return (
        float(np.corrcoef(by_reward, by_truth)[0, 1]),
        float(by_reward @ change / (change @ change)),
        float(by_truth @ change / (change @ change)),
    )


def main() -> None:
    """Search the run's texts again, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--index", default="icecat")
    parser.add_argument("--run")
    parser.add_argument("--version", action="append", help="Version or label of the relevance model; may be repeated")
    parser.add_argument("--groups", type=int, default=250)
    parser.add_argument("--steps", type=int, default=8, help="Texts of versions before this step")
    given = parser.parse_args()
    if given.home is None or given.run is None:
        print("left out: it needs a home and a run of its own (--home, --run); see --help")
        return
    app = App(Home(given.home)).with_recipe(recipe_path("leser"))
    folder = app.home.index(given.index)
    qrels = load_intents(folder.intents, "train")[1]
    with open_log(app.home.existing_run(given.run)) as log:
        rows = [each for each in log.rows(GROUPS, [given.steps, given.groups]) if qrels.get(each["query_id"])]
    catalogue = Catalogue(load_documents(folder))
    groups = []
    with (
        app.running_services(silent) as running,
        contextlib.closing(running.engine()) as client,
        contextlib.closing(open_searcher(client, folder, running.settings.retrieval)) as searcher,
    ):
        for each in rows:
            asked = [ExpandedQuery(each["query"], tuple(words)) for words in ([], *each["texts"])]
            raw, *texts = searcher.search_many(asked, size=DEPTH)
            gains = np.array(gains_of(raw, texts, dict(qrels[each["query_id"]])))
            groups.append(Searched(each["query"], raw, texts, gains))
        print(f"{len(groups)} groups\n")
        print("| relevance model | counts from | correlation of advantages | changing anything gains | in truth |")
        print("|---|---|---|---|---|")
        for version in given.version or [""]:
            change = {"relevance": {"version": version, "gate": "off"}}
            settings = running.with_changes("click_reward", change).settings
            model = open_relevance(folder, settings, catalogue=catalogue, report=silent)
            ids = [each.ids() for each in groups]
            scored = model.score_many([(each.query, names) for each, names in zip(groups, ids, strict=True)])
            scores = [dict(zip(names, of.tolist(), strict=True)) for names, of in zip(ids, scored, strict=True)]
            median = float(np.median([value for of in scores for value in of.values()]))
            for times in BOUNDS:
                found = row(groups, scores, times * median)
                print(
                    f"| {version or 'newest'} | {times:g} × {median:.4f} | "
                    + " | ".join(f"{x:+.3f}" for x in found)
                    + " |"
                )
                figures = dict(zip(("correlation", "gain", "true_gain"), found, strict=True))
                print(
                    json.dumps({"benchmark": "click_reward", "version": version, "times": times, **figures}),
                    file=sys.stderr,
                )


if __name__ == "__main__":
    main()
