"""``make serve``: the demo's worker, beat and the admin, until Control-C."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

from django.contrib.auth import get_user_model

from tasks.demo import programs, story, surroundings
from tasks.demo.programs import Program
from tasks.demo.surroundings import DIRECTORY, WORKER_LOG, DemoError
from tasks.demo.telling import Teller, command

_USER = "admin"


def serve(port: int) -> None:
    """Run everything until this process is interrupted; raise ``DemoError`` if one of the programs ends by itself."""
    teller = Teller()
    if surroundings.filled():
        teller.title(f"The demo's project as it was left, in {DIRECTORY} (make demo makes it anew)")
    else:
        teller.title(f"Making a project in {DIRECTORY} ...")
        story.make_project()
    password = _new_password()
    with ExitStack() as stack:
        processes = stack.enter_context(programs.stopped_at_the_end())
        worker = stack.enter_context(programs.worker(processes))
        beat = stack.enter_context(programs.beat(processes))
        port = programs.free_port(port)
        web = stack.enter_context(programs.web_server(processes, port))
        teller.plain(f"Worker {worker.pid}, beat {beat.pid} and web server {web.pid} are up.")
        teller.plain(f"\n  http://127.0.0.1:{port}/admin/   user {_USER}, password {password}\n")
        teller.plain(f"The password is new at every start. The worker's log: {WORKER_LOG}")
        teller.plain("Take a snapshot by the worker, from another terminal:")
        teller.detail(command("snapshots backup --queue"))
        teller.plain("Control-C ends it.")
        _watch(worker, beat, web)


def _new_password() -> str:
    password = secrets.token_urlsafe(12)
    user, _ = get_user_model().objects.get_or_create(username=_USER, defaults={"is_staff": True, "is_superuser": True})
    user.set_password(password)
    user.save()
    return password


def _watch(*running: Program) -> None:
    while True:
        for program in running:
            if program.ended_within(0.5):
                raise DemoError(f"The {program.name} ended by itself: {program.tool.explain()}")
