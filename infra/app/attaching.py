"""Attaching an index that somebody else made: its search and its fields are checked, and a sample is read.

Nothing is written to the cluster; the right to read the index is enough.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import msgspec
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from infra.app.app import App
from infra.app.home import IndexFolder
from infra.app.indexing import queries_of
from infra.app.progress import Report
from search_env.engine.attachments import ID, AttachedForm, Attachment
from search_env.engine.documents import has_source, sample_documents
from search_env.engine.errors import RetrievalError, explain
from search_env.engine.field_types import field_types
from search_env.engine.forms import Body, Boosted
from search_env.engine.guessed_fields import guess_fields
from search_env.engine.index import IndexingError, IndexVersion, SavedDocuments, check_name, load_manifest
from search_env.engine.marked_query import QUERY, mark_expansions, read_body
from search_env.engine.rights import require_rights
from search_env.engine.stored_templates import render_template
from search_env.engine.template_files import read_parameters, read_template
from search_env.queries.intents import write_intents
from streams.whole_file import whole_folder


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The options of an attachment; "" or () is guessed from the index.

    template: a file with the search body. template_id: the name of a stored template. query_variable,
    expansions_variable: the variables of either. parameters: a file with the values of its other variables.
    sample: number of documents that are read. seed: of the sample.
    """

    index: str
    id_field: str = ID
    title: str = ""
    texts: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()
    template: Path | None = None
    template_id: str = ""
    query_variable: str = "query"
    expansions_variable: str = ""
    parameters: Path | None = None
    sample: int = 20_000
    seed: int = 0


class AttachSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The attachment as it was made. queries: number by split; `kind` names their source."""

    name: str
    index: str
    documents: int
    sample: int
    id_field: str
    title: str
    texts: tuple[str, ...]
    attributes: tuple[str, ...]
    searched: tuple[str, ...]
    queries: dict[str, int]
    kind: str


def attach_index(app: App, wanted: Wanted, *, name: str, report: Report) -> AttachSummary:
    """Check an index and its search, read a sample, and make training and held-out queries from the sample.

    name: the name of the attachment in this home.
    Raises IndexingError if the name belongs to an index of ours, if a field or the search does not fit, or if the index
    is empty; RightsError if the key may not read it.
    """
    check_name(name)
    folder = app.home.index(name)
    _require_free(folder)
    with closing(app.engine()) as client:
        require_rights(client, [wanted.index], ["read"])
        attachment = _attachment(client, wanted, report)
        saved = SavedDocuments(folder)
        try:
            found = sample_documents(client, attachment, count=wanted.sample, seed=wanted.seed, report=report)
            documents = list(saved.keep(found))
            if not any(document.title or document.text for document in documents):
                raise IndexingError(
                    f"index '{wanted.index}': none of {len(documents)} documents has a text in {attachment.title!r} or "
                    f"{', '.join(attachment.texts) or 'other fields'}. A mapping without _source must store them; or "
                    "name other fields: --title, --text"
                )
            report("making queries", 0, 0)
            intents, kind = queries_of(documents, app.settings.intents, report)
            version = IndexVersion(
                name=f"{name}@{attachment.sha256[:12]}",
                alias=name,
                documents=saved.count,
                sha256=saved.sha256.hexdigest(),
                made_at_ms=time.time_ns() // 1_000_000,
                attached=attachment,
            )
            with whole_folder(folder.intents, replace=True) as aside:
                write_intents(aside, intents)
            saved.accept(version)
        except BaseException:
            saved.discard()
            raise
    return AttachSummary(
        name=name,
        index=wanted.index,
        documents=attachment.documents,
        sample=saved.count,
        id_field=attachment.id_field,
        title=attachment.title,
        texts=attachment.texts,
        attributes=attachment.attributes,
        searched=attachment.searched,
        queries={split: len(queries) for split, queries in intents.queries.items()},
        kind=kind,
    )


def _require_free(folder: IndexFolder) -> None:
    if (folder / "manifest.json").exists() and load_manifest(folder).attached is None:
        raise IndexingError(
            f"index {folder.name!r} was made here by `searchloop index`. Give the attachment another name: --name NAME"
        )


def _attachment(client: Elasticsearch, wanted: Wanted, report: Report) -> Attachment:
    report("looking at the index", 0, 0)
    index = wanted.index
    types = field_types(client, index)
    named = [wanted.id_field, wanted.title, *wanted.texts, *wanted.searched]
    for name in filter(None, (each.split("^")[0] for each in named)):
        if name != ID and name not in types:
            near = sorted(each for each in types if each.split(".")[-1] == name.split(".")[-1]) or sorted(types)[:20]
            raise IndexingError(f"index '{index}' has no field {name!r}. Expected one such as {', '.join(near)}")
    if wanted.title or wanted.texts:
        title, texts, attributes = wanted.title, wanted.texts, wanted.attributes
    else:
        title, texts, attributes = guess_fields(types, id_field=wanted.id_field)
    searched = wanted.searched or tuple(filter(None, (f"{title}^2" if title else "", *texts)))
    raw, helped = _bodies(client, wanted, searched)
    attachment = Attachment(
        index=index,
        id_field=wanted.id_field,
        title=title,
        texts=texts,
        attributes=wanted.attributes or attributes,
        searched=searched,
        raw=raw,
        helped=helped,
    )
    kept = {name: types[name] for name in attachment.fields() if name in types}
    attachment = msgspec.structs.replace(attachment, types=kept)
    attachment = msgspec.structs.replace(attachment, documents=_count(client, attachment))
    _try_search(client, attachment)
    return msgspec.structs.replace(attachment, source=has_source(client, attachment))


def _bodies(client: Elasticsearch, wanted: Wanted, searched: tuple[str, ...]) -> tuple[Body, Body]:
    """Return the search without and with expansions: the user's, or the words in every field that is searched."""
    variables = {"query": wanted.query_variable, "expansions": wanted.expansions_variable}
    parameters = read_parameters(wanted.parameters) if wanted.parameters else {}
    if wanted.template_id:
        source = f"--template-id {wanted.template_id}"
        raw, helped = render_template(client, wanted.template_id, **variables, parameters=parameters)
        return mark_expansions(read_body(raw, source=source), read_body(helped, source=source), source=source)
    if wanted.template:
        source = str(wanted.template)
        body = read_template(wanted.template, **variables, parameters=parameters)
        return mark_expansions(read_body(body, source=source), source=source)
    plain: Body = {"query": {"multi_match": {"query": QUERY, "fields": list(searched)}}}
    return mark_expansions(plain, source="the search")


def _count(client: Elasticsearch, attachment: Attachment) -> int:
    """Return the number of documents. Raises IndexingError if there is none, or if one lacks its id."""
    try:
        total = int(client.count(index=attachment.index)["count"])
        exists = {"exists": {"field": attachment.id_field}}
        named = total if attachment.id_field == ID else int(client.count(index=attachment.index, query=exists)["count"])
    except (ApiError, TransportError) as error:
        raise IndexingError(f"index '{attachment.index}' cannot be counted: {explain(error)}") from error
    if not total:
        raise IndexingError(f"index '{attachment.index}' is empty. Expected documents to search")
    if named < total:
        raise IndexingError(
            f"index '{attachment.index}': {total - named:,} of {total:,} documents have no {attachment.id_field!r}. "
            "Name a field that each document has, or leave --id out for the engine's own id"
        )
    kind = attachment.types.get(attachment.id_field, "keyword")
    if attachment.id_field != ID and kind not in ("keyword", "long", "integer", "unsigned_long", "short"):
        raise IndexingError(
            f"--id {attachment.id_field}: expected a keyword or an integer, got {kind}. A text cannot name a document; "
            "leave --id out for the engine's own id"
        )
    return total


def _try_search(client: Elasticsearch, attachment: Attachment) -> None:
    """Ask the owner's search once without and once with expansions, and raise IndexingError if it is refused."""
    form = AttachedForm(attachment)
    for words in ((), [Boosted("searchloop", 1.0)]):
        body = form.body("searchloop", words, whole_boost=1.0 if words else 0.0, size=1)
        try:
            client.search(index=attachment.index, body=body, allow_partial_search_results=False)
        except ApiError as error:
            which = "with expansions" if words else "as it stands"
            raise IndexingError(
                f"index '{attachment.index}' refuses the search {which}: {explain(error)}. The body: "
                f"{msgspec.json.encode(body).decode()[:1000]}"
            ) from error
        except (TransportError, RetrievalError) as error:
            raise IndexingError(f"index '{attachment.index}' did not answer: {error}") from error
