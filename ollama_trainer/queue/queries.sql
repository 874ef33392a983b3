-- name: get
SELECT * FROM runs WHERE run_id = :run_id;

-- name: insert
INSERT INTO runs (run_id, job_id, dataset_ref, experiment_label, fingerprint, spec, state, error,
                  created_at, finished_at)
VALUES (:run_id, :job_id, :dataset_ref, :experiment_label, :fingerprint, :spec, :state, :error,
        :now, CASE :state WHEN 'failed' THEN :now END)
ON CONFLICT (run_id) DO NOTHING;

-- name: next_unfinished
SELECT * FROM runs WHERE state IN ('pending', 'running') ORDER BY state = 'running' DESC, seq
LIMIT 1;

-- name: uncopied
SELECT * FROM runs WHERE state = 'pending' AND dataset_sha256 IS NULL ORDER BY seq;

-- name: queue_position
SELECT count(*) FROM runs WHERE state = 'pending' AND seq <= :seq;

-- name: count_unfinished
SELECT state, count(*) AS n FROM runs WHERE state IN ('pending', 'running') GROUP BY state;

-- name: dataset_copied
UPDATE runs SET dataset_sha256 = :sha256, dataset_bytes = :n_bytes
WHERE run_id = :run_id AND state = 'pending';

-- name: fail_pending
UPDATE runs SET state = 'failed', error = :error, finished_at = :now
WHERE run_id = :run_id AND state = 'pending';

-- name: claim
UPDATE runs SET state = 'running', attempt = attempt + 1, started_at = coalesce(started_at, :now),
                worker_pid = NULL, worker_started = NULL
WHERE run_id = :run_id AND attempt = :attempt AND state IN ('pending', 'running');

-- name: worker_started
UPDATE runs SET worker_pid = :pid, worker_started = :started
WHERE run_id = :run_id AND attempt = :attempt AND state = 'running';

-- name: worker_stopped
UPDATE runs SET worker_pid = NULL, worker_started = NULL
WHERE run_id = :run_id AND attempt = :attempt AND state = 'running';

-- name: worker_lost
UPDATE runs SET worker_pid = NULL, worker_started = NULL, losses = losses + 1
WHERE run_id = :run_id AND attempt = :attempt AND state = 'running';

-- name: progress
UPDATE runs SET progress = :progress
WHERE run_id = :run_id AND attempt = :attempt AND state = 'running';

-- name: finish
UPDATE runs SET state = :state, error = :error, result = :result,
                output_model_ref = :output_model_ref, finished_at = :now,
                worker_pid = NULL, worker_started = NULL
WHERE run_id = :run_id AND attempt = :attempt AND state IN ('pending', 'running');
