"""A model of clicks alone: corrected beats uncorrected on planted positions, and one client cannot move it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from infra.app.home import Home
from infra.app.settings import Settings
from infra.recipes.leser.click_log import ClickedLog, of_some_clients
from infra.recipes.leser.people import People
from infra.recipes.leser.relevance import grow_relevance, pinned
from search_env.catalogue.corpora import Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.index import IndexVersion
from search_env.models.click_labels import click_labels
from search_env.models.clicked_lists import BiasModel, ClientBounds, ShownList, count_pairs
from search_env.models.features import FEATURES
from search_env.models.people_alone import UNWANTED_MEDIAN, train_on_people
from search_env.models.relevance import GbdtRelevance, GrownModel, RelevanceError
from search_env.models.relevance_files import load_gbdt
from search_env.models.relevance_sources import Block, QueryBlock, SourceSettings, is_alone
from search_env.models.relevance_versions import keep_newest, keep_version, version_folder
from search_env.models.training_pairs import GbdtSettings, PairMaker
from streams.errors import SettingsError
from tests.loop.conftest import quiet

THETA = 1 / np.arange(1, 11)
ALONE = SourceSettings(structured=0, titles=0, judgments=0, folds=3, click_negatives=5)
SMALL = GbdtSettings(trees=20, leaves=7)
WORDS = [f"word{n}" for n in range(60)]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """Give products whose title has one word and whose text has another one."""
    return Catalogue(
        [Document(id=f"d{n}", title=WORDS[n % 60], text=WORDS[(n * 7 + n // 60) % 60]) for n in range(600)]
    )


def searches(count: int, *, client: str = "", seed: int = 0) -> list[ShownList]:
    """Simulated searches for one word: a title with the word is relevant, a text with it is not, and texts stand first.

    One list in ten is shown in a random order, so that positions can be told.
    """
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        word = number % 40  # Nobody asks the last 20 words.
        titles = [f"d{n}" for n in range(600) if n % 60 == word][:5]
        texts = [f"d{n}" for n in range(600) if (n * 7 + n // 60) % 60 == word and n % 60 != word][:5]
        shown = [*texts, *titles]
        if random.random() < 0.1:
            shown = [shown[place] for place in random.permutation(len(shown))]
        attraction = np.array([0.9 if name in titles else 0.3 for name in shown])
        clicked = random.random(len(shown)) < THETA[: len(shown)] * attraction
        ranked = [(name, rank) for rank, name in enumerate(shown, start=1)]
        names = frozenset(name for name, is_clicked in zip(shown, clicked, strict=True) if is_clicked)
        found.append(ShownList(WORDS[word], ranked, names, client or f"client-{number}"))
    return found


def grown(catalogue: Catalogue, lists: list[ShownList], sources: SourceSettings, folder: Path) -> GrownModel:
    home = Home(folder)
    place = home.index("shop")
    place.mkdir(parents=True, exist_ok=True)
    manifest = IndexVersion(name="shop-1", alias="shop", documents=len(catalogue), sha256="c" * 64)
    (place / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    settings = Settings(gbdt=SMALL)
    settings = msgspec.structs.replace(settings, relevance=msgspec.structs.replace(settings.relevance, sources=sources))
    log = ClickedLog("live", lists, {"live.impression-outcomes/0": (0, len(lists))}, 0)
    return grow_relevance(place, settings, catalogue, people=People(log=log), report=quiet)[0]


def gap(catalogue: Catalogue, model: GrownModel) -> float:
    """Return by how much the model prefers titles to texts, for words that nobody asked."""
    relevance = GbdtRelevance(catalogue, model)
    gaps = []
    for word in range(40, 60):
        titles = [f"d{n}" for n in range(600) if n % 60 == word][:5]
        texts = [f"d{n}" for n in range(600) if (n * 7 + n // 60) % 60 == word and n % 60 != word][:5]
        scores = relevance.score(WORDS[word], [*titles, *texts])
        gaps.append(scores[:5].mean() - scores[5:].mean())
    return float(np.mean(gaps))


def test_a_correction_finds_what_positions_hide_and_counts_alone_do_not(catalogue: Catalogue, tmp_path: Path) -> None:
    lists = searches(4_000)

    def fitted(model: BiasModel) -> float:
        sources = msgspec.structs.replace(ALONE, click_model=model)
        return gap(catalogue, grown(catalogue, lists, sources, tmp_path))

    gaps = {model: fitted(model) for model in ("none", "pbm")}
    assert gaps["pbm"] > gaps["none"] + 0.1
    assert gaps["pbm"] > 0.1


@pytest.mark.parametrize("model", ["pbm", "ubm"])
def test_examination_is_found_again_by_rank(model: BiasModel) -> None:
    found = click_labels(searches(20_000), exponent=0.0, model=model)
    assert found.estimated
    assert found.theta[:5] / found.theta[0] == pytest.approx(THETA[:5], rel=0.25)


def test_cells_are_worked_out_by_hand() -> None:
    lists = [ShownList("q", [("a", 1), ("b", 2), ("c", 3), ("d", 4)], frozenset({"b"}), "x")]
    # UBM: rank (from 0) times 50, and the distance to the last click above; b is clicked, so c and d count from it.
    assert count_pairs(lists, "ubm").shown.indices.tolist() == [0, 51, 100, 151]
    # DBN: a and b were examined, because b was clicked; c and d were not.
    assert count_pairs(lists, "dbn").shown.indices.tolist() == [0, 0, 1, 1]
    without = [each._replace(clicked=frozenset()) for each in lists]
    assert count_pairs(without, "dbn").shown.indices.tolist() == [0, 0, 0, 0]


def test_one_client_counts_once_for_a_pair_and_for_few_lists() -> None:
    mine = [ShownList("q", [("a", 1)], frozenset({"a"}), "fraud")] * 50
    others = [ShownList("q", [("a", 1)], frozenset(), f"c{n}") for n in range(10)]
    free, once = (count_pairs([*mine, *others], "pbm", bounds) for bounds in (ClientBounds(), ClientBounds(1, 0)))
    assert (free.clicked.sum(), free.shown.sum()) == (50, 60)
    assert (once.clicked.sum(), once.shown.sum()) == (pytest.approx(1), pytest.approx(11))
    assert once.told.largest_share == pytest.approx((50 / 60, 1 / 11))
    assert (once.told.clients, once.told.bounded) == (11, 50)
    many = [ShownList(f"q{n}", [("a", 1)], frozenset({"a"}), "fraud") for n in range(50)]
    few = count_pairs([*many, *others], "pbm", ClientBounds(1, 5))
    assert few.clicked.sum() == pytest.approx(5)
    nameless = [each._replace(client="") for each in mine]
    assert count_pairs(nameless, "pbm", ClientBounds(1, 5)).clicked.sum() == 50  # Nobody's lists cannot be bounded.
    assert count_pairs(nameless, "pbm").told.nameless == 50


def test_a_client_that_clicks_texts_everywhere_moves_the_model_only_without_a_bound(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    lists = searches(3_000)
    fraud = [
        each._replace(clicked=frozenset(name for name, _ in each.shown[:5]), client="fraud")
        for each in searches(1_000, client="fraud", seed=1)
    ]
    free = msgspec.structs.replace(ALONE, click_pair_max=0, click_lists_max=0)
    bound = msgspec.structs.replace(ALONE, click_pair_max=1, click_lists_max=20)
    honest = {
        name: gap(catalogue, grown(catalogue, lists, of, tmp_path)) for name, of in (("free", free), ("bound", bound))
    }
    cheated = {
        name: gap(catalogue, grown(catalogue, [*lists, *fraud], of, tmp_path))
        for name, of in (("free", free), ("bound", bound))
    }
    assert honest["free"] - cheated["free"] > 0.1
    assert abs(honest["bound"] - cheated["bound"]) < 0.3 * (honest["free"] - cheated["free"])


def test_too_few_clicked_queries_and_labels_without_a_difference_are_refused(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    few = [each for each in searches(4_000) if int(each.query.removeprefix("word")) < 19]
    with pytest.raises(RelevanceError, match=r"clicks of at least 20 queries to train on clicks alone, got 19 of"):
        grown(catalogue, few, ALONE, tmp_path)
    pairs = PairMaker(catalogue, SMALL)
    with pytest.raises(RelevanceError, match=r"no other source has a weight \(\[relevance.sources\]\), got 0"):
        train_on_people(pairs, [], corpus_sha256="", sources=ALONE)
    features = np.zeros((2, len(FEATURES)), dtype=np.float32)
    same = [QueryBlock(f"q{n}", Block(features, np.ones(2, dtype=np.float32))) for n in range(20)]
    with pytest.raises(RelevanceError, match="expected labels that differ, got 40 pairs that are all 1"):
        train_on_people(pairs, same, corpus_sha256="", sources=ALONE)
    assert is_alone(ALONE) and not is_alone(SourceSettings())


def test_every_fit_is_a_version_of_its_own_that_a_later_fit_leaves_alone(catalogue: Catalogue, tmp_path: Path) -> None:
    lists = searches(3_000)
    first, second = grown(catalogue, lists[:2_000], ALONE, tmp_path), grown(catalogue, lists, ALONE, tmp_path)
    again = grown(catalogue, lists[:2_000], ALONE, tmp_path)
    fit = first.manifest.clicks
    assert fit is not None
    assert (fit.run, fit.lists, fit.clients, fit.estimated) == ("live", 2_000, 2_000, True)
    assert fit.window == {"live.impression-outcomes/0": (0, 2_000)}
    assert first.manifest.name == again.manifest.name != second.manifest.name
    folder = Home(tmp_path).index("shop")
    names = [keep_version(folder.relevance, first), keep_version(folder.relevance, second)]
    assert load_gbdt(folder.relevance, catalogue).name == names[1]
    assert load_gbdt(version_folder(folder.relevance, names[0]), catalogue).name == names[0]
    score = GbdtRelevance(catalogue, first).score("word41", ["d41", "d5"])
    kept = load_gbdt(version_folder(folder.relevance, names[0]), catalogue).score("word41", ["d41", "d5"])
    assert kept.tolist() == score.tolist()
    assert keep_version(folder.relevance, first, label="november") == names[0]
    assert keep_newest(folder.relevance) == names[1]  # A label leaves the newest model as it is.
    assert version_folder(folder.relevance, "november").name == names[0]
    with pytest.raises(RelevanceError, match=r"relevance.version: expected one of november, gbdt-.*, got 'may'"):
        version_folder(folder.relevance, "may")


def test_a_run_keeps_the_version_that_it_began_with(catalogue: Catalogue, tmp_path: Path) -> None:
    lists = searches(3_000)
    folder = Home(tmp_path).index("shop")
    first, second = grown(catalogue, lists[:2_000], ALONE, tmp_path), grown(catalogue, lists, ALONE, tmp_path)
    name = keep_version(folder.relevance, first)
    settings = Settings()
    begun = pinned(folder, settings)
    assert begun.relevance.version == name
    newest = keep_version(folder.relevance, second)
    assert pinned(folder, settings, began=begun).relevance.version == name
    assert pinned(folder, settings).relevance.version == newest
    asked = msgspec.structs.replace(settings, relevance=msgspec.structs.replace(settings.relevance, version=newest))
    with pytest.raises(SettingsError, match=f"expected {name}, with which the run began, got '{newest}'"):
        pinned(folder, asked, began=begun)
    assert pinned(folder, asked).relevance.version == newest


def test_a_reward_counts_no_document_that_the_clicks_say_nothing_about(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = Home(tmp_path).index("shop")
    model = grown(catalogue, searches(2_000), ALONE, tmp_path)
    keep_version(folder.relevance, model)
    median = model.manifest.report[UNWANTED_MEDIAN]
    begun = pinned(folder, Settings())
    assert 0 < median < 0.5 and begun.leser.reward.relevance_min == pytest.approx(min(2 * median, 0.5), abs=1e-4)
    # Other words and documents of the same world: what nobody wanted stays below the bound that was set for it.
    score = GbdtRelevance(catalogue, model)
    unwanted = [score.score(f"word{n}", [f"d{(n + 20) % 60}"])[0] for n in range(40)]
    assert np.mean(np.array(unwanted) < begun.leser.reward.relevance_min) > 0.5
    assert pinned(folder, begun) == begun
    # A run that began when all documents counted goes on like that; a user's own bound stays.
    older = msgspec.structs.replace(begun, leser=Settings().leser)
    assert pinned(folder, Settings(), began=older).leser.reward.relevance_min == 0
    reward = msgspec.structs.replace(begun.leser.reward, relevance_min=0.3)
    own = msgspec.structs.replace(begun, leser=msgspec.structs.replace(begun.leser, reward=reward))
    assert pinned(folder, own).leser.reward.relevance_min == 0.3
    # A model of the catalogue's structure is sure of what is not relevant, so all documents count.
    other = Home(tmp_path).index("sure")
    keep_version(other.relevance, model._replace(manifest=msgspec.structs.replace(model.manifest, report={})))
    assert pinned(other, Settings()).leser.reward.relevance_min == 0


def test_a_share_of_clients_is_chosen_by_client_and_keeps_nameless_lists() -> None:
    lists = [ShownList("q", [("a", 1)], frozenset(), f"c{n % 100}") for n in range(200)]
    nameless = [ShownList("q", [("a", 1)], frozenset())] * 7
    half = of_some_clients([*lists, *nameless], 0.5)
    clients = {each.client for each in half}
    assert 30 < len(clients) < 70
    assert len(half) == 2 * (len(clients) - 1) + 7
    assert of_some_clients(lists, 1.0) == lists
