"""The home directory of the user, who need not have one."""

from __future__ import annotations

from pathlib import Path


def home_directory() -> Path | None:
    """The user's home; None without HOME and without a passwd entry, as for an arbitrary user id in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return None
