"""Documents, queries, judgments and runs, read from and written to the field's own file formats.

Corpora and queries are BEIR-style JSON lines (plain or gzip): `_id`, `title`, `text`, `metadata`. Judgments are TREC
qrels (four columns) or BEIR's three-column TSV with a header. Rankings are TREC runs (six columns).
Every error names the file, the line, what was expected, what came, and what to do.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from search_env.cleaning import clean_metadata, clean_text
from streams.errors import FULL, SearchloopError
from streams.whole_file import whole_file

LINE_BYTES_MAX = 4 * 1024 * 1024
ID_BYTES_MAX = 512  # Elasticsearch's own limit for `_id`.
TITLE_CHARACTERS_MAX = 1_000
TEXT_CHARACTERS_MAX = 50_000
QUERY_CHARACTERS_MAX = 512
METADATA_CHARACTERS_MAX = 4_000

Qrels = dict[str, dict[str, int]]
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class CorpusError(SearchloopError, ValueError):
    """A corpus, query, judgment or run file is missing, damaged or in another format."""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One document; `metadata` is free JSON, of which `attributes` (key → value) and `brand` are understood."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any] = {}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One query; `metadata` is free JSON (intents keep the structure there that made them)."""

    id: str
    text: str
    metadata: dict[str, Any] = {}


class Ranking(NamedTuple):
    """Document ids, best first, and their scores (same length)."""

    ids: list[str]
    scores: list[float]


class UnknownIds(NamedTuple):
    """Judgments that name a query or a document which is not there; `examples` holds the first few of each."""

    judgments: int
    queries: int
    documents: int
    examples: tuple[str, ...]


def load_corpus(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a BEIR-style JSONL(.gz) file, one at a time.

    Raises CorpusError for a missing or damaged file, malformed JSON, a wrong type, a duplicate id, or no document.
    """
    line_of: dict[str, int] = {}
    for number, record in _json_lines(path, "corpus"):
        identifier = _identifier(record, path, number, line_of)
        title = _string(record, "title", path, number)
        text = _string(record, "text", path, number)
        metadata = record.get("metadata")
        if metadata is None:
            metadata = {}
        if not isinstance(metadata, dict):
            raise CorpusError(
                f"{path}, line {number}: expected 'metadata' to be an object, got {json_kind(metadata)}. Mend the line."
            )
        yield Document(
            id=identifier,
            title=clean_text(title, characters_max=TITLE_CHARACTERS_MAX),
            text=clean_text(text, characters_max=TEXT_CHARACTERS_MAX),
            metadata=clean_metadata(metadata, characters_max=METADATA_CHARACTERS_MAX),
        )
    if not line_of:
        raise CorpusError(f"{path}: expected at least one document, got an empty corpus. Check how the file was made.")


def load_queries(path: str | Path) -> list[Query]:
    """Return the queries of a JSONL(.gz) file; each has an `_id` and a `text` that is not blank.

    Raises CorpusError as `load_corpus` does, and for a query without text.
    """
    line_of: dict[str, int] = {}
    queries: list[Query] = []
    for number, record in _json_lines(path, "queries"):
        identifier = _identifier(record, path, number, line_of)
        text = clean_text(_string(record, "text", path, number), characters_max=QUERY_CHARACTERS_MAX)
        if not text:
            raise CorpusError(
                f"{path}, line {number}: query '{identifier}' has no text. Give it a 'text', or leave the line out."
            )
        metadata = record.get("metadata")
        queries.append(Query(id=identifier, text=text, metadata=metadata if isinstance(metadata, dict) else {}))
    if not queries:
        raise CorpusError(f"{path}: expected at least one query, got an empty file. Check how the file was made.")
    return queries


def load_qrels(path: str | Path) -> Qrels:
    """Return the grades of a qrels file, `{query id: {document id: grade}}`.

    Reads TREC (`query iteration document grade`, any white space) and BEIR (`query-id corpus-id score` with a header).
    Raises CorpusError for a wrong number of columns, a grade that is no integer, or one pair with two grades.
    """
    qrels: Qrels = {}
    columns = 0
    for number, line in _lines(path, "qrels"):
        fields = line.split()
        if not columns:
            columns = len(fields)
            if columns == 3 and not _is_integer(fields[2]):
                continue  # BEIR's header.
            if columns not in (3, 4):
                raise CorpusError(
                    f"{path}, line {number}: expected 4 columns (TREC: query, iteration, document, grade) or 3 "
                    f"(BEIR: query-id, corpus-id, score), got {columns}. Check that this is a qrels file."
                )
        if len(fields) != columns:
            raise CorpusError(f"{path}, line {number}: expected {columns} columns, got {len(fields)}. Mend the line.")
        query_id, document_id, grade = fields[0], fields[-2], fields[-1]
        if not _is_integer(grade):
            raise CorpusError(f"{path}, line {number}: expected an integer grade, got '{grade[:40]}'. Mend the line.")
        known = qrels.setdefault(query_id, {}).setdefault(document_id, int(grade))
        if known != int(grade):
            raise CorpusError(
                f"{path}, line {number}: document '{document_id}' of query '{query_id}' has grade {grade} here and "
                f"{known} before. Keep one of them."
            )
    if not qrels:
        raise CorpusError(f"{path}: expected at least one judgment, got an empty file. Check how the file was made.")
    return qrels


def check_qrels(
    qrels: Qrels,
    *,
    query_ids: Iterable[str],
    document_ids: Iterable[str],
    unknown: Literal["report", "strict"] = "report",
    source: str = "qrels",
) -> UnknownIds:
    """Count the judgments whose query or document is unknown.

    A pooled qrels file often judges more than one corpus holds, so the default only reports.
    Raises CorpusError if all of them are unknown; with `unknown="strict"`, if any is.
    """
    known_queries, known_documents = set(query_ids), set(document_ids)
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
    """Write BEIR's three-column TSV with its header; the file is complete or absent, never half."""
    rows = ["query-id\tcorpus-id\tscore"]
    rows += [f"{query}\t{document}\t{grade}" for query, grades in qrels.items() for document, grade in grades.items()]
    write_whole(path, "\n".join(rows) + "\n")


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries as BEIR-style JSON lines (with `metadata` where there is some)."""
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


def read_run(path: str | Path) -> dict[str, Ranking]:
    """Return a TREC run's rankings, ordered by score, ties by document id; the rank column is not trusted.

    Raises CorpusError for a wrong number of columns, a score that is no finite number, or a document listed twice.
    """
    scores: dict[str, dict[str, float]] = {}
    for number, line in _lines(path, "run"):
        fields = line.split()
        if len(fields) != 6:
            raise CorpusError(
                f"{path}, line {number}: expected 6 columns (query, Q0, document, rank, score, tag), got "
                f"{len(fields)}. Check that this is a TREC run."
            )
        try:
            score = float(fields[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise CorpusError(f"{path}, line {number}: expected a finite score, got '{fields[4][:40]}'. Mend the line.")
        of_query = scores.setdefault(fields[0], {})
        if fields[2] in of_query:
            raise CorpusError(
                f"{path}, line {number}: document '{fields[2]}' is listed twice for query '{fields[0]}'. Keep one."
            )
        of_query[fields[2]] = score
    return {query_id: rank_by_score(list(of.keys()), list(of.values())) for query_id, of in scores.items()}


def rank_by_score(ids: Sequence[str], scores: Sequence[float]) -> Ranking:
    """Order documents by score, best first, ties by document id ascending: the one tie rule of this project."""
    order = sorted(range(len(ids)), key=lambda position: (-scores[position], ids[position]))
    return Ranking([ids[position] for position in order], [float(scores[position]) for position in order])


def write_whole(path: str | Path, text: str | bytes) -> None:
    """Write a file so that a reader sees all of it or none: aside first, then renamed into place.

    A pipe or device, as /dev/stdout, is written to as it is. Raises CorpusError if the file cannot be written.
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


def _lines(path: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a UTF-8 text file, gzip or not, without blank lines."""
    file = Path(path)
    try:
        with file.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        if file.suffix == ".gz" and not zipped and file.stat().st_size:
            raise CorpusError(
                f"{file}: expected gzip (the name ends in .gz), got something else. Rename or re-pack it."
            )
        with gzip.open(file, "rb") if zipped else file.open("rb") as stream:
            number = 0
            while raw := stream.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(raw) > LINE_BYTES_MAX:
                    raise CorpusError(
                        f"{file}, line {number}: expected at most {LINE_BYTES_MAX} bytes, got a longer line. Is this a "
                        f"{what} file with one record a line?"
                    )
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{file}, line {number}: expected UTF-8 text, got byte 0x{raw[error.start]:02x} at column "
                        f"{error.start + 1}. Convert the file to UTF-8."
                    ) from error
                if line:
                    yield number, line
    except FileNotFoundError:
        raise CorpusError(f"{file}: no such {what} file. Check the path (now in {Path.cwd()}).") from None
    except (IsADirectoryError, PermissionError) as error:
        raise CorpusError(f"{file}: cannot read this {what} file: {error.strerror}. Give a readable file.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{file}: damaged gzip ({error}). Copy or download the {what} file again.") from error


def _json_lines(path: str | Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder = msgspec.json.Decoder()
    for number, line in _lines(path, what):
        try:
            record = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise CorpusError(
                f"{path}, line {number}: expected one JSON object, got malformed JSON: {error}"
            ) from error
        if not isinstance(record, dict):
            raise CorpusError(
                f"{path}, line {number}: expected one JSON object, got {json_kind(record)}. Mend the line."
            )
        yield number, record


def _identifier(record: dict[str, Any], path: str | Path, number: int, line_of: dict[str, int]) -> str:
    value = record.get("_id")
    if not isinstance(value, str):
        raise CorpusError(
            f"{path}, line {number}: expected '_id' to be a string, got {json_kind(value)}. Mend the line."
        )
    if not value or not value.isprintable() or any(c.isspace() for c in value) or len(value.encode()) > ID_BYTES_MAX:
        raise CorpusError(
            f"{path}, line {number}: expected an '_id' of 1 to {ID_BYTES_MAX} visible bytes without spaces (run files "
            f"separate by them), got {value[:60]!r}. Rename it."
        )
    if value in line_of:
        raise CorpusError(f"{path}, line {number}: id '{value}' was used before, in line {line_of[value]}. Keep one.")
    line_of[value] = number
    return value


def _string(record: dict[str, Any], field: str, path: str | Path, number: int) -> str:
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(
            f"{path}, line {number}: expected '{field}' to be a string, got {json_kind(value)}. Mend the line."
        )
    return value


def _is_integer(text: str) -> bool:
    return _INTEGER.fullmatch(text) is not None


def json_kind(value: Any) -> str:
    """Return what JSON calls a value, with its article, for a message."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")
