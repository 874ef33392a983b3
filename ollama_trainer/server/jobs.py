"""Jobs: what their runs get that ask for nothing else."""

from __future__ import annotations

from aiohttp import web

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.server import wire
from ollama_trainer.server.routes import QUEUE, SETTINGS, json_body, paths

#: A segment of a path with anything in it: ids of jobs are the caller's. (`/` would be doubled.)
_JOB = r"/jobs/{job_id:[^\x2f]+}"
_LONGEST = 200


def add_job_routes(app: web.Application) -> None:
    for path in paths(_JOB):
        app.router.add_get(path, show)
        app.router.add_put(path, settle)


async def show(request: web.Request) -> web.Response:
    """What is settled for a job; nothing, for one that has runs alone."""
    job_id, queue = _job_id(request), request.app[QUEUE]
    job = queue.jobs.get(job_id)
    if job is None and not queue.store.page(job_id=job_id, limit=1):
        raise UnknownJob
    return wire.json_reply(wire.job_reply(job_id, job))


async def settle(request: web.Request) -> web.Response:
    """Settles what the job's runs get that are submitted from now on, in the place of before."""
    job_id = _job_id(request)
    options = wire.read_job_options(await json_body(request), request.app[SETTINGS])
    job = await request.app[QUEUE].jobs.put(job_id, options)
    return wire.json_reply(wire.job_reply(job_id, job))


def _job_id(request: web.Request) -> str:
    job_id = wire.storable(request.match_info["job_id"])
    if len(job_id) > _LONGEST:
        raise InvalidRequest(
            f"the id of the job has {len(job_id)} characters", f"Use up to {_LONGEST}."
        )
    return job_id


class UnknownJob(InvalidRequest):
    """A job has no runs, and nothing is settled for it."""

    code = "unknown_job"

    def __init__(self) -> None:
        super().__init__(
            "there is no job with this id", "Submit a run of it, or settle it with PUT."
        )
