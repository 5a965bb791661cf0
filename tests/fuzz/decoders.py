"""Every decoder of bytes from outside, with sound inputs to damage: from Kafka, from files, from a policy.

Each takes an input and returns what became of it ("decoded", "refused" …). A refusal is the error that the decoder
documents, and no other; what it decoded has to fit where it goes next, an event onto the log.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
from crc32c import crc32c

from infra.app.home import SETTINGS_FILE
from infra.app.layers import combine, read_toml
from infra.app.run_settings import RunSettings, read_run_settings
from infra.app.settings import Settings
from learner.checkpoints import (
    CURRENT,
    MANIFEST,
    MANIFEST_SHA256,
    CheckpointError,
    Manifest,
    load_current,
    read_manifest,
    save_checkpoint,
)
from search_env.catalogue.corpora import CorpusError, load_corpus, load_qrels, load_queries, read_run
from search_env.leser.expansions import ParsedExpansions, parse_expansions
from search_env.traffic.sessions import SessionSummary, read_sessions
from search_env.traffic.ubi import read_ubi
from storage.archive import find_segments, read_segment
from storage.errors import StorageError
from storage.ledger import LEDGER, build_batch
from storage.sink import Sink
from streams.codec import decode, encode_event
from streams.errors import DeliveryError, EventError, InputError, SearchloopError, SettingsError
from streams.events import DeadLetter, Position
from streams.record_batches import BatchBuilder, body_of, read_records
from streams.records import Received
from streams.resending import prepare_resending
from streams.traffic_events import Feedback
from tests.stored_events import policy, small_run

TESTS = Path(__file__).parents[1]
EVENTS = tuple(path.read_bytes() for path in sorted((TESTS / "golden" / "events").glob("*.json")))
PLACE = Position(topic="fuzz.requests", partition=0, offset=0)

Decode = Callable[[bytes | None], str]


class Decoder(NamedTuple):
    """sound: inputs to damage. opened: gives the function that takes one; it has a folder to itself meanwhile."""

    sound: tuple[bytes, ...]
    opened: Callable[[Path], Decode]


def refusal(error: SearchloopError) -> str:
    """Return the fate of an input that was refused; the error must say something, in one line."""
    if not str(error) or "\n" in str(error):
        raise AssertionError(f"an error of no or several lines: {error!r}") from error
    return "refused"


def codec(_: Path) -> Decode:
    """Decode as generator, environment and learner do."""

    def read(value: bytes | None) -> str:
        try:
            return type(decode(value)).__name__
        except EventError as error:
            return refusal(error)

    return read


def ledger(_: Path) -> Decode:
    """Decode and build rows as the sink does: rows of one event, or one dead letter, never both, never neither."""

    def read(value: bytes | None) -> str:
        batch = build_batch([Received(position=PLACE, timestamp_ms=0, key=None, value=value)])
        tables = set(batch.tables) - {"records"}
        if len(batch.letters) == 1 and tables == {"dead_letters"} and batch.tables["dead_letters"].num_rows == 1:
            return "refused"
        if batch.letters or not tables:
            raise AssertionError(f"{len(batch.letters)} dead letters and rows in {tables or 'no table'}")
        return "stored"

    return read


def resending(_: Path) -> Decode:
    """Prepare a dead letter with these bytes to be sent again: as they are, or as the request of a failed group."""

    def read(value: bytes | None) -> str:
        letter = DeadLetter(source=PLACE, key=None, value=value, headers=(), stage="environment", error="x", attempts=1)
        resent = prepare_resending(letter)
        if resent.asked_again:
            return "asked again"
        assert resent.value == value
        return "sent again"

    return read


def batches(_: Path) -> Decode:
    """Take a fetched record batch apart; a checksum that fits is put onto every second one."""
    fits = False

    def read(value: bytes | None) -> str:
        nonlocal fits
        fetched, fits = value or b"", not fits
        if fits and len(fetched) > 61:
            fetched = fetched[:16] + b"\x02" + struct.pack(">I", crc32c(fetched[21:])) + fetched[21:]
        try:
            return "decoded" if list(read_records(fetched)) else "no whole batch"
        except DeliveryError as error:
            return refusal(error)

    return read


def manifest(folder: Path) -> Decode:
    """Read a checkpoint whose manifest is this, with the hash that it must have."""
    checkpoint = folder / "1-abcdef-000001"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"w")

    def read(value: bytes | None) -> str:
        content = value or b""
        (checkpoint / MANIFEST).write_bytes(content)
        (checkpoint / MANIFEST_SHA256).write_text(hashlib.sha256(content).hexdigest())
        return refused(lambda: read_manifest(checkpoint, verify=True), CheckpointError)

    return read


def current(folder: Path) -> Decode:
    """Find the newest checkpoint where CURRENT says this; the one that is whole must be found, whatever it says."""

    def write_files(to: Path) -> Manifest:
        (to / "weights").write_bytes(b"w")
        return Manifest(policy=policy(1, lineage="1-abcdef"), parent=None)

    whole = save_checkpoint(folder, policy(1, lineage="1-abcdef"), write_files)

    def read(value: bytes | None) -> str:
        (folder / CURRENT).write_bytes(value or b"")
        found, _ = load_current(folder)
        assert found == whole
        return "found" if (value or b"").strip() == whole.name.encode() else "found another way"

    return read


def run_settings(folder: Path) -> Decode:
    """Read what a run was started with."""

    def read(value: bytes | None) -> str:
        (folder / SETTINGS_FILE).write_bytes(value or b"")
        return refused(lambda: read_run_settings(folder), SettingsError)

    return read


def toml_settings(folder: Path) -> Decode:
    """Read a settings file as `--config` does."""

    def read(value: bytes | None) -> str:
        (folder / "settings.toml").write_bytes(value or b"")
        return refused(lambda: combine(Settings, [("it", read_toml(folder / "settings.toml"))]), SettingsError)

    return read


def ubi_queries(folder: Path) -> Decode:
    """Import UBI whose queries are this."""
    (folder / "events").write_bytes(UBI_EVENTS)
    return file_of_events(folder / "queries", lambda: ubi_that_adds_up(folder))


def ubi_events(folder: Path) -> Decode:
    """Import UBI whose events are this."""
    (folder / "queries").write_bytes(UBI_QUERIES)
    return file_of_events(folder / "events", lambda: ubi_that_adds_up(folder))


def sessions(folder: Path) -> Decode:
    """Import click sessions."""
    path = folder / "sessions"

    def read() -> list[Feedback]:
        summary = SessionSummary()
        found = list(read_sessions(path, summary, application="a", known={"d1"}))
        assert summary.rows_read == summary.rows + summary.left_out.total
        assert (summary.sessions, summary.rows) == (len(found), sum(len(each.shown) for each in found))
        assert all(shown.rank >= 1 for each in found for shown in each.shown)
        return found

    return file_of_events(path, read)


def ubi_that_adds_up(folder: Path) -> list[Feedback]:
    """Read the UBI files of a folder; every row must be counted once, and every number lie in its range."""
    found, summaries = read_ubi(folder / "queries", folder / "events")
    for each in summaries:
        assert each.query_rows == each.searches - each.searches_of_events + (
            each.repeated + each.queries_without_id + each.queries_without_text + each.queries_unreadable
        )
        assert each.event_rows == each.shown - each.shown_by_queries + each.shown_again + each.actions + (
            each.without_query + each.other + each.rejected + each.unreadable + each.beyond
        )
    assert len(found) == len({each.feedback_id for each in found}) == sum(each.searches for each in summaries)
    for each in found:
        assert each.query and each.query.isprintable() and len(each.query) <= 512
        assert each.query_id.strip() and each.at_ms >= 0
        assert all(shown.rank >= 1 for shown in each.shown)
        assert all(action.kind and (action.rank is None or action.rank >= 1) for action in each.actions)
    return found


def corpus(folder: Path) -> Decode:
    """Read a corpus."""
    return file_of(folder / "corpus", lambda path: list(load_corpus(path)))


def queries(folder: Path) -> Decode:
    """Read queries."""
    return file_of(folder / "queries", load_queries)


def qrels(folder: Path) -> Decode:
    """Read judgments."""
    return file_of(folder / "qrels", load_qrels)


def run_file(folder: Path) -> Decode:
    """Read a TREC run."""
    return file_of(folder / "run", read_run)


def segment(folder: Path) -> Decode:
    """Read a segment of the archive; records that come out of damaged bytes must be those that went in."""
    path = folder / "segment"

    def read(value: bytes | None) -> str:
        path.write_bytes(value or b"")
        return refused(lambda: list(read_segment(path)), StorageError)

    return read


def answer(_: Path) -> Decode:
    """Parse what a policy wrote."""

    def read(value: bytes | None) -> str:
        text = (value or b"").decode("utf-8", "surrogateescape")
        for each in (text, text.encode("latin-1", "replace").decode("unicode_escape", "replace")):
            found = parse_expansions(each)
            if isinstance(found, ParsedExpansions):
                msgspec.json.encode(found)  # It goes onto the log.
            else:
                assert found.reason and "\n" not in found.reason
        return "decoded" if isinstance(found, ParsedExpansions) else "refused"

    return read


def refused(act: Callable[[], object], expected: type[SearchloopError]) -> str:
    """Return whether an act was refused, and how; any error but the expected one goes through."""
    try:
        act()
    except expected as error:
        return refusal(error)
    return "decoded"


def file_of(path: Path, load: Callable[[Path], object]) -> Decode:
    """Read a file of the search environment."""

    def read(value: bytes | None) -> str:
        path.write_bytes(value or b"")
        return refused(lambda: load(path), CorpusError)

    return read


def file_of_events(path: Path, load: Callable[[], Iterable[msgspec.Struct]]) -> Decode:
    """Read a file of traffic, and write its events as they go onto the log."""

    def read(value: bytes | None) -> str:
        path.write_bytes(value or b"")
        return refused(lambda: [encode_event(event) for event in load()], InputError)  # type: ignore[arg-type]

    return read


def _lines(*rows: object) -> bytes:
    return b"\n".join(msgspec.json.encode(row) for row in rows)


def zstd(data: bytes) -> bytes:
    """Return bytes packed by zstd."""
    return bytes(pa.Codec("zstd").compress(data))


def _segments() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        with Sink(Path(folder) / LEDGER) as sink:
            sink.write(small_run(2))
        return tuple(path.read_bytes() for path in find_segments(Path(folder) / "archive"))


def _batch() -> bytes:
    builder = BatchBuilder()
    for number in range(4):
        builder.append(1_700_000_000_000 + number, body_of(b"key", b"value" * number, [("trace", b"\x00")]))
    return builder.build(producer_id=1, producer_epoch=0, sequence=0)


UBI_QUERIES = _lines(
    *(
        {"application": "shop", "query_id": query, "user_query": text, "client_id": "c", "timestamp": at}
        for query, text, at in (("q1", "red shoe", "2026-01-31T08:00:00Z"), ("q2", "blue shoe", 1_700_000_000_000))
    )
)
UBI_EVENTS = _lines(
    *(
        {
            "application": "shop",
            "query_id": f"q{number % 2 + 1}",
            "action_name": action,
            "timestamp": 1_700_000_000_000 + number,
            "session_id": "s",
            "event_attributes": {"position": {"ordinal": number}, "object": {"object_id": f"d{number}"}},
        }
        for number, action in enumerate(["impression", "impression", "click", "add_to_cart"])
    )
)
SESSIONS = b"session_id,query,rank0,doc_id,clicked\n1,red shoe,0,d1,1\n1,red shoe,1,d2,0\n2,blue,0,d3,0\n"
SESSIONS_QUOTED = (
    b'\xef\xbb\xbfsession_id,query,rank0,doc_id,clicked\r\n1,"red ""shoe""\n, x",0,d1,1\r\n2,5" tv,0,d2,0\r\n'
)
CORPUS = _lines(
    {"_id": "d1", "title": "Red shoe", "text": "a shoe", "metadata": {"attributes": {"colour": "red"}, "brand": "b"}},
    {"_id": "d2", "title": "Blue shoe", "text": "", "metadata": {}},
)
QUERIES = _lines({"_id": "q1", "text": "red shoe"}, {"_id": "q2", "text": "shoe", "metadata": {"kind": "pair"}})
ANSWERS = (
    b'<answer>["over ear", "anc headset"]</answer>',
    b'<think>hm</think><answer>["\\u00fcber", "a b c"]</answer>',
    b"<answer>[]</answer>",
)
SETTINGS = msgspec.json.encode(
    RunSettings(run="r", recipe="leser", index="i", index_version="i-1", seed=0, updates=1, settings=Settings())
)
MANIFEST_BYTES = msgspec.json.encode(
    Manifest(policy=policy(1), parent=policy(0), positions={0: 7}, files={"weights": hashlib.sha256(b"w").hexdigest()})
)
TOML = b'[batch]\ngroups = 32\n[learner.objective]\nkl_weight = 0.1\n[kafka]\nbootstrap = "a:1"\n'

DECODERS: dict[str, Decoder] = {
    "codec": Decoder(EVENTS, codec),
    "ledger": Decoder(EVENTS, ledger),
    "resending": Decoder(EVENTS, resending),
    "record batches": Decoder((_batch(), _batch() * 2), batches),
    "archive segment": Decoder(_segments(), segment),
    "checkpoint manifest": Decoder((MANIFEST_BYTES,), manifest),
    "checkpoint CURRENT": Decoder((b"1-abcdef-000001\n",), current),
    "run settings": Decoder((SETTINGS,), run_settings),
    "TOML settings": Decoder((TOML,), toml_settings),
    "UBI queries": Decoder((UBI_QUERIES, gzip.compress(UBI_QUERIES), zstd(UBI_QUERIES)), ubi_queries),
    "UBI events": Decoder((UBI_EVENTS, gzip.compress(UBI_EVENTS)), ubi_events),
    "sessions": Decoder((SESSIONS, SESSIONS_QUOTED, gzip.compress(SESSIONS), zstd(SESSIONS)), sessions),
    "corpus": Decoder((CORPUS, gzip.compress(CORPUS), zstd(CORPUS)), corpus),
    "queries": Decoder((QUERIES, gzip.compress(QUERIES)), queries),
    "qrels": Decoder((b"q1 0 d1 1\nq1 0 d2 0\n", b"query-id\tcorpus-id\tscore\nq1\td1\t2\n"), qrels),
    "run file": Decoder((b"q1 Q0 d1 1 2.5 tag\nq1 Q0 d2 2 1.25 tag\n",), run_file),
    "policy output": Decoder(ANSWERS, answer),
}


@contextmanager
def opened(name: str) -> Iterator[Decode]:
    """Give the function of a decoder that takes one input."""
    with tempfile.TemporaryDirectory(prefix="searchloop-fuzz-") as folder:
        yield DECODERS[name].opened(Path(folder))
