"""Why a record could not be written: each kind of error with its own line, from errors that really happen."""

import http.server
import sqlite3
import threading
from contextlib import closing

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.tracking.client import default_database
from echo_lm.orchestration.tracking.errors import explain
from echo_lm.orchestration.tracking.mlflow import track


def refused(folder, uri: str | None = None) -> str:
    with pytest.raises(UserError) as raised:
        track(folder, uri)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def change(folder, statement: str) -> None:
    with closing(sqlite3.connect(default_database(folder))) as connection, connection:
        connection.execute(statement)


def test_a_file_that_is_no_database(run_folder):
    default_database(run_folder).write_text("no database")
    assert "is damaged, or no database" in refused(run_folder)


def test_a_folder_instead_of_a_file(run_folder):
    default_database(run_folder).unlink()
    default_database(run_folder).mkdir()
    assert "cannot be opened for writing" in refused(run_folder)


def test_a_folder_that_cannot_be_made(run_folder):
    assert "cannot be opened for writing" in refused(run_folder, f"sqlite:///{run_folder / 'config.yaml'}/mlflow.db")


def test_a_database_of_another_version(run_folder):
    change(run_folder, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    assert "mlflow db upgrade" in refused(run_folder)


def test_a_database_that_is_half_made(run_folder):
    change(run_folder, "DROP TABLE experiment_tags")
    assert "is half made" in refused(run_folder)


def test_a_locked_database(run_folder, monkeypatch):
    monkeypatch.setattr("echo_lm.orchestration.tracking.store.BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(default_database(run_folder), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "is locked by another process" in refused(run_folder)


def test_a_full_disk(tmp_path):
    with closing(sqlite3.connect(tmp_path / "full.db")) as connection:
        connection.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.Error) as raised:
            connection.executescript("".join(f"CREATE TABLE t{number} (x);" for number in range(100)))
    assert "lies on a full disk" in explain(raised.value, "sqlite:///full.db")
    assert "lies on a full disk" in explain(OSError(28, "No space left on device"), "sqlite:///full.db")


@pytest.mark.parametrize("uri", ["ftp://host/x", "sqlite+:///x", "htp://127.0.0.1:9"])
def test_an_address_that_is_none(run_folder, uri):
    assert "is no address of a record" in refused(run_folder, uri)


@pytest.mark.parametrize(
    ("code", "expected"), [(403, "refuses access"), (404, "not one of MLflow"), (503, "does not answer")]
)
def test_a_server_that_refuses(run_folder, code, expected):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(code)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert expected in refused(run_folder, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
