-- What people saw and did, as it came, and joined: one outcome per impression is final.
CREATE TABLE impressions (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, impression_id VARCHAR, query_id VARCHAR, query VARCHAR, application VARCHAR, client VARCHAR,
    session VARCHAR, shown STRUCT(document_id VARCHAR, rank BIGINT)[], at_ms BIGINT, policy VARCHAR,
    action_propensity DOUBLE, offered MAP(VARCHAR, DOUBLE), index VARCHAR, made_at_ms BIGINT
);

CREATE TABLE user_actions (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, action_id VARCHAR, impression_id VARCHAR, kind VARCHAR, document_id VARCHAR, at_ms BIGINT,
    made_at_ms BIGINT
);

CREATE TABLE impression_outcomes (
    topic VARCHAR NOT NULL, partition INTEGER NOT NULL, record_offset BIGINT NOT NULL, record_time_ms BIGINT NOT NULL,
    run VARCHAR NOT NULL, impression_id VARCHAR, query_id VARCHAR, query VARCHAR, application VARCHAR, client VARCHAR,
    shown STRUCT(document_id VARCHAR, rank BIGINT)[], at_ms BIGINT, policy VARCHAR, action_propensity DOUBLE,
    actions STRUCT(action_id VARCHAR, kind VARCHAR, document_id VARCHAR, at_ms BIGINT)[], final BOOLEAN,
    made_at_ms BIGINT
);

CREATE VIEW first_impressions AS
SELECT * FROM impressions WHERE topic LIKE '%.impressions'
QUALIFY row_number() OVER (PARTITION BY run, impression_id ORDER BY partition, record_offset) = 1;

CREATE VIEW first_user_actions AS
SELECT * FROM user_actions WHERE topic LIKE '%.actions'
QUALIFY row_number() OVER (PARTITION BY run, action_id ORDER BY partition, record_offset) = 1;

CREATE VIEW final_outcomes AS
SELECT * FROM impression_outcomes WHERE topic LIKE '%.impression-outcomes' AND final
QUALIFY row_number() OVER (PARTITION BY run, impression_id ORDER BY partition, record_offset) = 1;
