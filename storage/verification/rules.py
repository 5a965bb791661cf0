"""Every rule of the proof, in one table: its claim, and the modes that can see a breach of it.

`infra/VERIFY.md` shows this table, and a test compares the two.
"""

from __future__ import annotations

import msgspec

EVERY = "every mode"
BYTES = "every mode for the newest records, `--rebuild` for all"
TOPICS = "with Kafka"


class Rule(msgspec.Struct, frozen=True):
    """A rule's claim, and the modes that can see a breach of it."""

    proves: str
    modes: str = EVERY


RULES = {
    # Places.
    "everything can be read": Rule("ledger, archive, checkpoints and settings can be read, whole"),
    "nothing shadows the ledger": Rule(
        "the ledger's tables and views are those that searchloop makes, and nothing else in it could answer for them"
    ),
    "nothing lost": Rule("every offset below the ledger's position has a kept record, or never had a record in Kafka"),
    "one row a record": Rule("each kept record has exactly one row, or is the sink's dead letter"),
    "bytes are kept": Rule(
        "each row's record is kept byte for byte; if Kafka still holds it, the two are equal",
        f"{EVERY}; equality with Kafka's bytes: {TOPICS}, {BYTES}",
    ),
    "offsets": Rule("the ledger's positions and counts are those of its records, and Kafka's log is as long"),
    "archive": Rule("each listed segment exists, has the listed hash, and holds the records that its name gives"),
    "rebuilt from the log": Rule(
        "the rows of the ledger equal the rows rebuilt from the records' bytes, number for number", BYTES
    ),
    # Stages.
    "requests end": Rule("each request below the checked end has a generation or a dead letter"),
    "one outcome a candidate": Rule("each candidate below the checked end has exactly one outcome"),
    "terminal outcomes": Rule("an outcome is scored with a finite reward, or failed without one"),
    "one row a candidate": Rule("each candidate of a generation has one row, and each reward one outcome for it"),
    "rewards answer generations": Rule(
        "a reward names a generation of its own group, by its place and by the hash of its bytes",
        f"{EVERY}; the hash: {BYTES}",
    ),
    "first in the log wins": Rule("the first reward of a group answers its first generation"),
    # People.
    "one outcome an impression": Rule(
        "an impression that was read, and whose window has ended, has one final outcome, or a dead letter",
        f"{EVERY}; a lost one: with the joiner's state",
    ),
    "an action counts once": Rule(
        "an action counts for at most one impression, which showed its document, and is no dead letter then"
    ),
    # Identities.
    "ids are functions of the log": Rule("a group's id is computed from its request's place; one request, one group"),
    "sources are in the log": Rule("the request that a generation answers is in the log"),
    "versions are announced": Rule("every version that wrote a group or that an update made was announced"),
    "one name, one version": Rule(
        "a version's name stands for one update, one set of weights and one manifest; its announcement names the "
        "update's parent, its own place, and no fewer used-up requests than the update"
    ),
    "embedded is what was written": Rule(
        "a generation holds its request, a reward its generation, a dead letter its record, as they are in the log",
        f"{EVERY} for texts, ids and versions; tokens, log-probabilities and dead letters: {BYTES}",
    ),
    # The chain.
    "lineage": Rule("the updates lead from the newest checkpoint to the version that the run began with"),
    "head is the newest": Rule("the newest checkpoint builds on the newest update in the log"),
    "chain of hashes": Rule(
        "an update names the hash of the update before it and of the manifest that it started from; once recorded, "
        "the chain never stops"
    ),
    "positions only grow": Rule("along the chain, the positions and the used-up requests never go back"),
    "trusted value": Rule("the value that you kept is in the chain, so everything that led to it is unchanged"),
    # Gradients.
    "at most one gradient": Rule("no group gave two gradients along the chain, and none has two fates"),
    "gradients come from rewards": Rule("each group that an update took has a reward in the log"),
    "every group taken": Rule("each group below the learner's position was taken by an update of the chain"),
    "positions cover what was taken": Rule(
        "the groups that an update took lie between its parent's positions and its own"
    ),
    "fates follow from the log": Rule(
        "trained needs two different rewards within the staleness limit; flat, equal ones; expired, age; failed, fewer "
        "than two scored candidates"
    ),
    "only train trains": Rule("no update takes a group of split dev, test or live"),
    "used up is used up": Rule(
        "no group trains whose request an earlier update of the chain had used up, unless a dead letter was sent again"
    ),
    "nothing that must be refused trains": Rule(
        "a group that trained is of this run, sound, within bounds and written by a version that existed", BYTES
    ),
    "reasons are given": Rule("each rejected or disputed group has its reason"),
    "metrics follow from rewards": Rule(
        "an update's reward_mean, reward_std, validity and failed_share are those of its groups"
    ),
    "rewards follow from clicks": Rule(
        "a reward from clicks that trained is, number for number, what the final outcomes that it names give, without "
        "those of bots, copies and later ones",
        f"{EVERY}; with the ledger of the live run beside",
    ),
    # Checkpoints.
    "checkpoints": Rule("each kept checkpoint is whole: manifest, its hash, and every file that it lists, no others"),
    "weights are the policy's": Rule("the weights in a kept checkpoint have the hash that the policy's name carries"),
    "manifests are the announced ones": Rule("a kept checkpoint's manifest has the hash that was announced"),
    "manifests tell their update": Rule(
        "policy, parent, positions, used-up requests and update of a manifest are those in the log"
    ),
    "the beginning is kept": Rule("the version that the run began with was announced and still exists"),
    # The end.
    "everything is stored": Rule(
        "the ledger has stored all records that Kafka holds, unless a worker is alive", TOPICS
    ),
    "the run has ended": Rule("the run reached its updates, unless a worker is alive: nothing waits forever"),
}
