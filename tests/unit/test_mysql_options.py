"""The private option file of MySQL's and MariaDB's programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from django_snapshots.connectors.mysql.options import connection_options, secrets_in, write_option_file
from django_snapshots.exceptions import SnapshotConfigurationError


def options(oracle: bool = False, encrypted: bool = False, **parameters: Any) -> dict[str, str]:
    return connection_options(parameters, oracle=oracle, encrypted=encrypted)


def test_what_django_gives_to_its_driver_is_what_the_programs_get() -> None:
    found = options(host="db", port=3307, user="u", password="p", database="d", charset="utf8mb4", init_command="X")
    assert found == {
        "host": "db", "port": "3307", "user": "u", "password": "p", "ssl": "0", "ssl-verify-server-cert": "0",
    }  # fmt: skip
    assert secrets_in(found) == ["p"]
    assert options(unix_socket="/run/s", passwd="x")["socket"] == "/run/s"
    assert options(passwd="x")["password"] == "x"
    assert options()["password"] == ""


@pytest.mark.parametrize(
    ("parameters", "mariadb", "oracle"),
    [
        ({}, {"ssl": "0", "ssl-verify-server-cert": "0"}, {"ssl-mode": "DISABLED"}),
        ({"encrypted": True}, {"ssl": "1", "ssl-verify-server-cert": "0"}, {"ssl-mode": "PREFERRED"}),
        ({"ssl_mode": "REQUIRED"}, {"ssl": "1", "ssl-verify-server-cert": "0"}, {"ssl-mode": "REQUIRED"}),
        ({"ssl_mode": "VERIFY_IDENTITY"}, {"ssl": "1", "ssl-verify-server-cert": "1"}, {"ssl-mode": "VERIFY_IDENTITY"}),
        ({"ssl": {"ca": "/ca"}}, {"ssl": "1", "ssl-ca": "/ca"}, {"ssl-mode": "VERIFY_CA", "ssl-ca": "/ca"}),
        (
            {"ssl": {"ca": "/ca", "cert": "/c", "key": "/k"}, "ssl_mode": "VERIFY_CA"},
            {"ssl": "1", "ssl-ca": "/ca", "ssl-cert": "/c", "ssl-key": "/k", "ssl-verify-server-cert": "1"},
            {"ssl-mode": "VERIFY_CA", "ssl-ca": "/ca", "ssl-cert": "/c", "ssl-key": "/k"},
        ),
    ],
)
def test_tls_is_as_the_alias_has_it(
    parameters: dict[str, Any], mariadb: dict[str, str], oracle: dict[str, str]
) -> None:
    for wanted, is_oracle in ((mariadb, False), (oracle, True)):
        found = options(oracle=is_oracle, **parameters)
        assert {name: value for name, value in found.items() if name.startswith("ssl")} == wanted


def test_an_option_file_of_the_alias_gives_its_connection_and_nothing_else(tmp_path: Path) -> None:
    included = tmp_path / "included.cnf"
    included.write_text("[client]\nport=3310\n[other]\nuser=nobody\n")
    file = tmp_path / "my.cnf"
    file.write_text(
        '# a comment\n[client]\n host = \'db.example\' # where\nuser="a \\"b\\\\"\npassword = p#cut off\n'
        f"no-data\nssl_ca=/ca.pem\n[mysqldump]\nuser=wrong\nwhere=1=0\n!include {included}\n[mine]\nuser=mine\n"
    )
    found = options(read_default_file=str(file))
    assert found == {"host": "db.example", "user": 'a "b\\', "password": "p", "ssl-ca": "/ca.pem", "port": "3310"}
    assert options(read_default_file=str(file), read_default_group="mine")["user"] == "mine"
    assert options(read_default_file=str(file), password="settings")["password"] == "settings"
    with pytest.raises(SnapshotConfigurationError, match="can't be read"):
        options(read_default_file=str(tmp_path / "missing"))


def test_the_file_is_private_and_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    wanted = {"user": "ü \" ' # \\ \n\r\t\b ;", "password": "\\n\\s'\"#[x]", "host": " h "}
    path = write_option_file(tmp_path, wanted)
    assert path.stat().st_mode & 0o777 == 0o600
    read = options(read_default_file=str(path))
    assert {name: read[name] for name in wanted} == wanted
    with pytest.raises(SnapshotConfigurationError, match="NUL"):
        write_option_file(tmp_path / "..", {"password": "a\0b"})
