"""One name for each thing: the words that the glossary rules out are gone from code, help and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("streams", "learner", "search_env", "storage", "services", "infra")
# Words that no other meaning needs. Left: what is said now. `infra/app/renamed.py` still takes the old names.
RULED_OUT = {
    "key counts": r"key[- ]prior|log-counts|log key counts|\bby_log\b|most asked for",
    "key rates": r"log-rates|log key rates",
    "lead": r"first[- ]tokens of (a|the) description|\"first-tokens\"",
    "adapt": r"(?<!instruction-)(?<!--)\btun(e|ed|es|ing)\b",
    "summarize": r"summaris",
    "leser, relsum, resume": r"summary_environment|task ==|\[environment\]",
    "Searcher": r"\bRetriever\(client",
    "nDCG": r"NDCG",
}
OLD_NAMES_STAND_HERE = {"infra/app/renamed.py", "infra/app/home.py"}  # The second: a folder of homes made before.
HISTORY = {"CHANGELOG.md", "infra/LOG.md"}  # They tell what was called how.
GLOSSARY = "ARCHITECTURE.md"
FILES = [
    path
    for path in [*ROOT.glob("*.md"), *(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*")))]
    if path.suffix in (".py", ".md", ".toml", ".sql")
    and str(path.relative_to(ROOT)) not in OLD_NAMES_STAND_HERE | HISTORY | {GLOSSARY}
]


@pytest.mark.parametrize("word", RULED_OUT)
def test_a_ruled_out_word_stands_nowhere(word: str) -> None:
    ruled_out = re.compile(RULED_OUT[word])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if ruled_out.search(line)
    ]
    assert found == [], f"say {word!r}"


def test_a_public_class_has_its_name_alone() -> None:
    places: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in re.findall(r"^class ([A-Z]\w+)", path.read_text(), re.MULTILINE):
                places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
