"""A catalogue in mapped files gives the numbers of a catalogue in memory, to the bit."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from search_env.catalogue import kept
from search_env.catalogue.corpora import Document
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.kept import FIELDS, KeptCatalogue, keep_catalogue
from search_env.catalogue.kept_rows import MANIFEST, KeptError
from search_env.catalogue.seen_ids import SeenIds
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.features import FeatureMaker
from search_env.queries.facets import BRAND, Facets
from streams.whole_file import whole_folder
from tests.commands import ROOT
from tests.small_disk import on_small_disk

MATRIX = "data indices indptr shape"
ODD = [
    Document(id="empty", title="", text=""),
    Document(
        id="ü€",
        title="Zoë bags bags bag",
        text="the the <script>",
        metadata={"attributes": {"ink colour": ["Red", "blue", "Red"], "cores": 4, "weight": "2 kg"}, "brand": "Zoë"},
    ),
]


def documents() -> list[Document]:
    made = list(demo_catalogue(DemoSettings(products=400)))
    return [*made[:7], ODD[0], *made[7:], ODD[1]]


@pytest.fixture(params=[40, 1 << 20], ids=["in pieces", "in one piece"])
def both(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Catalogue, Catalogue]:
    monkeypatch.setattr(kept, "PIECE_ENTRIES", request.param)
    folder = tmp_path / "kept"
    folder.mkdir()
    keep_catalogue(iter(documents()), folder, sha256="of the corpus")
    whole = Catalogue(documents())
    whole.settle()
    return whole, KeptCatalogue(folder)


def different(one: Any, other: Any, names: str) -> list[str]:
    pairs = {name: (np.asarray(getattr(one, name)), np.asarray(getattr(other, name))) for name in names.split()}
    return [name for name, (left, right) in pairs.items() if not np.array_equal(left, right)]


def test_every_matrix_is_equal_to_the_bit(both: tuple[Catalogue, Catalogue]) -> None:
    whole, mapped = both
    for name in FIELDS:
        one, other = getattr(whole, name), getattr(mapped, name)
        weights = "row_weights lengths log_lengths idf totals frequencies nonempty length_mean"
        assert different(one, other, weights) == [], name
        for matrix in ("counts", "bm25"):
            assert different(getattr(one, matrix), getattr(other, matrix), MATRIX) == [], (name, matrix)
    assert different(whole.document_values, mapped.document_values, MATRIX) == []
    assert different(whole.value_documents, mapped.value_documents, MATRIX) == []


def test_words_values_and_documents_are_equal(both: tuple[Catalogue, Catalogue]) -> None:
    whole, mapped = both
    assert list(mapped.documents) == whole.documents == documents() and mapped.documents[-1] == ODD[1]
    assert mapped.documents[5:9] == whole.documents[5:9]
    assert mapped.vocabulary.terms == whole.vocabulary.terms
    for name in ("surface_forms", "value_phrases", "value_terms", "values_by_term", "value_numbers"):
        assert getattr(mapped, name) == getattr(whole, name), name
    assert list(mapped.ids) == list(whole.ids) and dict(mapped.row_of) == dict(whole.row_of)
    assert "nobody" not in mapped.row_of and 7 not in mapped.row_of and "ü€" in mapped.row_of


def test_features_are_equal_to_the_bit(both: tuple[Catalogue, Catalogue]) -> None:
    rows = np.arange(0, 402, 3)
    one, other = map(FeatureMaker, both)
    for query in ("black hiking waterproof shoes", "aldor bags", "ink colour red", "nothing of this"):
        assert np.array_equal(one.features(query, rows), other.features(query, rows)), query


def test_a_damaged_file_is_found_when_the_catalogue_is_opened(tmp_path: Path) -> None:
    keep_catalogue(iter(documents()), tmp_path, sha256="of the corpus")
    place = tmp_path / "title.weights"
    content = bytearray(place.read_bytes())
    content[100] ^= 1
    place.write_bytes(content)
    with pytest.raises(KeptError, match=r"title\.weights: expected sha256"):
        KeptCatalogue(tmp_path)
    place.unlink()
    with pytest.raises(KeptError, match=r"title\.weights: expected a file"):
        KeptCatalogue(tmp_path)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode({"format": 0}))
    with pytest.raises(KeptError, match="expected a kept catalogue of format"):
        KeptCatalogue(tmp_path)


def test_an_open_catalogue_stays_what_it_was_when_another_one_takes_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    with whole_folder(folder) as aside:
        keep_catalogue(iter(documents()), aside, sha256="of the corpus")
    opened = KeptCatalogue(folder)
    with whole_folder(folder, replace=True) as aside:
        keep_catalogue(reversed(documents()), aside, sha256="of the next one")
    whole = Catalogue(documents())
    whole.settle()
    for name in FIELDS:
        assert different(getattr(whole, name).counts, getattr(opened, name).counts, MATRIX) == [], name
    assert different(whole.document_values, opened.document_values, MATRIX) == []
    assert (opened.surface_forms, opened.value_phrases) == (whole.surface_forms, whole.value_phrases)


def test_a_manifest_of_more_values_than_its_file_has_is_refused(tmp_path: Path) -> None:
    keep_catalogue(iter(documents()), tmp_path, sha256="of the corpus")
    content = (tmp_path / MANIFEST).read_bytes()
    count = msgspec.json.decode(content)["arrays"]["title.weights"]["count"]
    (tmp_path / MANIFEST).write_bytes(content.replace(f'"count": {count}'.encode(), f'"count": {count * 9}'.encode()))
    with pytest.raises(KeptError, match=rf"expected {count * 9} values"):
        KeptCatalogue(tmp_path)


FILL = """
import sys
from pathlib import Path
from search_env.catalogue.kept_rows import ArrayWriter

try:
    ArrayWriter(Path(sys.argv[1])).room("data", 1 << 20, "<f4")[:] = 1
except OSError as error:
    print(f"refused: {error.strerror}")
"""


def test_a_full_disk_refuses_an_array_and_does_not_kill_who_makes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    ended = subprocess.run(on_small_disk(tmp_path, 1, command), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout[:9]) == (0, "refused: "), ended.stderr


def test_ids_with_one_hash_keep_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_env.catalogue.kept_rows.id_hash", lambda name: np.uint64(len(name)))
    monkeypatch.setattr("search_env.catalogue.kept_rows.KNOWN_MAX", 3)
    keep_catalogue(iter(documents()), tmp_path, sha256="of the corpus")
    row_of = KeptCatalogue(tmp_path).row_of
    assert [row_of[each.id] for each in documents()] == list(range(402))


def test_facets_are_those_of_sets() -> None:
    made = documents()
    facets = Facets(made)
    brands: dict[str, set[int]] = {}
    colours: dict[str, set[int]] = {}
    for row, document in enumerate(made):
        brands.setdefault(document.metadata.get("brand", ""), set()).add(row)
        attributes = document.metadata.get("attributes", {})
        if isinstance(attributes.get("colour"), str):
            colours.setdefault(attributes["colour"], set()).add(row)
    for brand, of_brand in brands.items():
        assert set(facets.rows((BRAND, brand)).tolist()) == of_brand
        for colour, of_colour in colours.items():
            pair = [("colour", colour), (BRAND, brand)]
            assert facets.having_all(pair, most=400) == sorted(of_brand & of_colour)
            if of_brand & of_colour:
                assert facets.having_all(pair, most=len(of_brand & of_colour) - 1) is None
    assert facets.count(("ink colour", "Red")) == 1, "a document that says a value twice counts once"


def test_seen_ids_give_the_line_of_the_first() -> None:
    draw, seen, lines = random.Random(1), SeenIds(), dict[str, int]()
    for line in range(1, 20_001):
        name = f"p{draw.randrange(15_000)}"
        assert seen.first_line(name, line) == lines.get(name)
        lines.setdefault(name, line)
    assert len(seen) == len(lines)
