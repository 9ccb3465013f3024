"""`import chamfer`: the public names are listed, load on first use, and have types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import chamfer

SNIPPET = """import chamfer
reveal_type(chamfer.open)
reveal_type(chamfer.open("tales").search("fox"))
"""


def test_dir_lists_the_public_names() -> None:
    assert {"build", "open", *chamfer.__all__} <= set(dir(chamfer))


def test_public_names_are_those_of_the_library() -> None:
    from chamfer import api
    from chamfer.core import types

    assert chamfer.open is api.open
    assert chamfer.build is api.build
    assert chamfer.Document is types.Document


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        getattr(chamfer, "opne")  # noqa: B009  # mypy would refuse chamfer.opne


@pytest.mark.slow
def test_mypy_sees_the_types_of_the_public_names(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "snippet.py").write_text(SNIPPET)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(tmp_path / "snippet.py")],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "-> chamfer.service.search.searcher.Searcher" in done.stdout
    assert "list[chamfer.core.types.Hit]" in done.stdout
