"""A text file from outside, line by line: detect its compression and encoding, and refuse other kinds of files."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.errors import InputError

LINE_BYTES_MAX = 4 * 1024 * 1024
HEAD_BYTES = 4096
_BUFFER_BYTES = 256 * 1024

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
UTF8_MARK = b"\xef\xbb\xbf"
# UTF-32's little-endian mark begins with UTF-16's, so it stands first.
WIDE_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
OTHER_KINDS = {
    GZIP: "gzip within gzip",
    ZSTD: "zstd within another compression",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"%PDF": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x7fELF": "a program",
    b"SQLite format 3\x00": "an SQLite database",
}
_NOT_REGULAR = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Bad = Callable[[int, str], None]


class InputFile:
    """A text file that may be read several times.

    what: the expected kind, for messages. error: the error class to raise.
    """

    def __init__(self, path: str | Path, what: str, *, error: type[InputError] = InputError) -> None:
        self.path = Path(path)
        self.what = what
        self._error = error

    def lines(self, bad: Bad | None = None) -> Iterator[tuple[int, str]]:
        """Yield (number from 1, line without its end) of every line that is not blank.

        bad: is called for a line that is too long or not UTF-8; reading continues with the next line. None raises
        instead.
        Raises the file's error if it is missing, damaged, or of a different kind.
        """
        with self._opened() as stream:
            number = 0
            while raw := stream.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(raw) > LINE_BYTES_MAX:
                    said = (
                        f"expected at most {LINE_BYTES_MAX} bytes, got a longer line. Is this a {self.what} file with "
                        "one record a line?"
                    )
                    if bad is None:
                        raise self.error(said, number)
                    bad(number, said)
                    while raw and not raw.endswith(b"\n"):
                        raw = stream.readline(LINE_BYTES_MAX)
                    continue
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    said = (
                        f"expected UTF-8 text, got byte 0x{raw[error.start]:02x} at column {error.start + 1}. Convert "
                        "the file to UTF-8."
                    )
                    if bad is None:
                        raise self.error(said, number) from error
                    bad(number, said)
                    continue
                if not line.isspace() and line:
                    yield number, line.rstrip("\r\n")

    def error(self, said: str, line: int | None = None) -> InputError:
        """Return the file's error for a line, or for the file as a whole."""
        return self._error(f"{self.path}, line {line}: {said}" if line else f"{self.path}: {said}")

    @contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        """Yield the unpacked file. Raises the file's error for every error of the system or a decompressor."""
        packed = "gzip"
        try:
            self._check_regular()
            with self.path.open("rb") as raw:
                first = raw.read(4)
                raw.seek(0)
                packed = "zstd" if first == ZSTD else "gzip"
                for suffix, magic, name in ((".gz", GZIP, "gzip"), (".zst", ZSTD, "zstd")):
                    if self.path.suffix == suffix and first and not first.startswith(magic):
                        raise self.error(
                            f"expected {name} (the name ends in {suffix}), got something else. Rename or re-pack it."
                        )
                with _unpacked(raw, first) as stream:
                    self._check_kind(stream.peek(HEAD_BYTES)[:HEAD_BYTES])
                    yield stream
        except FileNotFoundError:
            raise self.error(f"no such {self.what} file. Check the path (now in {Path.cwd()}).") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self.error(f"damaged gzip ({error}). Copy or download the {self.what} file again.") from error
        except OSError as error:
            if error.errno is None:  # Arrow's own error, from zstd.
                said = " ".join(str(error).split())
                raise self.error(f"damaged {packed} ({said}). Copy or download the {self.what} file again.") from error
            raise self.error(f"cannot read this {self.what} file: {error.strerror}. Give a readable file.") from error

    def _check_regular(self) -> None:
        """Raise unless the path leads to a regular file: a pipe would block, and it can be read only once."""
        try:
            mode = self.path.stat().st_mode
        except ValueError as error:  # The name contains a NUL.
            raise self.error(f"no such {self.what} file: {error}. Check the path.") from error
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "Is a directory")
        if not stat.S_ISREG(mode):
            kind = _NOT_REGULAR.get(stat.S_IFMT(mode), "no file")
            raise self.error(
                f"cannot read this {self.what} file: it is {kind}, and an input is read more than once. Write it into "
                "a file first."
            )

    def _check_kind(self, head: bytes) -> None:
        """Raise if the file's first bytes show that it is not text, or that it is text in an unsupported encoding."""
        for mark, name in WIDE_MARKS.items():
            if head.startswith(mark):
                raise self.error(_convert(name))
        for magic, name in OTHER_KINDS.items():
            if head.startswith(magic):
                raise self.error(f"expected a {self.what} file, got {name}. Unpack it, or give another file.")
        even, odd = head[0::2].count(0), head[1::2].count(0)
        if max(even, odd) * 5 > len(head):  # More NUL than two fifths of every second byte: Latin text.
            raise self.error(_convert("UTF-16") if min(even, odd) * 4 < max(even, odd) else self._binary())
        if (even + odd) * 20 > len(head):
            raise self.error(self._binary())
        opening = head.removeprefix(UTF8_MARK).lstrip()[:16].lower()
        if opening.startswith((b"<!doctype html", b"<html", b"<?xml")):
            kind = "XML" if opening.startswith(b"<?xml") else "an HTML page"
            raise self.error(
                f"expected a {self.what} file, got {kind}. Did a download end on a page that explains an error?"
            )

    def _binary(self) -> str:
        return f"expected a {self.what} file in UTF-8 text, got binary data. Check the path."


@contextmanager
def _unpacked(raw: io.BufferedReader, first: bytes) -> Iterator[io.BufferedReader]:
    """Yield a stream of a file's content, unpacked according to its first bytes."""
    if first.startswith(GZIP):
        with gzip.GzipFile(fileobj=raw, mode="rb") as unzipped:
            yield io.BufferedReader(unzipped, _BUFFER_BYTES)
    elif first == ZSTD:
        import pyarrow as pa  # Arrow supplies zstd, because Python has its own only from 3.14 on.

        with pa.CompressedInputStream(raw, "zstd") as unpacked:
            yield io.BufferedReader(unpacked, _BUFFER_BYTES)
    else:
        yield raw


def _convert(name: str) -> str:
    return f"expected UTF-8 text, got {name}. Convert it: iconv -f {name} -t UTF-8 IN > OUT"


def names_a_file(value: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether the value of an option that takes a file or a text is a file.

    It is a file if such a file exists, or if the value looks like a path by its suffix or its beginning. A value that
    cannot be a path (too long, or with a NUL) is text. A word that happens to be a folder's name is text, too.
    """
    try:
        mode = Path(value).stat().st_mode
    except FileNotFoundError:
        return value.endswith(suffixes) or value.startswith(("/", "./", "../"))
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or os.sep in value or value.endswith(suffixes)
