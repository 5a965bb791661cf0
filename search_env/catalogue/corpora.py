"""Documents, queries, judgments and rankings, read from and written to the standard file formats of search.

Corpora and queries are BEIR-style JSON lines: `_id`, `title`, `text`, `metadata`. Judgments are TREC qrels (four
columns) or BEIR's three-column TSV with a header. Rankings are TREC runs (six columns). `streams.inputs` defines how
files, texts and numbers are read. Every error names the file, the line, the expected value, the value found, and the
remedy.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from search_env.catalogue.seen_ids import SeenIds
from streams.errors import FULL, InputError
from streams.inputs.counts import Tell, tell_log
from streams.inputs.files import InputFile
from streams.inputs.json_rows import json_kind, json_objects
from streams.inputs.text import QUERY_CHARACTERS_MAX, Cuts, clean_metadata
from streams.inputs.values import GRADE_MAX, ID_BYTES_MAX, RANK_MAX, read_grade, read_id, read_rank, read_score
from streams.whole_file import whole_file

TITLE_CHARACTERS_MAX = 1_000
TEXT_CHARACTERS_MAX = 50_000
METADATA_CHARACTERS_MAX = 4_000

# The names in the header of three-column judgments: BEIR's, and synonyms. No other line counts as a header, because the
# first judgment would be lost with it.
HEADER = (
    frozenset({"query-id", "query", "qid", "topic"}),
    frozenset({"corpus-id", "document-id", "doc-id", "docid", "document", "doc"}),
    frozenset({"score", "grade", "relevance", "rel", "label", "rating"}),
)

Qrels = dict[str, dict[str, int]]


class CorpusError(InputError):
    """A corpus, query, judgment or run file is missing, damaged or in another format."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One document. `metadata` is free JSON; only its `attributes` (key → value) and `brand` are interpreted."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any] = {}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One query. `metadata` is free JSON; intents store there the structure from which they were made."""

    id: str
    text: str
    metadata: dict[str, Any] = {}


class Ranking(NamedTuple):
    """Document ids, best first, and their scores (same length)."""

    ids: list[str]
    scores: list[float]


class UnknownIds(NamedTuple):
    """Judgments that name an unknown query or document; `examples` holds the first few of each."""

    judgments: int
    queries: int
    documents: int
    examples: tuple[str, ...]


def load_corpus(path: str | Path, *, tell: Tell = tell_log, kept: bool = False) -> Iterator[Document]:
    """Yield the documents of a BEIR-style JSONL file, one at a time.

    tell: called at the end, once per line, to report which texts were cut. kept: True for a file that we wrote, whose
    texts stay unchanged.
    Raises CorpusError for a missing or damaged file, malformed JSON, a wrong type, a duplicate id, or no document.
    """
    file = InputFile(path, "corpus", error=CorpusError)
    seen = SeenIds()
    cuts = Cuts()
    for number, record in json_objects(file):
        identifier = _identifier(record, file, number, seen)
        title = _string(record, "title", file, number)
        text = _string(record, "text", file, number)
        metadata = _metadata(record, file, number)
        where = f"document '{identifier}'"
        if not kept:
            title = cuts.clean(title, characters_max=TITLE_CHARACTERS_MAX, what="title", where=where)
            text = cuts.clean(text, characters_max=TEXT_CHARACTERS_MAX, what="text", where=where)
            metadata = clean_metadata(metadata, characters_max=METADATA_CHARACTERS_MAX, cuts=cuts, where=where)
        yield Document(id=identifier, title=title, text=text, metadata=metadata)
    if not len(seen):
        raise file.error("expected at least one document, got an empty corpus. Check how the file was made.")
    for line in cuts.told():
        tell(f"{path}: {line}")


def checked_corpus(path: str | Path, *, tell: Tell = tell_log) -> Iterator[Document]:
    """Return a corpus's documents, to be taken once, when all of the file has been found valid.

    The file is read twice, so that no process holds it: it may be larger than the memory. tell, errors: as in
    `load_corpus`. If the file changes in between, the second reading may raise CorpusError, too.
    """
    for _ in load_corpus(path, tell=tell):
        pass
    return load_corpus(path, tell=lambda _: None)


def load_queries(path: str | Path, *, tell: Tell = tell_log) -> list[Query]:
    """Return the queries of a JSONL file; each has an `_id` and a `text` that is not blank.

    tell: as in `load_corpus`. Raises CorpusError as `load_corpus` does, also for a query without text and for a corpus.
    """
    file = InputFile(path, "queries", error=CorpusError)
    seen = SeenIds()
    queries: list[Query] = []
    titled = 0
    cuts = Cuts()
    for number, record in json_objects(file):
        identifier = _identifier(record, file, number, seen)
        titled += "title" in record
        text = cuts.clean(
            _string(record, "text", file, number),
            characters_max=QUERY_CHARACTERS_MAX,
            what="query",
            where=f"query '{identifier}'",
        )
        if not text:
            raise file.error(f"query '{identifier}' has no text. Give it a 'text', or leave the line out.", number)
        queries.append(Query(id=identifier, text=text, metadata=_metadata(record, file, number)))
    if not queries:
        raise file.error("expected at least one query, got an empty file. Check how the file was made.")
    if titled == len(queries):
        raise file.error("expected queries, got lines that all have a 'title'. Is this the corpus?")
    for line in cuts.told():
        tell(f"{path}: {line}")
    return queries


def load_qrels(path: str | Path, *, tell: Tell = tell_log) -> Qrels:
    """Return the grades of a qrels file, `{query id: {document id: grade}}`.

    It reads TREC (`query iteration document grade`, any white space) and BEIR (`query-id corpus-id score` with a
    header).
    tell: called with the number of judgments that occur twice with the same grade.
    Raises CorpusError for a wrong number of columns, a grade that is not an integer or out of range, an invalid id, or
    one pair with two grades.
    """
    file = InputFile(path, "qrels", error=CorpusError)
    qrels: Qrels = {}
    columns = repeated = 0
    for number, line in file.lines():
        fields = line.split()
        if not columns:
            columns = len(fields)
            if columns == 3 and len(parts := line.split("\t")) == 4 and not all(map(str.strip, parts)):
                raise file.error("expected 4 columns, got an empty one between tabs. Mend the line.", number)
            if columns not in (3, 4):
                raise file.error(
                    "expected 4 columns (TREC: query, iteration, document, grade) or 3 (BEIR: query-id, corpus-id, "
                    f"score), got {columns}. Check that this is a qrels file.",
                    number,
                )
            if columns == 3 and _is_header(fields):
                continue
        if len(fields) != columns:
            raise file.error(f"expected {columns} columns, got {len(fields)}. Fix the line.", number)
        query_id, document_id = _visible(fields[0], file, number), _visible(fields[-2], file, number)
        grade = read_grade(fields[-1])
        if grade is None:
            raise file.error(
                f"expected an integer grade, got '{fields[-1][:40]}' (grades go from -{GRADE_MAX} to {GRADE_MAX}). "
                "Fix the line.",
                number,
            )
        of_query = qrels.setdefault(query_id, {})
        if document_id in of_query:
            repeated += 1
        known = of_query.setdefault(document_id, grade)
        if known != grade:
            raise file.error(
                f"document '{document_id}' of query '{query_id}' has grade {grade} here and {known} before. Keep one "
                "of them.",
                number,
            )
    if not qrels:
        raise file.error("expected at least one judgment, got an empty file. Check how the file was made.")
    if repeated:
        tell(f"{path}: {repeated:,} judgments repeat an earlier one, with the same grade; each counts once")
    return qrels


def check_qrels(
    qrels: Qrels,
    *,
    query_ids: Iterable[str],
    document_ids: Iterable[str],
    unknown: Literal["report", "strict"] = "report",
    source: str = "qrels",
) -> UnknownIds:
    """Return the number of judgments with an unknown query or document, and examples.

    A pooled qrels file often judges more documents than one corpus holds, so the default only reports them.
    Raises CorpusError if all judgments are unknown; with `unknown="strict"`, if any is.
    """
    known_queries = set(query_ids)
    known_documents = document_ids if isinstance(document_ids, Mapping) else set(document_ids)
    queries, documents, judgments = [], dict[str, None](), 0
    for query_id, grades in qrels.items():
        missing = [document_id for document_id in grades if document_id not in known_documents]
        documents.update(dict.fromkeys(missing))
        if query_id in known_queries:
            judgments += len(missing)
        else:
            queries.append(query_id)
            judgments += len(grades)
    examples = tuple([f"query '{q}'" for q in queries[:3]] + [f"document '{d}'" for d in list(documents)[:3]])
    found = UnknownIds(judgments, len(queries), len(documents), examples)
    if judgments and (unknown == "strict" or judgments == sum(map(len, qrels.values()))):
        raise CorpusError(
            f"{source}: {judgments} judgments name {len(queries)} unknown queries and {len(documents)} unknown "
            f"documents ({', '.join(examples)}). Use the corpus and queries that were judged."
        )
    return found


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write BEIR's three-column TSV with its header, completely or not at all."""
    rows = ["query-id\tcorpus-id\tscore"]
    rows += [f"{query}\t{document}\t{grade}" for query, grades in qrels.items() for document, grade in grades.items()]
    write_whole(path, "\n".join(rows) + "\n")


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries as BEIR-style JSON lines, with `metadata` if there is any."""
    rows = []
    for query in queries:
        record: dict[str, Any] = {"_id": query.id, "text": query.text}
        if query.metadata:
            record["metadata"] = query.metadata
        rows.append(msgspec.json.encode(record).decode())
    write_whole(path, "\n".join(rows) + "\n")


def write_run(path: str | Path, run: Mapping[str, Ranking], *, tag: str) -> None:
    """Write rankings as a TREC run (`query Q0 document rank score tag`), ranks from 1, in the order given.

    Tied scores stay tied: readers must break ties by document id, as `read_run` and the search itself do.
    """
    rows = []
    for query_id, ranking in run.items():
        for rank, (document_id, score) in enumerate(zip(ranking.ids, ranking.scores, strict=True), start=1):
            rows.append(f"{query_id} Q0 {document_id} {rank} {float(score)!r} {tag}\n")
    write_whole(path, "".join(rows))


def read_run(path: str | Path, *, may_be_empty: bool = False) -> dict[str, Ranking]:
    """Return a TREC run's rankings, ordered by score, ties by document id; the rank column is not trusted.

    may_be_empty: True accepts a run without any ranked document.
    Raises CorpusError for a wrong number of columns, a score that is not a finite number, a rank that is not a whole
    number, an invalid id, or a document that is listed twice.
    """
    file = InputFile(path, "run", error=CorpusError)
    scores: dict[str, dict[str, float]] = {}
    for number, line in file.lines():
        fields = line.split()
        if len(fields) != 6:
            raise file.error(
                f"expected 6 columns (query, Q0, document, rank, score, tag), got {len(fields)}. Check that this is a "
                "TREC run.",
                number,
            )
        query_id, document_id = _visible(fields[0], file, number), _visible(fields[2], file, number)
        if read_rank(fields[3]) is None:
            raise file.error(
                f"expected a whole rank from 0 to {RANK_MAX}, got '{fields[3][:40]}'. Fix the line.", number
            )
        score = read_score(fields[4])
        if score is None:
            raise file.error(f"expected a finite score, got '{fields[4][:40]}'. Fix the line.", number)
        of_query = scores.setdefault(query_id, {})
        if document_id in of_query:
            raise file.error(f"document '{document_id}' is listed twice for query '{query_id}'. Keep one.", number)
        of_query[document_id] = score
    if not scores and not may_be_empty:
        raise file.error("expected at least one ranked document, got an empty file. Check how the file was made.")
    return {query_id: rank_by_score(list(of.keys()), list(of.values())) for query_id, of in scores.items()}


def rank_by_score(ids: Sequence[str], scores: Sequence[float]) -> Ranking:
    """Return documents by score, best first, ties by document id ascending: the one tie rule of this project."""
    order = sorted(range(len(ids)), key=lambda position: (-scores[position], ids[position]))
    return Ranking([ids[position] for position in order], [float(scores[position]) for position in order])


def write_whole(path: str | Path, text: str | bytes) -> None:
    """Write a file completely or not at all: to a temporary file first, which is then renamed.

    A pipe or device, such as /dev/stdout, is written to directly. Raises CorpusError if the file cannot be written.
    """
    target = Path(path)
    data = text.encode() if isinstance(text, str) else text
    if target.suffix == ".gz":
        data = gzip.compress(data, compresslevel=6, mtime=0)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        with whole_file(target) as aside:
            aside.write_bytes(data)
    except OSError as error:
        reason = "the disk is full" if error.errno in FULL else error.strerror
        raise CorpusError(f"{target}: cannot be written ({reason}). Make room, or choose another place.") from error


def _identifier(record: dict[str, Any], file: InputFile, number: int, seen: SeenIds) -> str:
    value = record.get("_id")
    if not isinstance(value, str):
        raise file.error(f"expected '_id' to be a string, got {json_kind(value)}. Fix the line.", number)
    if read_id(value) is None or any(character.isspace() for character in value):
        raise file.error(
            f"expected an '_id' of 1 to {ID_BYTES_MAX} visible bytes without spaces (they separate run columns), "
            f"got {value[:60]!r}. Rename it.",
            number,
        )
    if (before := seen.first_line(value, number)) is not None:
        raise file.error(f"id '{value}' was used before, in line {before}. Keep one.", number)
    return value


def _string(record: dict[str, Any], field: str, file: InputFile, number: int) -> str:
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise file.error(f"expected '{field}' to be a string, got {json_kind(value)}. Fix the line.", number)
    return value


def _metadata(record: dict[str, Any], file: InputFile, number: int) -> dict[str, Any]:
    value = record.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise file.error(f"expected 'metadata' to be an object, got {json_kind(value)}. Fix the line.", number)
    return value


def _visible(identifier: str, file: InputFile, number: int) -> str:
    """Return a column that is an id. Raises the file's error if it contains hidden characters or is too long."""
    if read_id(identifier) is None:
        raise file.error(
            f"expected ids of 1 to {ID_BYTES_MAX} visible bytes, got {identifier[:60]!r}. Fix the line.", number
        )
    return identifier


def _is_header(fields: Sequence[str]) -> bool:
    """Return whether the three columns are a header instead of a judgment."""
    return all(name.lower().replace("_", "-") in known for name, known in zip(fields, HEADER, strict=True))
