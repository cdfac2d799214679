# The service (tasks/): worker, beat and web run from this one image, told apart by their commands.
# Debian trixie brings the client programs of PostgreSQL 17, which dump servers up to 17, and of MariaDB 11.8.

FROM python:3.11.15-slim-trixie AS build

# mysqlclient is compiled. Versions aren't pinned: Debian removes an old one as soon as its security fix is out.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libmariadb-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY django_snapshots django_snapshots
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
       ".[redis,postgres,mysql,rclone,service]"


FROM python:3.11.15-slim-trixie

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libmariadb3 mariadb-client postgresql-client-17 zstd \
    && rm -rf /var/lib/apt/lists/*

# A new named volume takes owner and mode of the directory that it is mounted on.
RUN groupadd --gid 10001 snapshots \
    && useradd --uid 10001 --gid snapshots --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin snapshots \
    && install --directory --owner=snapshots --group=snapshots --mode=0700 \
       /srv/media /srv/snapshots /var/lib/snapshots /var/lib/snapshots/scratch

COPY --from=build /opt/venv /opt/venv
COPY tasks /app/tasks
COPY docker/check-web /app/docker/check-web

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIRECTORY=/var/lib/snapshots \
    SNAPSHOTS_LOCATION=/srv/snapshots \
    SNAPSHOTS_TEMPORARY_DIRECTORY=/var/lib/snapshots/scratch
WORKDIR /app
USER 10001:10001
# A worker then gives up what takes too long, for another worker to take.
STOPSIGNAL SIGQUIT

# Of the worker, which is what the image runs when it isn't told; docker-compose.yml has the others' checks.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "celery -A tasks inspect ping --timeout=5 --destination=\"snapshots@$(hostname)\""]
CMD ["celery", "-A", "tasks", "worker", "--hostname=snapshots@%h", "--loglevel=INFO"]
