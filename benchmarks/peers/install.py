"""Installs pinned versions of the peers of `benchmarks.multivector` and `benchmarks.late` into var/peers.

    python -m benchmarks.peers.install [--home DIR] [--abseil SOURCES]

Building muvera-fde (Google's C++) downloads Eigen and Abseil. Where that is not possible, --abseil names the sources of
Abseil, and Eigen is taken from the system (libeigen3-dev). Peers that cannot be installed are listed at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers import HOME

BUILD = (
    "scikit-build-core==1.1.2",
    "pybind11==3.1.0",
    "cmake==4.4.4",
    "ninja==1.13.2",
    "numpy==2.2.6",
    "pydantic==2.14.3",
)
PEERS = {
    "muvfde==0.0.9": (),
    "fast-maxsim==0.2.0": (),
    "maxsim-cpu==0.1.0": (),
    "muvera-rs==0.1.0": ("--no-deps",),
    "pymuvera==0.4.2": ("--ignore-requires-python", "--no-deps"),  # declares Python 3.12 but runs on 3.11
    "muvera-fde==0.1.0": ("--no-build-isolation", "--no-deps", "--no-binary", "muvera-fde"),
}
UNPACKED = {  # imported by benchmarks.late in its own process
    "tachiom==0.4.0": "manylinux_2_39_x86_64",  # tagged for a newer glibc than its code needs
    "muvera-rs==0.1.0": "manylinux_2_34_x86_64",
}
SYSTEM_EIGEN = """find_package(Eigen3 CONFIG REQUIRED)
set_target_properties(Eigen3::Eigen PROPERTIES IMPORTED_GLOBAL TRUE)
"""


def main() -> None:
    """Installs all peers; exits with the names of those that failed."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--home", type=Path, default=HOME)
    arguments.add_argument("--abseil", type=Path)
    options = arguments.parse_args()
    venv.create(options.home, with_pip=True)
    environment = dict(os.environ)
    environment["PATH"] = f"{options.home / 'bin'}{os.pathsep}{environment['PATH']}"  # the build calls ninja by name
    if options.abseil is not None:
        eigen = options.home / "eigen"
        eigen.mkdir(exist_ok=True)
        (eigen / "CMakeLists.txt").write_text(SYSTEM_EIGEN, encoding="utf-8")
        sources = {"EIGEN": eigen, "ABSL": options.abseil}
        flags = [f"-DFETCHCONTENT_SOURCE_DIR_{name}={path.resolve()}" for name, path in sources.items()]
        environment["CMAKE_ARGS"] = " ".join(flags)
    pip = [str(options.home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *BUILD], check=True, env=environment)
    missing = [
        name for name, extra in PEERS.items() if subprocess.run([*pip, *extra, name], env=environment).returncode
    ]
    for name, platform in UNPACKED.items():
        target = ["--target", str(options.home / "unpacked"), "--platform", platform, "--only-binary", ":all:"]
        if subprocess.run([*pip, *target, "--python-version", "3.11", "--no-deps", "--upgrade", name]).returncode:
            missing.append(name)
    sys.exit(f"not installed: {', '.join(missing)}" if missing else 0)


if __name__ == "__main__":
    main()
