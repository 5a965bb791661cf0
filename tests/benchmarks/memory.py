"""What a catalogue takes in memory: what is made from it, and what an environment holds of it, for growing sizes.

The catalogue is generated (`demo_catalogue`). As larger catalogues have more values, each product is also of one of
so many lines that a line has 60 products. Each part runs in a process of its own. No Elasticsearch takes part:
the documents that a search would find are drawn at random, which is harder for caches and pages than real searches.

- index: queries with judgments are made, and the corpus is saved, as `searchloop index` does beside the engine.
- catalogue: the mapped catalogue and the relevance trees are made, as `train` does.
- environment: opens the mapped catalogue and the trees, and scores groups of 8 candidates with 100 documents each.
- lessons: title phrases, reading lessons and a tokenizer, as `train` makes them.
- relsum: demand, judged lists, products with their values, and the lessons of a cross-encoder, as ReLSum's `train`
  makes them; and every product as a prompt shows it.
- resume: the products that answer training queries, and every product's text and prompt, as ReSuMe's `train` and its
  environment read them.

peak: the kernel's high-water mark of resident memory. Of it, mapped pages are the files' own, and the kernel takes them
back when memory is short. own: resident memory without them at the end. fixed: the imports alone.

Run: python tests/benchmarks/memory.py [--products 10000 100000] [--queries 4000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np

from search_env.catalogue.attributes import raw_attributes
from search_env.catalogue.corpora import load_corpus
from search_env.catalogue.demand import DemandSettings
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.kept import keep_documents
from search_env.engine.index import IndexVersion, SavedDocuments, kept_catalogue
from search_env.leser.lessons import catalogue_lessons, head_lessons
from search_env.models.relevance_files import load_gbdt, save_gbdt
from search_env.models.relevance_training import train_gbdt
from search_env.models.training_pairs import GbdtSettings, PairMaker
from search_env.queries.intents import IntentSettings, load_intents, make_intents, write_intents
from search_env.queries.judged_lists import ListSettings

GOAL_MIB = 2048
PARTS = ("fixed", "corpus", "index", "catalogue", "environment", "lessons", "relsum", "resume")
GROUPS, CANDIDATES, FOUND = 400, 8, 100
LINE_PRODUCTS = 60
VALUES_MIN = 2  # The generated products have few values; a catalogue of a shop has more than the setting's 8.
SYLLABLES = ("ba", "co", "de", "fi", "gu", "la", "me", "no", "pi", "ru", "sa", "te", "vo", "xi", "za", "ker")


def corpus(folder: Path, products: int) -> None:
    """Write the generated catalogue, as a user would give it."""
    encoder = msgspec.json.Encoder()
    with (folder / "corpus.jsonl").open("wb") as file:
        for number, each in enumerate(demo_catalogue(DemoSettings(products=products))):
            values = {**raw_attributes(each), "line": line_name(number % max(products // LINE_PRODUCTS, 1))}
            metadata = {**each.metadata, "attributes": values}
            record = {"_id": each.id, "title": each.title, "text": each.text, "metadata": metadata}
            file.write(encoder.encode(record) + b"\n")


def line_name(number: int) -> str:
    """Return a word of its own for each number, of at least three syllables."""
    digits = []
    while number or len(digits) < 3:
        number, digit = divmod(number, len(SYLLABLES))
        digits.append(SYLLABLES[digit])
    return "".join(digits)


def index(folder: Path, queries: int) -> None:
    """Do what `searchloop index` does, without the engine."""
    (folder / "aside").mkdir()
    documents = keep_documents(load_corpus(folder / "corpus.jsonl"), folder / "aside")
    (folder / "intents").mkdir()
    write_intents(folder / "intents", make_intents(documents, IntentSettings(queries=queries)))
    saved = SavedDocuments(folder)
    for _ in saved.keep(documents):
        pass
    saved.accept(IndexVersion(name="i-1", alias="i", documents=saved.count, sha256=saved.sha256.hexdigest()))


def make_catalogue(folder: Path) -> None:
    """Make the mapped catalogue, and train relevance trees on it."""
    catalogue = kept_catalogue(folder)
    lap("catalogue")
    asked, qrels = load_intents(folder / "intents", "train")
    save_gbdt(folder / "relevance", train_gbdt(PairMaker(catalogue, GbdtSettings()), asked, qrels, corpus_sha256=""))
    lap("relevance trees")


def lessons(folder: Path) -> None:
    """Do what else a run's preparation reads the catalogue for."""
    from learner.tokenizer import build_tokenizer

    catalogue = kept_catalogue(folder)
    lap("opening")
    head_lessons(catalogue, count=2_000, seed=7)
    lap("title phrases")
    catalogue_lessons(catalogue, count=6_000, seed=7)
    lap("reading lessons")
    build_tokenizer(
        (" ".join([d.title, d.text, *map(str, raw_attributes(d).values())]) for d in catalogue.documents),
        vocabulary_size=4_096,
    )
    lap("tokenizer")


def environment(folder: Path) -> None:
    """Score groups of random documents."""
    catalogue = kept_catalogue(folder)
    lap("opening")
    model = load_gbdt(folder / "relevance", catalogue)
    asked, _ = load_intents(folder / "intents", "train")
    draw = np.random.default_rng(1)
    for group in range(GROUPS):
        query = asked[group % len(asked)].text
        rows = draw.integers(len(catalogue), size=(CANDIDATES, FOUND)).tolist()
        model.score_many([(query, [catalogue.ids[row] for row in found]) for found in rows])
    lap(f"{GROUPS} groups")


def relsum(folder: Path) -> None:
    """Do what ReLSum's preparation reads the catalogue for, without a policy and a cross-encoder."""
    from infra.app.home import IndexFolder
    from infra.app.settings import Settings
    from infra.recipes.relsum.index import RelsumIndex
    from search_env.relsum.matching_lessons import MatchingLessons

    settings = Settings(demand=DemandSettings(), lists=ListSettings(values_min=VALUES_MIN))
    opened = RelsumIndex(IndexFolder(folder), settings, lambda *_: None)
    lap("opening")
    taught = opened.lists("train")
    lap(f"judged lists of {len(taught.queries)} training queries")
    names = sorted({document for of in taught.qrels.values() for document in of})
    MatchingLessons(opened.values, names, settings.lists, seed=1).stages(2_000)
    lap("values, lessons")
    for _ in map(opened.shown, opened.documents):
        pass
    lap("every product as shown")


def resume(folder: Path) -> None:
    """Do what ReSuMe's preparation and its environment read the catalogue for, without a policy and a retriever."""
    from infra.app.home import IndexFolder
    from infra.recipes.resume.texts import document_texts, summarized_values
    from learner.product_prompts import ProductPromptSettings
    from search_env.resume.answered import answered_queries

    opened = IndexFolder(folder)
    answered = answered_queries(opened, [])
    values = summarized_values(opened, answered, ProductPromptSettings())
    lap("values")
    asked = [each for each in (values.product(name) for name in answered.by_document) if len(each.values) > 1]
    lap(f"{len(asked)} products that are asked for")
    for _ in map(values.product, values.documents):
        pass
    lap("every product as shown")
    for _ in document_texts(opened).values():
        pass
    lap("every text")


def lap(what: str) -> None:
    """Tell what this process has taken so far, on standard error."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, peak = (int(status[name].split()[0]) // 1024 for name in ("RssAnon", "VmHWM"))
    print(
        f"  {what}: {time.process_time():.0f} s of processor, own {own}, peak {peak} MiB", file=sys.stderr, flush=True
    )


def part(name: str, folder: Path, products: int, queries: int) -> None:
    """Run one part in this process, and print what it took as JSON."""
    began = time.monotonic()
    if name == "corpus":
        corpus(folder, products)
    elif name == "index":
        index(folder, queries)
    elif name == "catalogue":
        make_catalogue(folder)
    elif name == "lessons":
        lessons(folder)
    elif name == "environment":
        environment(folder)
    elif name == "relsum":
        relsum(folder)
    elif name == "resume":
        resume(folder)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    told = {
        "seconds": round(time.monotonic() - began, 1),
        "processor": round(time.process_time(), 1),
        "own_mib": int(status["RssAnon"].split()[0]) // 1024,
        "peak_mib": int(status["VmHWM"].split()[0]) // 1024,
    }
    print(json.dumps(told))


def main() -> None:
    """Measure each part for each size, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--products", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=4_000, help="attribute queries that are made and trained on")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        part(arguments.part, arguments.folder, arguments.products[0], arguments.queries)
        return
    rows = []
    print(f"{'products':>10} {'part':>12} {'processor s':>12} {'own MiB':>8} {'peak MiB':>9}")
    for products in arguments.products:
        with tempfile.TemporaryDirectory(prefix="memory-bench-") as name:
            for each in PARTS:
                command = [sys.executable, __file__, "--part", each, "--folder", name, "--products", str(products)]
                command += ["--queries", str(arguments.queries)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = {"products": products, "part": each, **json.loads(done.stdout)}
                rows.append(row)
                print(
                    f"{products:>10,} {each:>12} {row['processor']:>12} {row['own_mib']:>8} {row['peak_mib']:>9}",
                    flush=True,
                )
            files = sum(path.stat().st_size for path in Path(name, "catalogue").iterdir())
            print(f"{products:>10,} {'files':>12} {files / 2**20:>12.0f} MiB of the mapped catalogue", flush=True)
    result = {"benchmark": "memory", "rows": rows, "goal_mib": GOAL_MIB, "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
