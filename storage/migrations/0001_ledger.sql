-- The ledger: what the log says, row by row, nothing left out and nothing judged. No primary keys: a record that stands
-- twice in the log stands twice here, and views decide which one counts. Every row begins with its record's place.

-- How far each partition is stored. The next record to read is next_offset; gaps = next_offset - first_offset - records.
CREATE TABLE sink_offsets (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, first_offset BIGINT NOT NULL, next_offset BIGINT NOT NULL,
    records BIGINT NOT NULL, undecodable BIGINT NOT NULL, PRIMARY KEY (topic, partition)
);

-- Records as they came, byte for byte, until the archive has taken them over. The archive compresses them once and for
-- all: to compress them here too cost four times as much as everything else in a transaction together.
CREATE TABLE records (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    kind VARCHAR NOT NULL, "key" BLOB, "value" BLOB USING COMPRESSION uncompressed,
    headers STRUCT("name" VARCHAR, "value" BLOB)[]
);

-- Closed segments of the archive; path is relative to the archive's folder. A file that is not listed does not count.
CREATE TABLE archive_segments (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, first_offset BIGINT NOT NULL, last_offset BIGINT NOT NULL,
    records BIGINT NOT NULL, bytes BIGINT NOT NULL, sha256 VARCHAR NOT NULL, path VARCHAR NOT NULL
);

CREATE TABLE requests (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, request_id VARCHAR, query_id VARCHAR, query VARCHAR, index VARCHAR, split VARCHAR,
    context_terms VARCHAR[], context_attributes VARCHAR[], context_neighbours VARCHAR[], context_documents BIGINT,
    made_at_ms BIGINT
);

CREATE TABLE generations (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, group_id VARCHAR, request_id VARCHAR, query_id VARCHAR, query VARCHAR, index VARCHAR,
    split VARCHAR, source_topic VARCHAR, source_partition BIGINT, source_offset BIGINT, lineage VARCHAR, step BIGINT,
    weights_sha256 VARCHAR, tokenizer_sha256 VARCHAR, prompt_sha256 VARCHAR, candidates BIGINT, temperature DOUBLE,
    tokens_max BIGINT, no_repeat BOOLEAN, prompt_tokens BIGINT, made_at_ms BIGINT
);

-- One row per candidate as the policy wrote it.
CREATE TABLE candidates (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, group_id VARCHAR, candidate BIGINT, text VARCHAR, finish VARCHAR, tokens BIGINT,
    logprob_sum DOUBLE
);

CREATE TABLE rewards (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, group_id VARCHAR, request_id VARCHAR, query_id VARCHAR, query VARCHAR, split VARCHAR,
    source_topic VARCHAR, source_partition BIGINT, source_offset BIGINT, content_sha256 VARCHAR, lineage VARCHAR,
    step BIGINT, weights_sha256 VARCHAR, index VARCHAR, relevance_model VARCHAR, reward_sha256 VARCHAR,
    search_body VARCHAR, raw_hits STRUCT(document_id VARCHAR, "rank" BIGINT, score DOUBLE)[], made_at_ms BIGINT
);

-- One row per candidate as the search environment judged it, with the text that it judged.
CREATE TABLE outcomes (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, group_id VARCHAR, candidate BIGINT, status VARCHAR, valid BOOLEAN, expansions VARCHAR[],
    reward DOUBLE, components MAP(VARCHAR, DOUBLE), hits STRUCT(document_id VARCHAR, "rank" BIGINT, score DOUBLE)[],
    error VARCHAR, text VARCHAR
);

CREATE TABLE updates (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, lineage VARCHAR, step BIGINT, weights_sha256 VARCHAR, parent_lineage VARCHAR,
    parent_step BIGINT, parent_sha256 VARCHAR, positions MAP(BIGINT, BIGINT), requests_consumed MAP(BIGINT, BIGINT),
    metrics MAP(VARCHAR, DOUBLE), made_at_ms BIGINT
);

-- One row per group that an update took from the rewards; fate: trained, flat, expired or failed.
CREATE TABLE update_groups (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, group_id VARCHAR, fate VARCHAR, lineage VARCHAR, step BIGINT, parent_lineage VARCHAR,
    parent_step BIGINT
);

CREATE TABLE policy_versions (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, lineage VARCHAR, step BIGINT, weights_sha256 VARCHAR, parent_lineage VARCHAR,
    parent_step BIGINT, parent_sha256 VARCHAR, path VARCHAR, status VARCHAR, requests_consumed MAP(BIGINT, BIGINT),
    made_at_ms BIGINT
);

-- Records that some worker gave up on. The sink's own stand here too, beside the record that comes through the topic:
-- the view `dead_letter` holds each once.
CREATE TABLE dead_letters (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, source_topic VARCHAR, source_partition BIGINT, source_offset BIGINT, stage VARCHAR,
    error VARCHAR, attempts BIGINT, "key" BLOB, "value" BLOB, headers STRUCT("name" VARCHAR, "value" BLOB)[],
    made_at_ms BIGINT
);
