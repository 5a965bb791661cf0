"""How Elasticsearch lays out the indexes that we make: shards, replicas, and how segments are merged."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from streams.descriptions import describe


class IndexLayout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the indexes that `searchloop index` makes. Attached indexes keep their own."""

    shards: Annotated[
        int,
        msgspec.Meta(ge=1, le=1024),
        describe(
            "Primary shards of a new index. One shard holds some 50 GB well. Several weigh words each by its "
            "own documents, so scores differ a little from those of one shard."
        ),
    ] = 1
    replicas: Annotated[
        int,
        msgspec.Meta(ge=0, le=16),
        describe("Copies of each shard on other nodes. They answer searches, too, and outlive a node."),
    ] = 0
    segments: Annotated[
        int,
        msgspec.Meta(ge=0, le=1000),
        describe(
            "Segments of a shard to which a loaded index is merged. 1 searches fastest, and merging needs room for a "
            "second copy. 0 leaves the segments as they are."
        ),
    ] = 1
    segments_per_tier: Annotated[
        int,
        msgspec.Meta(ge=2, le=100),
        describe("Elasticsearch's index.merge.policy.segments_per_tier. More segments load faster."),
    ] = 10
    merged_segment_max_mib: Annotated[
        int,
        msgspec.Meta(ge=16, le=1 << 20),
        describe(
            "Elasticsearch's index.merge.policy.max_merged_segment, in MiB: the largest segment made while loading."
        ),
    ] = 5120

    def settings(self) -> dict[str, Any]:
        """Return the settings with which an index is created."""
        return {
            "number_of_shards": self.shards,
            "number_of_replicas": self.replicas,
            "merge.policy.segments_per_tier": self.segments_per_tier,
            "merge.policy.max_merged_segment": f"{self.merged_segment_max_mib}mb",
        }


ONE_SHARD = IndexLayout()
