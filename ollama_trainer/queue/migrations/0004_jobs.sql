-- What the runs of a job get that ask for nothing else.
CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY,
    -- Fields of a request to train, as JSON.
    options TEXT NOT NULL,
    -- ISO 8601, UTC.
    updated_at TEXT NOT NULL
) WITHOUT ROWID;
