-- What people did with what they were shown: one row per search.
CREATE TABLE feedback (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, feedback_id VARCHAR, query_id VARCHAR, query VARCHAR, application VARCHAR, client VARCHAR,
    session VARCHAR, shown STRUCT(document_id VARCHAR, "rank" BIGINT)[],
    actions STRUCT(kind VARCHAR, document_id VARCHAR, "rank" BIGINT, at_ms BIGINT)[], at_ms BIGINT, made_at_ms BIGINT
);

CREATE VIEW first_feedback AS
SELECT * FROM feedback WHERE topic LIKE '%.feedback'
QUALIFY row_number() OVER (PARTITION BY run, feedback_id ORDER BY record_offset) = 1;
