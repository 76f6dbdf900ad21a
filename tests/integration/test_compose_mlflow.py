"""MLflow on PostgreSQL, started and asked as docker-compose.yml does; PostgreSQL is Debian's."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from schemas.generate import ROOT

SERVICE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["mlflow"]
PASSWORD = "5ecret"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def postgres(needs, tmp_path_factory):
    """Port of a PostgreSQL with the compose file's user, database and password."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    needs(found, "Debian's postgresql")
    folder = tmp_path_factory.mktemp("pg")
    as_user = []
    if getpass.getuser() == "root":  # it refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        for each in (folder, *folder.parents):
            if each.owner() == "root" and str(each).startswith("/tmp/pytest"):
                each.chmod(0o755)
        shutil.chown(folder, "postgres")
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data, port, binaries = folder / "data", free_port(), found[-1].parent
    initdb = [*as_user, str(binaries / "initdb"), "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={secret}"]
    subprocess.run([*initdb, "-D", str(data)], check=True, capture_output=True, cwd=folder)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    control = [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "-w"]
    log = ["-l", str(folder / "log"), "-o", options]
    subprocess.run([*control, *log, "start"], check=True, capture_output=True, cwd=folder)
    environment = os.environ | {"PGPASSWORD": PASSWORD}
    create = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
    subprocess.run(create, check=True, env=environment)
    yield port
    stopped = subprocess.run([*control, "-m", "fast", "stop"], check=False, capture_output=True, text=True, cwd=folder)
    assert stopped.returncode == 0, stopped.stderr


def test_mlflow_comes_up_on_postgresql_and_the_health_check_tells_the_truth(postgres, tmp_path):
    """The command and the check stand in the compose file; here they run, with this machine's addresses put in."""
    secret, port = tmp_path / "postgres_password", free_port()
    secret.write_text(PASSWORD)
    command = SERVICE["command"][0].replace("$$", "$")
    for theirs, ours in (
        ("/run/secrets/postgres_password", str(secret)),
        ("@postgres:5432", f"@127.0.0.1:{postgres}"),
        ("--host=0.0.0.0 --port=5000", f"--host=127.0.0.1 --port={port}"),
        ("/data/artifacts", str(tmp_path / "artifacts")),
    ):
        assert theirs in command
        command = command.replace(theirs, ours)
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | SERVICE["environment"] | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    server = subprocess.Popen(["/bin/sh", "-c", command], env=environment, cwd=tmp_path, start_new_session=True)
    check = SERVICE["healthcheck"]["test"]
    here = [sys.executable, "-c", check[-1].replace("mlflow:5000", f"127.0.0.1:{port}")]
    try:
        deadline = time.monotonic() + 180
        while subprocess.run(here, check=False, capture_output=True).returncode:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow"
        reply = httpx.post(f"{url}/experiments/create", json={"name": "on-postgres"}, headers={"Host": "mlflow:5000"})
        assert reply.status_code == 200
        assert (
            httpx.post(f"{url}/experiments/search", json={"max_results": 1}, headers={"Host": "evil"}).status_code
            == 403
        )
    finally:
        server.terminate()
        server.wait(30)
