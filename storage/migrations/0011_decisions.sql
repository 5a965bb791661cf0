-- Decisions about which version people see, with their reasons and figures.
CREATE TABLE decisions (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, decision_id VARCHAR, version VARCHAR, kind VARCHAR, share DOUBLE, reason VARCHAR,
    evidence MAP(VARCHAR, DOUBLE), "by" VARCHAR, at_ms BIGINT, made_at_ms BIGINT
);

CREATE VIEW first_decisions AS
SELECT * FROM decisions WHERE topic LIKE '%.decisions'
QUALIFY row_number() OVER (PARTITION BY run, decision_id ORDER BY partition, record_offset) = 1;
