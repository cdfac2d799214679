import os
import subprocess
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django_snapshots.exceptions import SnapshotConnectorError


class OracleConnector:
    """Dump and restore Oracle databases using expdp / impdp."""

    def _config(self, db_alias: str) -> dict[str, Any]:
        return django_settings.DATABASES[db_alias]

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        cfg = self._config(db_alias)
        dest.parent.mkdir(parents=True, exist_ok=True)
        cmd = [
            "expdp",
            f"{cfg['USER']}/{cfg['PASSWORD']}@{cfg['NAME']}",
            f"DUMPFILE={dest.name}",
            f"DIRECTORY={dest.parent}",
            "LOGFILE=expdp.log",
        ]
        try:
            subprocess.run(cmd, check=True, capture_output=True)
        except subprocess.CalledProcessError as exc:
            raise SnapshotConnectorError(
                f"expdp failed for {db_alias!r}: "
                f"{exc.stderr.decode(errors='replace')}"
            ) from exc
        return {"format": "dmp"}

    def restore(self, db_alias: str, src: Path) -> None:
        cfg = self._config(db_alias)
        cmd = [
            "impdp",
            f"{cfg['USER']}/{cfg['PASSWORD']}@{cfg['NAME']}",
            f"DUMPFILE={src.name}",
            f"DIRECTORY={src.parent}",
            "LOGFILE=impdp.log",
        ]
        try:
            subprocess.run(cmd, check=True, capture_output=True)
        except subprocess.CalledProcessError as exc:
            raise SnapshotConnectorError(
                f"impdp failed for {db_alias!r}: "
                f"{exc.stderr.decode(errors='replace')}"
            ) from exc
