-- Attempts, events and publications get tables of their own, and a run can wait and be cancelled.

CREATE TABLE workers_1 AS
SELECT run_id, attempt, worker_pid, worker_started, started_at FROM runs
WHERE state = 'running' AND worker_pid IS NOT NULL;

CREATE TABLE runs_2 (
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
    -- Workers lost in a row since something was saved last.
    losses INTEGER NOT NULL DEFAULT 0,
    -- How often the batch was halved because memory ran out.
    halvings INTEGER NOT NULL DEFAULT 0,
    -- Waiting as JSON: what went wrong in a way that may pass, kept until the run gets further.
    waiting TEXT,
    -- Set while the run waits: no attempt begins before.
    not_before TEXT,
    cancel_requested_at TEXT,
    -- Bytes of the worker's events.jsonl that stand in the table events.
    events_offset INTEGER NOT NULL DEFAULT 0,
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
    CHECK ((state IN ('completed', 'failed')) = (finished_at IS NOT NULL)),
    CHECK (not_before IS NULL OR (waiting IS NOT NULL AND state IN ('pending', 'running')))
);

INSERT INTO runs_2 (
    seq, run_id, job_id, dataset_ref, experiment_label, fingerprint, spec, state, attempt, losses,
    dataset_sha256, dataset_bytes, progress, error, result, output_model_ref,
    created_at, started_at, finished_at
)
SELECT
    seq, run_id, job_id, dataset_ref, experiment_label, fingerprint, spec, state, attempt, losses,
    dataset_sha256, dataset_bytes, progress, error, result, output_model_ref,
    created_at, started_at, finished_at
FROM runs;

DROP TABLE runs;
ALTER TABLE runs_2 RENAME TO runs;

CREATE INDEX runs_state ON runs (state, seq);
CREATE INDEX runs_job ON runs (job_id, seq);

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

CREATE TRIGGER runs_deletion BEFORE DELETE ON runs
WHEN OLD.state NOT IN ('completed', 'failed')
BEGIN
    SELECT RAISE(ABORT, 'an unfinished run is never deleted');
END;

-- Each start of a worker.
CREATE TABLE attempts (
    -- Grows for ever: a worker whose token is not the newest of its run has been given up.
    token INTEGER PRIMARY KEY AUTOINCREMENT,
    run_seq INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    task TEXT NOT NULL CHECK (task IN ('run', 'publish', 'withdraw')),
    attempt INTEGER NOT NULL,
    -- With the pid, the start time (seconds since the epoch) names one process for ever.
    worker_pid INTEGER,
    worker_started REAL,
    started_at TEXT NOT NULL,
    heartbeat_at TEXT,
    ended_at TEXT,
    outcome TEXT CHECK (outcome IN ('completed', 'failed', 'lost', 'stopped', 'cancelled')),
    -- ErrorInfo as JSON.
    error TEXT,
    CHECK ((outcome IS NULL) = (ended_at IS NULL))
);

CREATE INDEX attempts_run ON attempts (run_seq, token);

CREATE TRIGGER attempts_ended BEFORE UPDATE ON attempts
WHEN OLD.outcome IS NOT NULL
BEGIN
    SELECT RAISE(ABORT, 'an ended attempt never changes');
END;

INSERT INTO attempts (run_seq, task, attempt, worker_pid, worker_started, started_at)
SELECT runs.seq, 'run', old.attempt, old.worker_pid, old.worker_started, old.started_at
FROM workers_1 AS old JOIN runs USING (run_id);

DROP TABLE workers_1;

-- What happened, in order. The event of the terminal state is the last one of its run.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_seq INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    time TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('stage', 'progress', 'note', 'saved', 'state')),
    message TEXT NOT NULL DEFAULT '',
    -- As JSON.
    progress TEXT,
    data TEXT NOT NULL DEFAULT '{}'
);

CREATE INDEX events_run ON events (run_seq, id);

CREATE TRIGGER events_update BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'an event never changes');
END;

CREATE TRIGGER events_delete BEFORE DELETE ON events
WHEN EXISTS (SELECT 1 FROM runs WHERE seq = OLD.run_seq)
BEGIN
    SELECT RAISE(ABORT, 'events go with their run alone');
END;

CREATE TRIGGER events_end BEFORE INSERT ON events
WHEN (SELECT state FROM runs WHERE seq = NEW.run_seq) IN ('completed', 'failed')
BEGIN
    SELECT RAISE(ABORT, 'nothing happens to a finished run');
END;

-- Finished runs whose model was to be published once more.
CREATE TABLE publications (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_seq INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    publisher TEXT NOT NULL CHECK (publisher IN ('ollama', 'folder')),
    state TEXT NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'running', 'completed', 'failed')),
    losses INTEGER NOT NULL DEFAULT 0,
    output_model_ref TEXT,
    -- ErrorInfo as JSON.
    error TEXT,
    requested_at TEXT NOT NULL,
    finished_at TEXT,
    CHECK ((state = 'completed') = (coalesce(output_model_ref, '') <> '')),
    CHECK ((state = 'failed') = (error IS NOT NULL)),
    CHECK ((state IN ('completed', 'failed')) = (finished_at IS NOT NULL))
);

CREATE UNIQUE INDEX publications_unfinished ON publications (run_seq)
WHERE state IN ('pending', 'running');
CREATE INDEX publications_run ON publications (run_seq, id);

CREATE TRIGGER publications_terminal BEFORE UPDATE ON publications
WHEN OLD.state IN ('completed', 'failed')
BEGIN
    SELECT RAISE(ABORT, 'a finished publication never changes');
END;

-- Finished runs whose big files were removed.
CREATE TABLE pruned (
    run_seq INTEGER PRIMARY KEY REFERENCES runs (seq) ON DELETE CASCADE,
    pruned_at TEXT NOT NULL
);
