"""The wheel holds one namespace, and works beside a user's own `models`, `service` and `indexing`; so does an editable
install. Nothing here needs a network: dependencies come from the environment that runs the tests.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-build-isolation", "--no-deps", "--no-index")

USE = """
import sys, json, subprocess, time, urllib.request, urllib.error
import chamfer
from chamfer import Document

assert chamfer.__file__.startswith(sys.argv[1]), chamfer.__file__
documents = [Document("d0", "The fox lost his tail in a trap."), Document("d1", "The crow dropped the cheese.")]
chamfer.build(documents, "collection").close()
with chamfer.open("collection") as searcher:
    assert searcher.search("fox tail", k=1)[0].doc_id == "d0"
words = [sys.executable, "-m", "chamfer"]
search = [*words, "search", "collection", "fox tail", "--json"]
answer = subprocess.run(search, capture_output=True, text=True, check=True)
assert "d0" in answer.stdout
import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
server = subprocess.Popen([*words, "serve", "collection", "--port", str(port)])
request = urllib.request.Request(
    f"http://127.0.0.1:{port}/v1/collections/collection/search",
    data=json.dumps({"query": "fox tail", "k": 1}).encode(), headers={"content-type": "application/json"})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    for _ in range(600):
        time.sleep(0.2)
        assert server.poll() is None, server.returncode
        try:
            assert "d0" in opener.open(request, timeout=60).read().decode()
            break
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code != 503:  # 503: still loading
                raise
    else:
        sys.exit("the server never answered")
finally:
    server.terminate()
    server.wait()
print("used")
"""


def environment() -> dict[str, str]:
    """Runs without PYTHONPATH, which would put the sources before the installed package."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("CHAMFER_")}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def checkout(target: Path) -> Path:
    """A copy of the tracked files: building in place would leave build/ and egg-info in the repository."""
    names = run("git", "ls-files", "-z").split("\0")
    for name in filter(None, names):
        source, copy = ROOT / name, target / name
        if not source.is_symlink() and not source.exists():
            continue  # deleted, and not committed yet
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        else:
            copy.write_bytes(source.read_bytes())
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = checkout(folder / "source")
    run(sys.executable, *PIP, "wheel", *OFFLINE, "--wheel-dir", folder, source)
    (built,) = folder.glob("chamfer-*.whl")
    return built


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(Python of a fresh environment that also sees the dependencies of this one, folder that holds chamfer)."""
    folder = tmp_path_factory.mktemp(request.param)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # addsitedir would also run the .pth files there, among them that of an editable chamfer; a plain path does not.
    shared = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    (site_packages / "zz_dependencies.pth").write_text("\n".join(dict.fromkeys(shared)) + "\n")
    if request.param == "wheel":
        run(sys.executable, *PIP, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
        return python, site_packages
    source = checkout(folder / "source")
    words = ["install", *OFFLINE, "--ignore-installed", "--editable"]
    run(sys.executable, *PIP, "--python", python, *words, source)
    return python, source / "src"


def test_the_wheel_contains_only_the_package_chamfer(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"chamfer"}


def test_the_wheel_contains_every_file_that_is_read_and_no_training_reports(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "chamfer/py.typed" in names
    assert "chamfer/demo/fairytaleqa/corpus.jsonl" in names
    assert any(name.startswith("chamfer/models/weights/") and name.endswith(".safetensors") for name in names)
    assert any(name.startswith("chamfer/models/weights/") and name.endswith("model.json") for name in names)
    assert any(name.startswith("chamfer/service/") and "/console/" in name for name in names)
    assert not [name for name in names if Path(name).name in {"curve.png", "report.json", "report.md"}]


@pytest.mark.parametrize("regular", [True, False], ids=["with __init__", "without __init__"])
def test_the_package_works_beside_user_packages_of_the_same_folder_names(
    installed: tuple[Path, Path], tmp_path: Path, regular: bool
) -> None:
    python, home = installed
    for name in ("models", "indexing"):
        (tmp_path / name).mkdir()
        if regular:
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user was imported')\n")
    (tmp_path / "service.py").write_text("raise RuntimeError('a module of the user was imported')\n")
    (tmp_path / "use.py").write_text(USE)
    assert "used" in run(python, "use.py", home, cwd=tmp_path)
