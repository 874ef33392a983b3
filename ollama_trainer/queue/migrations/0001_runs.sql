CREATE TABLE runs (
    -- Order of acceptance.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    -- Without case: it names a directory and an Ollama tag, and neither tells "A" from "a" everywhere.
    run_id TEXT NOT NULL UNIQUE COLLATE NOCASE,
    job_id TEXT NOT NULL,
    dataset_ref TEXT NOT NULL,
    experiment_label TEXT,
    -- SHA-256 of what the caller asked for; tells a repeated request from another one.
    fingerprint TEXT NOT NULL,
    -- RunSpec as JSON; NULL where the request was refused.
    spec TEXT,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'completed', 'failed')),
    -- Fencing number: only the holder of the newest may write.
    attempt INTEGER NOT NULL DEFAULT 0,
    -- Attempts whose worker was lost together with its server.
    losses INTEGER NOT NULL DEFAULT 0,
    -- Set while a worker of the newest attempt may live.
    worker_pid INTEGER,
    -- Seconds since the epoch; with the pid it names one process for ever.
    worker_started REAL,
    -- Set when the data set is copied; lower-case hex.
    dataset_sha256 TEXT,
    dataset_bytes INTEGER,
    -- Progress, ErrorInfo and RunResult as JSON.
    progress TEXT,
    error TEXT,
    result TEXT,
    output_model_ref TEXT,
    -- ISO 8601, UTC.
    created_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    CHECK (state <> 'completed' OR coalesce(output_model_ref, '') <> ''),
    CHECK (state = 'completed' OR output_model_ref IS NULL),
    CHECK (state <> 'failed' OR error IS NOT NULL),
    CHECK ((state IN ('completed', 'failed')) = (finished_at IS NOT NULL))
);

CREATE INDEX runs_unfinished ON runs (state, seq) WHERE state IN ('pending', 'running');

CREATE TRIGGER runs_terminal BEFORE UPDATE ON runs
WHEN OLD.state IN ('completed', 'failed')
BEGIN
    SELECT RAISE(ABORT, 'a finished run never changes');
END;

CREATE TRIGGER runs_transition BEFORE UPDATE OF state ON runs
WHEN NOT (
    OLD.state = NEW.state
    OR (OLD.state = 'pending' AND NEW.state IN ('running', 'failed'))
    OR (OLD.state = 'running' AND NEW.state IN ('completed', 'failed'))
)
BEGIN
    SELECT RAISE(ABORT, 'no such transition of a run');
END;

CREATE TRIGGER runs_fencing BEFORE UPDATE OF attempt ON runs
WHEN NEW.attempt < OLD.attempt
BEGIN
    SELECT RAISE(ABORT, 'the attempt of a run never goes back');
END;
