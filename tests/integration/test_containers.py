"""``Dockerfile``, ``docker-compose.yml`` and the systemd units of the documentation, without an engine to run them."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from tests.integration.composed import (
    DOCKERFILE,
    FILE,
    MissingVariableError,
    Stack,
    composed,
    image_environment,
    interpolated,
    make_secrets,
    version,
)
from tests.integration.pages import blocks, text_of, the_block
from tests.integration.test_service import Service
from tests.projects import ROOT, wait_until
from tests.services.servers import find_program

OWN = ("migrate", "worker", "beat", "web")
LASTING = ("redis", "postgres", "worker", "beat", "web")
PAGE = "docs/how-to/deploying.md"


@pytest.fixture
def file() -> dict[str, Any]:
    """The compose file, as it is when the secrets have been made."""
    return composed(SECRETS_DIRECTORY="./secrets")


# The compose file


def accept(content: dict[str, Any]) -> None:
    """Raise ``ValueError`` if *content* isn't what the Compose specification says."""
    compose_spec.PyCompose.from_json(json.dumps(content)).validate()


def test_the_file_is_what_the_compose_specification_says(file: dict[str, Any]) -> None:
    accept(file)
    assert set(file["services"]) == {"redis", "postgres", "migrate", "worker", "beat", "web"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda web: web.update(helthcheck={}),
        lambda web: web.update(secrets=["elsewhere"]),
        lambda web: web["healthcheck"].update(interval="often"),
    ],
)
def test_the_specification_is_really_asked(file: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoiled = copy.deepcopy(file)
    spoil(spoiled["services"]["web"])
    with pytest.raises(ValueError):
        accept(spoiled)


def test_without_secrets_it_stops_and_says_how_to_make_them() -> None:
    with pytest.raises(MissingVariableError, match=r"SECRETS_DIRECTORY .* Make them by docker/make-secrets"):
        composed()


def test_images_have_versions_that_fit(file: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in file["services"].items()}
    assert all(re.fullmatch(r"[a-z-]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", image) for image in images.values()), images
    assert {images[name] for name in OWN} == {f"django-snapshots:{version()}"}
    (client,) = re.findall(r"postgresql-client-(\d+)", DOCKERFILE.read_text())
    assert int(client) >= int(re.findall(r"postgres:(\d+)", images["postgres"])[0])


@pytest.mark.parametrize("name", ["redis", "postgres", *OWN])
def test_every_service_is_hardened_and_looked_after(file: dict[str, Any], name: str) -> None:
    service = file["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("", "root", "0") and not str(service["user"]).startswith("0:")
    assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & set(service)
    assert service["logging"]["driver"] == "local"
    if name == "migrate":
        assert (service["restart"], service["healthcheck"]) == ("no", {"disable": True})
        return
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert service["stop_signal"] == {"postgres": "SIGINT", "worker": "SIGQUIT"}.get(name, "SIGTERM")
    # What a worker gives up it still has to clean up.
    soft = float(service["environment"]["CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT"]) if name == "worker" else 0
    assert compose_spec.parse_duration(service["stop_grace_period"]) >= max(30, 3 * soft)


def test_passwords_are_in_files_alone(file: dict[str, Any], tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    values = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(values) == set(file["secrets"])
    assert {name: entry["file"] for name, entry in file["secrets"].items()} == {
        name: f"./secrets/{name}" for name in values
    }
    for service in file["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|_URL", variable):
                assert variable.endswith("_FILE") and value.removeprefix("/run/secrets/") in service["secrets"]
    # Redis hides its command line from /proc soon after its start, and not from whoever looks before.
    (started,) = [line for line in file["services"]["redis"]["command"][2].splitlines() if line.startswith("exec ")]
    assert "pass" not in started
    texts = [FILE.read_text(), DOCKERFILE.read_text()]
    assert not [text for text in texts if re.search(r"://[^\s/]*:[^\s/]*@", text)]


def test_only_the_services_that_need_a_secret_have_it(file: dict[str, Any]) -> None:
    assert file["services"]["redis"]["secrets"] == ["redis_password"]
    assert file["services"]["postgres"]["secrets"] == ["postgres_password"]
    for name in OWN:
        assert file["services"][name]["secrets"] == ["secret_key", "database_url", "broker_url"]


def test_only_web_can_be_reached_and_only_from_this_machine(file: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in file["services"].items() if "ports" in service}
    assert published == {"web": ["127.0.0.1:8000:8000"]}
    assert file["networks"]["private"]["internal"] is True
    for name in ("redis", "postgres", "migrate", "beat"):
        assert file["services"][name]["networks"] == ["private"]


def test_there_can_be_one_beat_only(file: dict[str, Any]) -> None:
    names = {name: service.get("container_name") for name, service in file["services"].items()}
    assert {name for name, given in names.items() if given} == {"beat"}, "a container with a name can't be scaled"
    assert "deploy" not in file["services"]["beat"] and "scale" not in file["services"]["beat"]


def test_what_has_to_last_is_in_volumes(file: dict[str, Any]) -> None:
    assert file["services"]["postgres"]["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert file["services"]["redis"]["volumes"] == ["redis:/data"]
    worker = file["services"]["worker"]["volumes"]
    assert worker == ["snapshots:/srv/snapshots", "media:/srv/media", "scratch:/var/lib/snapshots/scratch"]
    assert file["services"]["web"]["volumes"] == [f"{volume}:ro" for volume in worker[:2]]
    elsewhere = composed(SECRETS_DIRECTORY="x", SNAPSHOTS_DIRECTORY="/mnt/backup", MEDIA_DIRECTORY="/srv/shop/media")
    assert elsewhere["services"]["worker"]["volumes"][:2] == [
        "/mnt/backup:/srv/snapshots",
        "/srv/shop/media:/srv/media",
    ]


def test_nothing_starts_before_what_it_needs(file: dict[str, Any]) -> None:
    for name in OWN:
        conditions = {other: entry["condition"] for other, entry in file["services"][name]["depends_on"].items()}
        assert conditions.pop("migrate", None) == (None if name == "migrate" else "service_completed_successfully")
        assert conditions == {"postgres": "service_healthy", "redis": "service_healthy"}


# Secrets


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    said = make_secrets(tmp_path)
    assert said.returncode == 0
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    assert (tmp_path / ".env").read_text() == "SECRETS_DIRECTORY=./secrets\n"
    assert not [value for value in before.values() if value in said.stdout + said.stderr]
    assert len(before["secret_key"]) == len(before["postgres_password"]) == 64
    assert f":{before['postgres_password']}@" in before["database_url"]
    assert f":{before['redis_password']}@" in before["broker_url"]

    again = make_secrets(tmp_path)
    assert again.returncode == 1 and "nothing was changed" in again.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert make_secrets(tmp_path / "other").returncode == 0
    assert (tmp_path / "other" / "secrets" / "secret_key").read_text() != before["secret_key"]


# The image


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    # It has looked: the same without one of its lines is found out.
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.read_text().replace("# hadolint ignore=DL3008\n", ""))
    assert subprocess.run([hadolint, worse], capture_output=True).returncode == 1


def test_the_image_is_small_and_runs_as_nobody_special(file: dict[str, Any]) -> None:
    stages = DOCKERFILE.read_text().split("\nFROM ")[1:]
    assert [stage.split()[0] for stage in stages] == ["python:3.11.15-slim-trixie"] * 2
    *_, last = stages
    (user,) = re.findall(r"^USER (.*)$", last, flags=re.MULTILINE)
    assert user == "10001:10001" == file["services"]["worker"]["user"]
    assert not {"gcc", "libc6-dev", "libmariadb-dev", "pkg-config"} & set(last.split())
    for program in ("postgresql-client-17", "mariadb-client", "libmariadb3", "zstd"):
        assert program in last.split()
    assert "--constraint constraints.txt" in stages[0]
    assert not re.search("SECRET|PASSWORD|TOKEN", "".join(stages))


def test_the_images_directories_are_where_the_volumes_go(file: dict[str, Any]) -> None:
    made = re.findall(r"(/srv/\w+|/var/lib/snapshots\S*)", re.findall(r"install --directory.*?\n\n", DOCKERFILE.read_text(), flags=re.DOTALL)[0])  # fmt: skip # noqa: E501
    mounted = {volume.split(":")[1] for name in OWN for volume in file["services"][name].get("volumes", [])}
    assert mounted <= set(made), "a new volume takes owner and mode from the image's directory"
    assert image_environment()["DATA_DIRECTORY"] in made, (
        "it is made when the settings are read, and the root is read-only"
    )


def test_the_image_does_what_the_worker_does(file: dict[str, Any]) -> None:
    text, worker = DOCKERFILE.read_text().replace("\\\n", ""), file["services"]["worker"]
    (health, command) = (json.loads(found) for found in re.findall(r"CMD (\[.*\])$", text, flags=re.MULTILINE))
    assert command == [word for word in worker["command"] if not word.startswith("--concurrency")]
    assert health == ["sh", "-c", worker["healthcheck"]["test"][1]]


def test_only_what_the_image_needs_is_sent_to_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def let_through(path: str) -> bool:
        answer = True
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            parts = [path, *map(str, Path(path).parents[:-1])]
            if any(fnmatch.fnmatch(part, pattern) or fnmatch.fnmatch(Path(part).name, pattern) for part in parts):
                answer = rule.startswith("!")
        return answer

    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists() and let_through(path), path
    for path in (
        "secrets/secret_key",
        ".env",
        ".git/config",
        "data/service.sqlite3",
        "tasks/demo/serve.py",
        "tests/x.py",
    ):
        assert not let_through(path), path


# Running


@pytest.fixture
def stack() -> Iterator[Stack]:
    """The file's services, not started; under /tmp, where PostgreSQL's user can come."""
    directory = Path(tempfile.mkdtemp(prefix="snapshots-composed-", dir="/tmp"))
    directory.chmod(0o755)
    made = Stack(directory)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(directory)


def test_the_files_commands_and_health_checks_do_what_they_are_for(stack: Stack) -> None:
    assert not any(stack.healthy(name) for name in ("redis", "postgres", "web")), "nothing runs yet"
    stack.start("redis")
    stack.start_postgres()
    stack.wait_until_healthy("redis", "postgres")
    stack.must("migrate")
    for name in ("worker", "beat", "web"):
        stack.start(name)
    stack.wait_until_healthy("worker", "beat", "web")

    _no_password_shows(stack)
    _web_answers(stack)
    _snapshots_are_taken(stack)
    _the_pages_commands_work(stack)

    # A health check that can't fail says nothing.
    for name in ("worker", "beat", "web"):
        stack.kill(name)
    with ThreadPoolExecutor() as pool:
        assert not any(pool.map(stack.healthy, ("worker", "beat", "web")))

    # As restart: unless-stopped would do it.
    for name in ("worker", "beat", "web"):
        stack.start(name)
    stack.wait_until_healthy("worker", "beat", "web")
    stack.must("worker", "python", "-m", "tasks", "snapshots", "verify", "by-hand", "--queue")
    for name in ("web", "beat", "worker"):
        assert stack.stop(name) == 0, stack.log(name)

    stack.kill("redis")
    assert not stack.healthy("redis")
    stack.start("redis")
    stack.wait_until_healthy("redis")
    for name in ("redis", "postgres"):
        assert stack.stop(name) == 0
        assert not stack.healthy(name)
    assert sorted(path.name for path in stack.folders["/var/lib/snapshots"].iterdir()) == []


def _no_password_shows(stack: Stack) -> None:
    """No process has a secret on its command line or in its environment, and Redis answers nobody without one."""
    values = [stack.secret(name) for name in stack.content["secrets"]]
    for process in stack.running.values():
        for what in ("cmdline", "environ"):
            seen = Path(f"/proc/{process.pid}/{what}").read_text(errors="replace")
            assert not [value for value in values if value in seen]
    said = stack.run("redis", "redis-cli", "-p", str(stack.ports["6379"]), "ping")
    assert "NOAUTH" in said.stdout + said.stderr


def _web_answers(stack: Stack) -> None:
    base = f"http://127.0.0.1:{stack.ports['8000']}"
    with urllib.request.urlopen(f"{base}/static/admin/css/base.css", timeout=10) as answer:
        assert answer.status == 200 and answer.headers.get_content_type() == "text/css"


def _the_pages_commands_work(stack: Stack) -> None:
    """What the page runs by ``docker compose exec``."""
    commands = in_containers()
    assert len(commands) == 6
    for name, command in commands:
        if "cancel" in command:
            made = "from django_snapshots.models import Run; print(Run.objects.create(kind='snapshot', name='odd').pk)"
            run = stack.must("worker", *"python -m tasks shell -v0 -c".split(), made).split()[-1]
            command = [run if item == "5f0c6a1e" else item for item in command]
        # Nobody is there to be asked.
        answers = ["--no-input", "--username=anna", "--email="] if "createsuperuser" in command else []
        stack.must(name, *command, *answers, DJANGO_SUPERUSER_PASSWORD="a long password")
    assert "before-upgrade" in stack.must("web", *"python -m tasks snapshots list".split())


def _snapshots_are_taken(stack: Stack) -> None:
    """By a command through broker and worker, and by beat."""
    taken = json.loads(stack.must("worker", *"python -m tasks snapshots backup by-hand --queue --format json".split()))
    assert {artifact["type"] for artifact in taken["artifacts"]} == {"database", "media", "environment"}
    (stack.folders["/srv/media"] / "a picture").write_text("not really")  # until now the volume was empty
    stack.must(
        "worker", "python", "-m", "tasks", "shell", "-v0", "-c",
        "from django_celery_beat.models import IntervalSchedule, PeriodicTask;"
        "every = IntervalSchedule.objects.create(every=1, period='seconds');"
        "PeriodicTask.objects.create(name='once', task='django_snapshots.snapshot', interval=every, one_off=True,"
        ' kwargs=\'{"name": "by-beat"}\')',
    )  # fmt: skip
    found = stack.folders["/srv/snapshots"] / "by-beat" / "manifest.json"
    wait_until(found.exists, "beat's snapshot")
    listed = stack.must("web", "python", "-m", "tasks", "snapshots", "list")
    assert "by-hand" in listed and "by-beat" in listed


def test_the_web_check_asks_as_a_host_that_is_allowed(stack: Stack) -> None:
    """Django refuses the container's own address where ALLOWED_HOSTS has the public name alone."""
    stack.content["services"]["web"]["environment"]["ALLOWED_HOSTS"] = ".snapshots.example"
    del stack.content["services"]["web"]["environment"]["DATABASE_URL_FILE"]  # the page needs no server
    stack.start("web")
    stack.wait_until_healthy("web")
    stack.content["services"]["web"]["environment"]["ALLOWED_HOSTS"] = "elsewhere.example"
    assert not stack.healthy("web")


@pytest.mark.parametrize("secret", ["", None])
def test_redis_does_not_start_without_a_password(stack: Stack, secret: str | None) -> None:
    file = stack.directory / "run" / "redis" / "secrets" / "redis_password"
    file.unlink() if secret is None else file.write_text(secret)
    done = stack.run("redis")
    assert done.returncode != 0
    assert "redis_password" in done.stderr


def test_a_schedule_is_all_that_a_nightly_snapshot_takes(tmp_path: Path) -> None:
    given = {"SNAPSHOTS_SCHEDULE": "0 3 * * *", "SNAPSHOTS_RETENTION": "keep_daily=14,keep_monthly=12"}
    service = Service(tmp_path / "data", SECRET_KEY="x", TIME_ZONE="Europe/Berlin", **given)
    service.must("migrate", "-v0")
    rows = service.must("shell", "-v0", "-c", _ROWS)
    # django-celery-beat overlooks some hours that are plain numbers; 3-3 is the same.
    assert rows.split("\n")[0] == "snapshots: scheduled|django_snapshots.snapshot|0 3-3 * * *|Europe/Berlin|True"
    assert service.setting("settings.SNAPSHOTS['RETENTION']") == {"keep_daily": 14, "keep_monthly": 12}
    # Empty is as good as not there, which is how Compose hands it on.
    nothing = Service(tmp_path / "other", SECRET_KEY="x", SNAPSHOTS_SCHEDULE="", SNAPSHOTS_RETENTION="")
    assert nothing.setting("[settings.SNAPSHOTS['SCHEDULES'], settings.SNAPSHOTS['RETENTION']]") == [None, None]
    wrong = Service(tmp_path / "other", SECRET_KEY="x", SNAPSHOTS_RETENTION="14 days")
    assert "SNAPSHOTS_RETENTION is not like keep_daily=14" in wrong.refused()


_ROWS = """
from django_celery_beat.models import PeriodicTask
for row in PeriodicTask.objects.filter(name__startswith="snapshots: scheduled"):
    at = row.crontab
    print(row.name, row.task, f"{at.minute} {at.hour} {at.day_of_month} {at.month_of_year} {at.day_of_week}",
          at.timezone, row.enabled, sep="|")
"""


# The page


def in_containers() -> list[tuple[str, list[str]]]:
    """Each ``docker compose exec SERVICE COMMAND`` of the page."""
    lines = [line for block in blocks("bash", page=PAGE) for line in block.text.splitlines()]
    words = [line.split() for line in lines if line.startswith("docker compose exec ")]
    return [(line[3], line[4:]) for line in words]


def test_every_variable_is_on_the_page(file: dict[str, Any]) -> None:
    told = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", text_of(PAGE), flags=re.MULTILINE))
    used = dict(re.findall(r"\$\{([A-Z_]+):([^}]*)\}", FILE.read_text()))
    assert set(told) == set(used)
    for name, given in used.items():
        default = given.removeprefix("-")
        expected = {"": "empty", "snapshots": "a volume", "media": "a volume"}.get(default, f"`{default}`")
        assert given[0] == "?" or told[name] == expected, name


def test_another_database_is_added_as_the_page_says(file: dict[str, Any]) -> None:
    more = interpolated(yaml.safe_load(the_block(PAGE, "In containers", "yaml")), {"SECRETS_DIRECTORY": "./secrets"})
    accept({**more, "services": {name: {"image": "x:1", **service} for name, service in more["services"].items()}})
    assert set(more["services"]) == set(OWN)
    for name, service in more["services"].items():
        # As Compose merges the two files.
        file["services"][name]["environment"].update(service["environment"])
        file["services"][name]["secrets"] += service["secrets"]
        (url,) = service["environment"].values()
        assert url.removeprefix("/run/secrets/") in service["secrets"]
    file["secrets"].update(more["secrets"])
    accept(file)


def test_the_environment_of_the_page_is_the_services(file: dict[str, Any]) -> None:
    pairs = dict(line.split("=", 1) for line in the_block(PAGE, "Under systemd", "text").splitlines())
    known = (ROOT / "tasks" / "settings.py").read_text()
    for name in pairs:
        assert re.sub(r"^DATABASE_URL_.*", "DATABASE_URL_<ALIAS>", name.removesuffix("_FILE")) in known
    assert set(pairs) >= {"SECRET_KEY_FILE", "DATABASE_URL_FILE", "CELERY_BROKER_URL_FILE", "SNAPSHOTS_LOCATION"}


def test_the_checks_of_the_page_are_those_of_the_containers(file: dict[str, Any]) -> None:
    checks = [file["services"][name]["healthcheck"]["test"] for name in ("worker", "beat", "web")]
    told = the_block(PAGE, "What to watch", "bash").splitlines()
    assert told[:2] == [command for _, command in checks[:2]]
    assert told[2].split() == [word.removeprefix("/app/") for word in checks[2][1:]]


# systemd


def units() -> dict[str, str]:
    """The units of the page by name; the first line of each is its path."""
    found = {}
    for block in blocks("ini", page=PAGE):
        path = block.text.splitlines()[0].removeprefix("# ")
        found[Path(path).name] = block.text
    return found


def test_the_units_pass_systemds_own_check(tmp_path: Path) -> None:
    assert set(units()) == {f"snapshots-{name}.service" for name in ("worker", "beat", "web")}
    paths = []
    for name, text in units().items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text.replace("/opt/snapshots/venv/bin", str(Path(sys.executable).parent)))
    analyze = find_program("systemd-analyze")
    done = subprocess.run([analyze, "verify", "--man=no", *paths], capture_output=True, text=True)
    about_ours = [line for line in (done.stdout + done.stderr).splitlines() if "snapshots-" in line]
    assert (done.returncode, about_ours) == (0, [])
    for path in paths:
        judged = subprocess.run(
            [analyze, "security", "--offline=true", "--threshold=30", "--no-pager", path],
            capture_output=True,
            text=True,
        )
        assert judged.returncode == 0, judged.stdout[-300:]


def test_the_units_run_what_the_containers_run(file: dict[str, Any]) -> None:
    for name in ("worker", "beat", "web"):
        (line,) = re.findall(r"^ExecStart=/opt/snapshots/venv/bin/(.*)$", units()[f"snapshots-{name}.service"].replace("\\\n", ""), flags=re.MULTILINE)  # fmt: skip # noqa: E501
        here = {word.replace("%%h", "%h") for word in line.split()}
        there = set(file["services"][name]["command"])
        places = {word for word in here ^ there if re.match("--(bind|worker-tmp-dir|concurrency)=", word)}
        assert here - places == there - places, name
