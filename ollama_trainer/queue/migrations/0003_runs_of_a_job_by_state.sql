-- A page of a job's failed runs need not go through all of its runs.
CREATE INDEX runs_job_state ON runs (job_id, state, seq);
