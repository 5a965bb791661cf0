-- How well a policy version serves the dev queries: one row per version that was measured while the run learned.
CREATE TABLE dev_scores (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, lineage VARCHAR, step BIGINT, weights_sha256 VARCHAR, index VARCHAR, measure VARCHAR,
    value DOUBLE, sets STRUCT("name" VARCHAR, queries BIGINT, measures MAP(VARCHAR, DOUBLE))[], made_at_ms BIGINT
);

CREATE VIEW first_dev_scores AS
SELECT * FROM dev_scores WHERE topic LIKE '%.dev-scores'
QUALIFY row_number() OVER (PARTITION BY run, lineage, step, weights_sha256 ORDER BY record_offset) = 1;
