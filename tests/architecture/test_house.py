"""The rules of the house that import-linter cannot express."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("src", "models", "indexing", "service", "benchmarks", "recipes", "reference")
BANNED = {"manager", "helper", "util", "handler", "processor", "base", "misc", "new", "v2"}


def sources() -> Iterator[Path]:
    """Every file once: `rglob` does not go through the links of src/chamfer."""
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_importing_chamfer_stays_light() -> None:
    heavy = {"torch", "numba", "numpy", "openvino", "transformers", "sentence_transformers", "fastapi", "pyarrow"}
    assert not heavy & loaded_after("import chamfer")


def test_importing_the_types_loads_no_torch_and_no_numba() -> None:
    assert not {"torch", "numba", "openvino"} & loaded_after("import chamfer.core.types, chamfer.core.protocols")


def test_indexing_works_without_torch() -> None:
    assert not {"torch", "transformers", "fastapi"} & loaded_after(
        "import chamfer.indexing.building.builder, chamfer.indexing.collection.collection"
    )


def test_settings_and_the_python_interface_load_no_web_framework(tmp_path: Path) -> None:
    web = {"fastapi", "starlette", "uvicorn"}
    assert not web & loaded_after("import chamfer.settings, chamfer.api")
    build_and_open = f"""
import chamfer
from chamfer.settings import load_settings
settings = load_settings(environment={{}}, overrides={{"build.channels": "lexical"}})
chamfer.build([chamfer.Document("a", "a fox")], {str(tmp_path / "fables")!r}, settings=settings).close()
searcher = chamfer.open({str(tmp_path / "fables")!r}, settings=settings)
assert [hit.doc_id for hit in searcher.search("fox")] == ["a"]
"""
    assert not web & loaded_after(build_and_open)


def test_the_help_of_the_command_line_loads_nothing_heavy() -> None:
    assert not {"torch", "numba", "openvino", "fastapi"} & loaded_after("import chamfer.cli")


def test_the_packages_resolve_inside_this_project() -> None:
    for package in ("chamfer", "chamfer.models", "chamfer.indexing", "chamfer.service"):
        module = import_module(package)
        assert Path(str(module.__file__)).is_relative_to(ROOT), package


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_no_function_is_longer_than_60_lines_and_compiled_kernels_90() -> None:
    long = []
    for path in sources():
        limit = 90 if path.name.startswith("_numba") else 60
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > limit:
                    long.append(f"{path.relative_to(ROOT)}:{node.name} has {length} lines")
    assert not long


def test_no_name_is_one_of_those_that_say_nothing() -> None:
    found = []
    for path in sources():
        words = set(path.stem.strip("_").split("_"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words |= set(node.name.lower().strip("_").split("_"))
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words & BANNED]
    assert not found


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for path in sources()
        if "benchmarks" not in path.parts and ("os.environ" in path.read_text() or "getenv" in path.read_text())
    }
    assert readers == {"src/chamfer/settings.py"}


def test_every_test_asserts_something() -> None:
    silent = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                text = ast.dump(node)
                if not any(word in text for word in ("Assert(", "raises", "assert_", "check", "expect")):
                    silent.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not silent


def test_nothing_imports_the_bare_names_and_nothing_hides_an_import() -> None:
    bare, hidden = [], []
    folders = (ROOT / package for package in (*PACKAGES, "tests"))
    for path in (file for folder in folders for file in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if {name.split(".")[0] for name in names} & {"service", "indexing", "models"}:
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
            if isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and "tests" not in path.parts:
                named = [a.value for a in ast.walk(node) if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                if any(name.split(".")[0] == "chamfer" for name in named):
                    hidden.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bare, "import chamfer.service, chamfer.indexing, chamfer.models"
    assert not hidden, "import by statement: import-linter cannot see import_module"


def test_no_folder_has_a_name_that_tools_skip() -> None:
    # ruff and pytest leave folders of these names out by default: code and tests in them would go unchecked.
    skipped = {"build", "dist", "venv", "site-packages", "node_modules"}
    folders = {path.parent for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")}
    assert not {str(folder) for folder in folders if skipped & set(folder.relative_to(ROOT).parts)}
