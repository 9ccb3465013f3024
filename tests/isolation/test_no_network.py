"""Starting, building, searching and serving look up no name and open no connection beyond this machine.

Every command runs in an empty network namespace where the system allows one (`unshare`), so that nothing can leave.
An audit hook, loaded through a sitecustomize module, records every look-up and connection by Python code, and the
hosts that it names, in each process that the command starts. CI is unset: some libraries report usage only without it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AUDIT = """
import os, sys

LOCAL = {"", "0.0.0.0", "127.0.0.1", "::1", "localhost", "::"}

def record(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event == "socket.sendmsg":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else (host or "")
    if host not in LOCAL:
        descriptor = os.open(os.environ["NETWORK_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{event} {host}\\n".encode())
        os.close(descriptor)

sys.addaudithook(record)
"""


@cache
def namespace() -> list[str]:
    """The words before a command that give it an empty network namespace with a loopback; [] where that is forbidden.

    Without a namespace only the audit hook watches: it sees Python's sockets, not those of compiled code.
    """
    prefix = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        return []
    return prefix if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0 else []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(AUDIT)
    return tmp_path / "network.log"


def run(log: Path, *command: str) -> str:
    """Runs Python with these words in isolation; its standard output."""
    done = subprocess.run(
        [*namespace(), sys.executable, *command],
        capture_output=True,
        text=True,
        env=environment(log),
        cwd=log.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(log: Path) -> dict[str, str]:
    names = ("CI", "TF_BUILD", "JENKINS_URL", "HF_HUB_OFFLINE")
    kept = {k: v for k, v in os.environ.items() if k not in names and not k.startswith("CHAMFER_")}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(log.parent / "hook"), str(ROOT / "src")]),
        "NETWORK_LOG": str(log),
        "HOME": str(log.parent / "home"),
        "NUMBA_CACHE_DIR": str(ROOT / ".cache" / "numba"),
    }


def events(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    texts = ["The fox lost his tail in a trap.", "The crow dropped the cheese.", "The hare slept by the road."]
    path.write_text("".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def test_the_recorder_notices_a_look_up(log: Path) -> None:
    run(log, "-c", "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('a.invalid', 80)")
    assert events(log) == ["socket.getaddrinfo a.invalid"]


def test_the_recorder_notices_a_connection_of_a_child(log: Path) -> None:
    code = "import contextlib, socket\nwith contextlib.suppress(OSError):\n    "
    code += "socket.create_connection(('192.0.2.1', 9), 0.1)"
    run(log, "-c", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)")
    assert "socket.connect 192.0.2.1" in events(log)


def test_the_help_contacts_no_host(log: Path) -> None:
    assert "build" in run(log, "-m", "chamfer", "--help")
    assert not events(log)


def test_building_and_searching_contact_no_host(log: Path, corpus: Path) -> None:
    collection = str(log.parent / "collection")
    run(log, "-m", "chamfer", "build", str(corpus), "--out", collection)
    assert "d0" in run(log, "-m", "chamfer", "search", collection, "fox tail", "--json")
    assert not events(log)


SERVE_AND_ASK = """
import subprocess, sys, time, json, urllib.request
server = subprocess.Popen([sys.executable, "-m", "chamfer", "serve", sys.argv[1], "--port", "8765"])
request = urllib.request.Request(
    "http://127.0.0.1:8765/v1/collections/collection/search",
    data=json.dumps({"query": "fox tail", "k": 1}).encode(), headers={"content-type": "application/json"})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    for _ in range(600):
        time.sleep(0.2)
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
        try:
            print(opener.open(request, timeout=60).read().decode())
            break
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code != 503:  # 503: still loading
                raise
finally:
    server.terminate()
    server.wait()
"""


def test_serving_contacts_no_host(log: Path, corpus: Path) -> None:
    if not namespace():
        pytest.skip("no network namespace here: the fixed port could be taken")
    collection = str(log.parent / "collection")
    run(log, "-m", "chamfer", "build", str(corpus), "--out", collection)
    assert "d0" in run(log, "-c", SERVE_AND_ASK, collection)
    assert not events(log)
