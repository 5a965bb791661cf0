"""What somebody does to the records themselves, in some copies or in all, with a ledger that fits."""

from __future__ import annotations

import msgspec

from streams.events import DeadLetter, Generation, PolicyVersion, Request, Reward, Update
from streams.ids import group_id
from tests.finished_run import UPDATES, policy
from tests.stored_events import RUN
from tests.tampering.kinds import (
    GROUP,
    KAFKA,
    all_failed,
    at_step,
    completion,
    embedded,
    files,
    log,
    metric,
    of_split,
    outcome,
    renamed,
    replace,
    twice_named,
)

LOG_TAMPERINGS = (
    # The log written anew, with a ledger that fits.
    log(
        "a reward's value changed",
        "metrics follow from rewards",
        Reward,
        outcome(lambda o: replace(o, reward=0.99)),
        topics=True,
    ),
    # Parts of a reward stand nowhere else: without Kafka's own copy nothing sees it.
    replace(
        log("a reward's components changed", "bytes are kept", Reward, outcome(lambda o: replace(o, components={}))),
        modes=KAFKA,
    ),
    log(
        "a reward beyond every bound",
        "nothing that must be refused trains",
        Reward,
        outcome(lambda o: replace(o, reward=1e30)),
        topics=True,
    ),
    replace(
        log(
            "a prompt that is not the one that was hashed",
            "nothing that must be refused trains",
            Reward,
            lambda e: replace(e, generation=replace(e.generation, prompt_token_ids=(1, 2, 3))),
        ),
        kafka_rule="bytes are kept",
    ),
    log("a metric of an older update changed", "chain of hashes", Update, at_step(2, metric(9.0)), topics=True),
    log(
        "a metric of the newest update changed",
        "manifests tell their update",
        Update,
        at_step(UPDATES, metric(9.0)),
        topics=True,
    ),
    log("every trained group counted as failed", "fates follow from the log", Update, all_failed, topics=True),
    log(
        "every trained group of an update counted as failed",
        "chain of hashes",
        Update,
        at_step(2, all_failed),
        topics=True,
    ),
    log(
        "a dead letter holds other bytes",
        "embedded is what was written",
        DeadLetter,
        lambda e: replace(e, value=b"other"),
        topics=True,
    ),
    files("every copy: a trained group of split test", "only train trains", of_split("test")),
    files("every copy: a trained group of split live", "only train trains", of_split("live")),
    files("every copy: a group's id made up", "ids are functions of the log", renamed),
    log("a reward holds another text", "embedded is what was written", Reward, embedded(text="other"), topics=True),
    log(
        "a reward holds other log-probabilities",
        "embedded is what was written",
        Reward,
        embedded(logprobs=(-0.5,) * 12),
        topics=True,
    ),
    log(
        "a generation changed under its reward",
        "rewards answer generations",
        Generation,
        lambda e: completion(e, token_ids=(7,) * 12),
        topics=True,
    ),
    log(
        "a generation changed, its reward's hash adjusted",
        "embedded is what was written",
        Generation,
        lambda e: completion(e, token_ids=(7,) * 12),
        topics=True,
        rehash=True,
    ),
    log(
        "a generation of another request",
        "embedded is what was written",
        Generation,
        lambda e: replace(e, request=replace(e.request, query="another")) if e.group_id == GROUP else e,
        topics=True,
    ),
    log(
        "a request's context changed",
        "embedded is what was written",
        Request,
        lambda e: replace(e, context=replace(e.context, terms=())) if e.request_id == "request-2" else e,
        topics=True,
    ),
    log(
        "a generation answers another request",
        "ids are functions of the log",
        Generation,
        lambda e: replace(e, group_id=group_id(RUN, replace(e.source, offset=3))) if e.group_id == GROUP else e,
        topics=True,
    ),
    log(
        "an update without its hashes",
        "chain of hashes",
        Update,
        at_step(3, lambda e: replace(e, parent_update_sha256=msgspec.UNSET, parent_manifest_sha256=msgspec.UNSET)),
        topics=True,
    ),
    log(
        "an announced version with another parent",
        "one name, one version",
        PolicyVersion,
        lambda e: replace(e, parent=policy(1)) if e.policy.step == 3 else e,
        topics=True,
    ),
    log(
        "an announced version at another place",
        "one name, one version",
        PolicyVersion,
        lambda e: replace(e, path=e.path.replace("3", "2")) if e.policy.step == 3 else e,
        topics=True,
    ),
    log(
        "an announced version with fewer requests used up",
        "one name, one version",
        PolicyVersion,
        lambda e: replace(e, requests_consumed={0: 1}) if e.policy.step == 3 else e,
        topics=True,
    ),
    log(
        "an update's positions set back",
        "positions only grow",
        Update,
        at_step(4, lambda e: replace(e, positions={0: 1})),
        topics=True,
    ),
    log(
        "used-up requests set back",
        "positions only grow",
        Update,
        at_step(4, lambda e: replace(e, requests_consumed={0: 1})),
        topics=True,
    ),
    log(
        "requests used up too early",
        "used up is used up",
        Update,
        at_step(3, lambda e: replace(e, requests_consumed={0: 20})),
        topics=True,
    ),
    log(
        "an update read too little",
        "positions cover what was taken",
        Update,
        at_step(2, lambda e: replace(e, positions={0: 6})),
        topics=True,
    ),
    log(
        "the fates of an update taken out",
        "every group taken",
        Update,
        at_step(2, lambda e: replace(e, trained=(), flat=())),
        topics=True,
    ),
    log(
        "a group moved into a second update",
        "at most one gradient",
        Update,
        at_step(2, lambda e: replace(e, trained=(*e.trained, GROUP))),
        topics=True,
    ),
    log("an update left out", "lineage", Update, lambda e: None if e.policy.step == 2 else e, topics=True),
    log(
        "a version announced with another manifest",
        "manifests are the announced ones",
        PolicyVersion,
        lambda e: replace(e, manifest_sha256="0" * 64) if e.policy.step == UPDATES else e,
        topics=True,
    ),
    log(
        "a version announced once with another manifest",
        "one name, one version",
        PolicyVersion,
        lambda e: (
            replace(e, policy=policy(1), manifest_sha256="0" * 64)
            if e.policy.step == 2 and e.status == "published"
            else e
        ),
        topics=True,
    ),
    log(
        "a version announced without its manifest's hash",
        "chain of hashes",
        PolicyVersion,
        lambda e: replace(e, manifest_sha256=msgspec.UNSET) if e.policy.step == 2 else e,
        topics=True,
    ),
    files("every copy: a repeated announcement changed", "one name, one version", twice_named),
)
