-- name: get
SELECT * FROM runs WHERE run_id = :run_id;

-- name: insert
INSERT INTO runs (run_id, job_id, dataset_ref, experiment_label, fingerprint, spec, state,
                  created_at)
VALUES (:run_id, :job_id, :dataset_ref, :experiment_label, :fingerprint, :spec, 'pending', :now)
ON CONFLICT (run_id) DO NOTHING;

-- name: list
SELECT * FROM runs WHERE seq < :before ORDER BY seq DESC LIMIT :limit;

-- name: list_job
SELECT * FROM runs WHERE job_id = :job_id AND seq < :before ORDER BY seq DESC LIMIT :limit;

-- name: list_job_state
SELECT * FROM runs WHERE job_id = :job_id AND state = :state AND seq < :before
ORDER BY seq DESC LIMIT :limit;

-- name: list_state
SELECT * FROM runs WHERE state = :state AND seq < :before ORDER BY seq DESC LIMIT :limit;

-- name: next_running
SELECT * FROM runs
WHERE state = 'running'
      AND (not_before IS NULL OR (not_before <= :now AND cancel_requested_at IS NULL))
ORDER BY not_before IS NOT NULL, not_before, seq LIMIT 1;

-- name: cancelled_waiting
SELECT * FROM runs
WHERE state = 'running' AND not_before IS NOT NULL AND cancel_requested_at IS NOT NULL;

-- name: next_pending
SELECT * FROM runs WHERE state = 'pending' AND not_before IS NULL ORDER BY seq LIMIT 1;

-- name: next_time
SELECT min(not_before) FROM runs WHERE state = 'running';

-- name: uncopied
SELECT * FROM runs WHERE state = 'pending' AND dataset_sha256 IS NULL ORDER BY seq;

-- name: queue_position
SELECT count(*) FROM runs WHERE state = 'pending' AND seq <= :seq;

-- name: count_unfinished
SELECT state, count(*) AS n FROM runs WHERE state IN ('pending', 'running') GROUP BY state;

-- name: dataset_copied
UPDATE runs SET dataset_sha256 = :sha256, dataset_bytes = :n_bytes, waiting = NULL,
                not_before = NULL
WHERE run_id = :run_id AND state = 'pending';

-- name: dataset_waits
UPDATE runs SET waiting = :waiting, not_before = :not_before
WHERE run_id = :run_id AND state = 'pending';

-- name: fail_pending
UPDATE runs SET state = 'failed', error = :error, finished_at = :now, waiting = NULL,
                not_before = NULL
WHERE run_id = :run_id AND state = 'pending';

-- name: claim
UPDATE runs SET state = 'running', attempt = attempt + 1, started_at = coalesce(started_at, :now),
                not_before = NULL
WHERE seq = :seq AND attempt = :attempt AND state IN ('pending', 'running')
      AND cancel_requested_at IS NULL;

-- name: lost
UPDATE runs SET losses = losses + 1
WHERE seq = :seq AND attempt = :attempt AND state = 'running';

-- name: recorded
UPDATE runs SET progress = coalesce(:progress, progress), events_offset = :offset,
                losses = iif(:saved, 0, losses), waiting = iif(:saved AND not_before IS NULL, NULL, waiting)
WHERE seq = :seq AND attempt = :attempt AND state = 'running';

-- name: wait
UPDATE runs SET waiting = :waiting, not_before = :not_before, halvings = :halvings
WHERE seq = :seq AND attempt = :attempt AND state = 'running';

-- name: finish
UPDATE runs SET state = :state, error = :error, result = :result,
                output_model_ref = :output_model_ref, finished_at = :now, waiting = NULL,
                not_before = NULL
WHERE seq = :seq AND attempt = :attempt AND state IN ('pending', 'running');

-- name: cancel
UPDATE runs SET cancel_requested_at = :now
WHERE run_id = :run_id AND state = 'running' AND cancel_requested_at IS NULL;

-- name: delete
DELETE FROM runs WHERE run_id = :run_id AND state IN ('completed', 'failed');

-- name: attempt_begin
INSERT INTO attempts (run_seq, task, attempt, started_at) VALUES (:seq, :task, :attempt, :now);

-- name: attempt_worker
UPDATE attempts SET worker_pid = :pid, worker_started = :started, heartbeat_at = :now
WHERE token = :token AND outcome IS NULL;

-- name: attempt_beat
UPDATE attempts SET heartbeat_at = :now WHERE token = :token AND outcome IS NULL;

-- name: attempt_end
UPDATE attempts SET outcome = :outcome, error = :error, ended_at = :now
WHERE run_seq = :seq AND outcome IS NULL;

-- name: attempts
SELECT * FROM attempts WHERE run_seq = :seq ORDER BY token;

-- name: attempt_open
SELECT * FROM attempts WHERE run_seq = :seq AND outcome IS NULL ORDER BY token DESC LIMIT 1;

-- name: event_insert
INSERT INTO events (run_seq, attempt, time, kind, message, progress, data)
VALUES (:seq, :attempt, :time, :kind, :message, :progress, :data);

-- name: events
SELECT * FROM events WHERE run_seq = :seq AND id > :after ORDER BY id LIMIT :limit;

-- name: publication_insert
INSERT INTO publications (run_seq, publisher, requested_at) VALUES (:seq, :publisher, :now)
ON CONFLICT DO NOTHING;

-- name: publication_next
SELECT publications.*, runs.run_id
FROM publications INDEXED BY publications_unfinished JOIN runs ON seq = run_seq
WHERE publications.state IN ('pending', 'running') ORDER BY id LIMIT 1;

-- name: publication_unfinished
SELECT * FROM publications WHERE run_seq = :seq AND state IN ('pending', 'running');

-- name: publications
SELECT * FROM publications WHERE run_seq = :seq ORDER BY id;

-- name: publication_start
UPDATE publications SET state = 'running' WHERE id = :id AND state IN ('pending', 'running');

-- name: publication_lost
UPDATE publications SET losses = losses + 1 WHERE id = :id AND state = 'running';

-- name: publication_finish
UPDATE publications SET state = :state, output_model_ref = :output_model_ref, error = :error,
                        finished_at = :now
WHERE id = :id AND state IN ('pending', 'running');

-- name: jobs_unpruned
SELECT DISTINCT job_id FROM runs LEFT JOIN pruned ON run_seq = seq
WHERE state IN ('completed', 'failed') AND spec IS NOT NULL AND pruned_at IS NULL;

-- name: unpruned
SELECT runs.* FROM runs LEFT JOIN pruned ON run_seq = seq
WHERE job_id = :job_id AND state IN ('completed', 'failed') AND spec IS NOT NULL
      AND pruned_at IS NULL
ORDER BY finished_at DESC, seq DESC;

-- name: published_last
SELECT runs.run_id FROM runs LEFT JOIN publications ON run_seq = seq AND publications.state = 'completed'
WHERE job_id = :job_id AND coalesce(publications.output_model_ref, runs.output_model_ref) IS NOT NULL
ORDER BY max(coalesce(publications.finished_at, ''), coalesce(runs.finished_at, '')) DESC LIMIT 1;

-- name: pruned_insert
INSERT INTO pruned (run_seq, pruned_at) SELECT seq, :now FROM runs WHERE seq = :seq
ON CONFLICT DO NOTHING;

-- name: job
SELECT * FROM jobs WHERE job_id = :job_id;

-- name: job_put
INSERT INTO jobs (job_id, options, updated_at) VALUES (:job_id, :options, :now)
ON CONFLICT (job_id) DO UPDATE SET options = excluded.options, updated_at = excluded.updated_at;
