"""A real Docker engine and a real registry for tests: own folders, own socket, own bridge, stopped afterwards.

The images that take long (the base image from Debian's packages, the runtime image) are kept between runs in the user's
cache. An engine that is there already is never touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.image.engine import Runtime
from deploy.process import free_port

HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "driftloop-tests"
BASE = "driftloop-test-base:2"
USER, PASSWORD = "driftloop", "canary-of-the-registry"
_HASH = "$2b$04$abcdefghijklmnopqrstuujNG9TNvp2wzcl5tPae97bvCqUFA1Bzu"  # bcrypt, which docker-registry insists on
_BRIDGE = "driftloop-test"
_NETWORK = "172.31.240.1/24"
_PROGRAMS = ("dockerd", "containerd", "docker-registry", "debootstrap", "ip", "iptables")


def lacking() -> str:
    """What this machine lacks for an engine of our own; empty if nothing."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} (Debian: docker.io docker-registry debootstrap iproute2 iptables)"
    if os.geteuid() != 0:
        return "root, which an engine of the tests' own needs"
    return "" if sys.version_info[:2] == (3, 11) else "Python 3.11, which the base image has"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@contextmanager
def engine() -> Iterator[Any]:
    """A client of the tests' engine, with its images. Several test processes share it; the last one stops it."""
    import docker

    HOME.mkdir(parents=True, exist_ok=True)
    address = f"unix://{HOME}/docker.sock"
    with (HOME / "users").open("a") as users, (HOME / "starting").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            if not _answers(address):
                _start(address)
            client = docker.DockerClient(address, timeout=120)
            _ensure_base(client)
            Runtime(client, BASE).image()  # once, not by each of several that wait
        finally:
            fcntl.flock(starting, fcntl.LOCK_UN)
        try:
            yield client
        finally:
            client.close()
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_UN)
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop()


def _answers(address: str) -> bool:
    import docker
    import docker.errors

    try:
        return bool(docker.DockerClient(address, timeout=5).ping())
    except (docker.errors.DockerException, OSError):
        return False


def _start(address: str) -> None:
    _stop()
    subprocess.run(["ip", "link", "add", _BRIDGE, "type", "bridge"], check=False, capture_output=True)
    subprocess.run(["ip", "addr", "add", _NETWORK, "dev", _BRIDGE], check=False, capture_output=True)
    subprocess.run(["ip", "link", "set", _BRIDGE, "up"], check=True)
    folders = ("--data-root", HOME / "docker", "--exec-root", HOME / "exec", "--pidfile", HOME / "docker.pid")
    # Ports are published by the engine's own proxy: no rule of this machine's firewall is touched.
    network = ("--bridge", _BRIDGE, "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false")
    with (HOME / "docker.log").open("wb") as log:
        subprocess.Popen(
            ["dockerd", *map(str, folders), *network, "--host", address],
            env=os.environ | {"PATH": _path()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while not _answers(address):
        if time.monotonic() > deadline:
            raise RuntimeError(f"dockerd does not come up: {(HOME / 'docker.log').read_text()[-1500:]}")
        time.sleep(0.2)


def _stop() -> None:
    with suppress(OSError, ValueError):
        pid = int((HOME / "docker.pid").read_text())
        if b"dockerd" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 30
            while Path(f"/proc/{pid}/cmdline").read_bytes() and time.monotonic() < deadline:
                time.sleep(0.1)
    (HOME / "docker.pid").unlink(missing_ok=True)
    subprocess.run(["ip", "link", "del", _BRIDGE], check=False, capture_output=True, env=os.environ | {"PATH": _path()})


def _ensure_base(client: Any) -> None:
    """Debian with Python and venv, made from its packages: no image can be pulled here."""
    import docker.errors

    with suppress(docker.errors.ImageNotFound):
        client.images.get(BASE)
        return
    root = HOME / "root"
    shutil.rmtree(root, ignore_errors=True)
    packages = "--include=python3,python3-venv"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)],
        env=os.environ | {"PATH": _path()},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / name, ignore_errors=True)
    # pip in a build reaches its index as pip on this machine does, so it has to trust whom this machine trusts.
    for path in (Path("/etc/pip.conf"), Path("/etc/ssl/certs/ca-certificates.crt")):
        if path.exists():
            (root / path.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, root / path.relative_to("/"))
    packed = HOME / "base.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(packed), "."], check=True)
    name, _, tag = BASE.partition(":")
    client.api.import_image_from_file(str(packed), repository=name, tag=tag)
    packed.unlink()
    shutil.rmtree(root)


@contextmanager
def registry(
    folder: Path, *, login: bool = False, ca: Any = None, data: Path | None = None, deletes: bool = True
) -> Iterator[str]:
    """The address of a docker-registry; ca: trustme's, for TLS; login: it asks for USER and PASSWORD; data: kept."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "version: 0.1",
        "log: {level: warn}",
        f"storage: {{filesystem: {{rootdirectory: {data or folder / 'data'}}},",
        f"  delete: {{enabled: {json.dumps(deletes)}}}}}",
        "http:",
        f"  addr: 127.0.0.1:{port}",
        "  relativeurls: true",
    ]
    if ca is not None:
        certificate = ca.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
        (folder / "chain.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        lines += ["  tls:", f"    certificate: {folder / 'chain.pem'}", f"    key: {folder / 'key.pem'}"]
    if login:
        (folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
        lines += ["auth:", "  htpasswd:", "    realm: tests", f"    path: {folder / 'htpasswd'}"]
    (folder / "registry.yml").write_text("\n".join(lines) + "\n")
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "registry.yml")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _until_open(port, process, folder / "registry.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import socket

    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"docker-registry does not come up: {log.read_text()[-1000:]}")
