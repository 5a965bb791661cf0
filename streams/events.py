"""The events that travel through the loop: typed, tagged and versioned structs.

One record is one event, and one `Generation` or `Reward` is one whole group: there are no partial groups, no joins and
no windows on the training path. Every struct carries its name and version in the field `event` ("request/1"). Readers
ignore unknown fields; a new field always has a default. A change of a field's meaning needs a new version.

The small structs that an event holds in large numbers (`Completion`, `Outcome`, `Hit`) are hidden from the cycle
collector (gc=False). They cannot hold a cycle, and a group decodes a third faster.
"""

from __future__ import annotations

import msgspec

from streams.serving_events import Decision
from streams.traffic_events import Feedback, Impression, ImpressionOutcome, UserAction


class Position(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """The place of a record in the log."""

    topic: str
    partition: int
    offset: int


class PolicyRef(msgspec.Struct, frozen=True, kw_only=True):
    """The name of one set of weights. A resume starts a new lineage, so one name never means two sets of weights.

    step: optimizer steps since the warm-up (0 is the warmed-up policy itself). sha256: hash of the weights file.
    """

    lineage: str
    step: int
    sha256: str


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The context that the search engine showed the policy beside the query.

    terms: feedback terms of the raw query's top documents, best first.
    attributes: attribute values of those documents, best first; empty if the catalog has none.
    neighbours: expansions that served similar training queries, best first; empty if there are none.
    documents: the number of documents that passed the relevance filter and gave the terms and attributes.
    choices: words that a selector may say, in the order of its pointers; absent for a policy that writes text.
    """

    terms: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    documents: int = 0
    choices: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """The view of a document that a policy gets if it writes about that document.

    values: (attribute name, value as it is said), numbered from 1 in this order. text: running text.
    """

    document_id: str
    title: str
    values: tuple[tuple[str, str], ...] = ()
    text: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True, tag="request/1", tag_field="event"):
    """A request to the policy for text about one query or one product.

    product: the subject of the text if it is not the query; otherwise absent from the record, as before products
    existed. With a product, only the environment uses the query: no prompt shows it.
    split: "train", "dev", "test" or "live"; only "train" requests may reach the learner.
    index: the versioned name of the index (never the alias) that gave the context.
    made_at_ms: milliseconds since the epoch, as every time in the log.
    """

    request_id: str
    run: str
    query_id: str
    query: str
    index: str
    split: str = "train"
    context: Context = Context()
    product: Product | msgspec.UnsetType = msgspec.UNSET
    made_at_ms: int = 0


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """The sampling settings of candidates; temperature 0 is greedy decoding.

    no_repeat: an expansion may not begin with the token that began an earlier one (in the sampler and in the learner).
    """

    candidates: int
    temperature: float
    tokens_max: int
    no_repeat: bool = True


class Completion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One candidate as the policy wrote it.

    token_ids and logprobs have one entry per generated token, including the end token. logprobs are those of the
    distribution that was sampled from (after temperature and the no-repeat rule).
    finish: "stop" if the policy ended by itself, "length" if it reached tokens_max.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


class Generation(msgspec.Struct, frozen=True, kw_only=True, tag="generation/1", tag_field="event"):
    """The group of candidates that one policy version wrote for one request.

    group_id is deterministic: the same request always gives the same id, so the first such record in the log counts.
    source: the request's record.
    """

    group_id: str
    request: Request
    source: Position
    policy: PolicyRef
    tokenizer_sha256: str
    prompt_sha256: str
    sampling: Sampling
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    made_at_ms: int = 0


class Hit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One retrieved document; rank starts at 1."""

    document_id: str
    rank: int
    score: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The outcome of one candidate; each candidate has exactly one.

    status: "scored" (reward is a number) or "failed" (reward is None, error says why; never a reward of 0).
    valid: the text kept the format; an invalid text is scored with reward 0.
    components: each part of the reward by name, before weighting.
    summary: the summary that was read from a text about a product; absent if the text was about a query.
    """

    status: str
    valid: bool
    expansions: tuple[str, ...] = ()
    reward: float | None = None
    components: dict[str, float] = {}
    hits: tuple[Hit, ...] = ()
    error: str = ""
    summary: str | msgspec.UnsetType = msgspec.UNSET


class ClickEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The outcomes of impressions from which a group's rewards come, so that anybody can compute them again.

    live: the run of the live traffic. ranges: per partition of its outcomes topic, the first offset that was read and
    the offset after the last. counted: number of impressions that counted. sha256: hash of their ids, sorted, a line
    each.
    """

    live: str
    ranges: dict[int, tuple[int, int]]
    counted: int
    sha256: str


class Reward(msgspec.Struct, frozen=True, kw_only=True, tag="reward/1", tag_field="event"):
    """The search environment's answer to one group.

    It holds everything that the learner needs; the learner reads no other topic.
    source and content_sha256: the generation's record and the hash of its bytes. Of two rewards for one group, the one
    with the lowest source offset counts.
    raw_hits: the hits of the query alone. search_body: the body of the expanded search as a template.
    clicks: what people did, from which the rewards come; absent if they come from a model.
    """

    group_id: str
    generation: Generation
    source: Position
    content_sha256: str
    outcomes: tuple[Outcome, ...]
    index: str
    relevance_model: str
    reward_sha256: str
    raw_hits: tuple[Hit, ...] = ()
    search_body: str = ""
    made_at_ms: int = 0
    clicks: ClickEvidence | msgspec.UnsetType = msgspec.UNSET


class Update(msgspec.Struct, frozen=True, kw_only=True, tag="update/1", tag_field="event"):
    """One optimizer step: the groups that it used, the groups that it left out, and its measurements.

    policy: the weights after the step. parent: the weights before it.
    trained: groups that gave a gradient. flat: groups without spread. expired: groups older than the staleness limit.
    failed: groups with fewer than two scored candidates.
    rejected: groups that never reached the loss, each with the reason: malformed, out of bounds, or false in their
    claims.
    disputed: groups without a gradient because the policy cannot reproduce their log-probabilities, each with the
    reason; they keep their place in the loss's denominators.
    positions: next offset to read per partition of the rewards topic, after this step.
    requests_consumed: per partition of the requests topic, the offset below which this or an earlier step has used up
    every request. A group that answers one of them never trains again.
    parent_update_sha256: hash of the bytes of the update that made the parent; "" if no update of this run did.
    parent_manifest_sha256: hash of the manifest of the parent's checkpoint. The two hashes chain the updates: a person
    who keeps the newest manifest's hash elsewhere notices a rewritten past. The four fields are absent from records of
    older writers.
    """

    run: str
    policy: PolicyRef
    parent: PolicyRef
    trained: tuple[str, ...]
    flat: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    positions: dict[int, int] = {}
    requests_consumed: dict[int, int] = {}
    metrics: dict[str, float] = {}
    made_at_ms: int = 0
    rejected: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    disputed: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    parent_update_sha256: str | msgspec.UnsetType = msgspec.UNSET
    parent_manifest_sha256: str | msgspec.UnsetType = msgspec.UNSET


class PolicyVersion(msgspec.Struct, frozen=True, kw_only=True, tag="policy-version/1", tag_field="event"):
    """A usable policy version, announced only after its checkpoint is durable.

    status: "published" or "retired". path: the policy's folder, relative to the run's folder.
    requests_consumed: as in `Update`, or further, because requests that ended without a reward are used up too.
    requests_admitted: per partition of the requests topic, the offset below which requests may be answered now. One
    version may be announced again with higher offsets. manifest_sha256: hash of its checkpoint's manifest. Both are
    absent from records of older writers, and in runs without a learner.
    epoch, holder: of a learner that shares its run with other machines (`streams.lease`); absent elsewhere.
    """

    run: str
    policy: PolicyRef
    parent: PolicyRef | None
    path: str
    status: str = "published"
    requests_consumed: dict[int, int] = {}
    made_at_ms: int = 0
    requests_admitted: dict[int, int] | msgspec.UnsetType = msgspec.UNSET
    manifest_sha256: str | msgspec.UnsetType = msgspec.UNSET
    epoch: int | msgspec.UnsetType = msgspec.UNSET
    holder: str | msgspec.UnsetType = msgspec.UNSET


class DevSet(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One set of dev queries and its means: {measure: mean over the queries}."""

    name: str
    queries: int
    measures: dict[str, float]


class DevScore(msgspec.Struct, frozen=True, kw_only=True, tag="dev-score/1", tag_field="event"):
    """The measures of one policy version on dev queries, decoded as it is served. No dev query trains anything.

    measure: the measure that decides which version is the best. value: the mean of its means over the sets.
    index: the versioned name of the index that was searched.
    """

    run: str
    policy: PolicyRef
    index: str
    measure: str
    value: float
    sets: tuple[DevSet, ...]
    made_at_ms: int = 0


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, tag="dead-letter/1", tag_field="event"):
    """A record that could not be processed: its original bytes, its place, and the reason.

    stage: the worker that gave up ("generator", "environment", "learner", "sink").
    """

    source: Position
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    stage: str
    error: str
    attempts: int
    made_at_ms: int = 0


FATES = ("trained", "flat", "expired", "failed", "rejected", "disputed")
"""The possible fates of a group that an update takes: the names of the fields of `Update` that list groups."""


def fates_of(update: Update) -> dict[str, dict[str, str]]:
    """Return the groups of an update by fate, each with its reason; "" if the fate alone explains it."""
    reasons = {"rejected": update.rejected, "disputed": update.disputed}
    return {
        fate: (reasons[fate] or {}) if fate in reasons else dict.fromkeys(getattr(update, fate), "") for fate in FATES
    }


Event = (
    Request
    | Generation
    | Reward
    | Update
    | PolicyVersion
    | DevScore
    | Feedback
    | Impression
    | UserAction
    | ImpressionOutcome
    | Decision
    | DeadLetter
)


class VersionWindow(msgspec.Struct, frozen=True, kw_only=True, tag="version-window/1", tag_field="event"):
    """The totals of the groups that one policy version wrote in one span of time; derived, and not part of the ledger.

    A group lies in the window of its generation's `made_at_ms`: start_ms ≤ time < end_ms. closed: the window changes no
    more. measured: groups with a scored candidate; the means are over these. flat: groups without spread. unchanged:
    valid answers that left the search unchanged. fates: the fates of the groups in updates, by `Update`'s names.
    staleness: groups taken, by optimizer steps between the policy that wrote them and the one that took them. words:
    the words of the valid answers. repeated: those of them that occur earlier in their own answer. Both are unset where
    they were not counted yet.
    """

    run: str
    lineage: str
    step: int
    start_ms: int
    end_ms: int
    closed: bool
    groups: int
    measured: int
    flat: int
    candidates: int
    scored: int
    failed: int
    valid: int
    unchanged: int
    reward_mean: float | None
    reward_std: float | None
    fates: dict[str, int] = {}
    staleness: dict[int, int] = {}
    words: int | msgspec.UnsetType = msgspec.UNSET
    repeated: int | msgspec.UnsetType = msgspec.UNSET


class StageWindow(msgspec.Struct, frozen=True, kw_only=True, tag="stage-window/1", tag_field="event"):
    """The number of records that one stage gave up on in one span of time; derived.

    A dead letter's `made_at_ms` decides.
    """

    run: str
    stage: str
    start_ms: int
    end_ms: int
    closed: bool
    dead_letters: int


class MonitorState(msgspec.Struct, frozen=True, kw_only=True, tag="monitor-state/1", tag_field="event"):
    """The monitor's reading positions and the totals that belong to no window; derived.

    positions: next offset by "kind/partition". malformed: records that are no event of their topic, by kind.
    duplicates: further records of a group, an update or a dead letter that was already counted. late: records whose
    window was closed when they came. updates: the number of announced updates. policy, learner_positions: of the newest
    update.
    """

    run: str
    positions: dict[str, int] = {}
    malformed: dict[str, int] = {}
    duplicates: int = 0
    late: int = 0
    updates: int = 0
    policy: PolicyRef | None = None
    learner_positions: dict[int, int] = {}


WindowEvent = VersionWindow | StageWindow | MonitorState
