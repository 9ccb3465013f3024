"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test collections beside the checkout; skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RETRIEVAL_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real collections beside the checkout (set RETRIEVAL_TEST_DATA)")
    return folder


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without a passwd entry, as under an arbitrary user id in a container."""

    def no_entry(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)


# Compilation and shared machines make the time of one example meaningless. The suite draws the same examples each time,
# so that it fails for a change and not by chance; HYPOTHESIS_PROFILE=search looks for new ones.
CLOCKS = (HealthCheck.too_slow,)  # a limit in seconds as well
settings.register_profile("chamfer", deadline=None, derandomize=True, suppress_health_check=CLOCKS)
settings.register_profile("search", deadline=None, suppress_health_check=CLOCKS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "chamfer"))
