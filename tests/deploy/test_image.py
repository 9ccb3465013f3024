"""The Dockerfile and the compose file, checked without an engine: what they copy and run must exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from chamfer.cli import app, register_commands

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) with continued lines joined and comments dropped."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, _, rest in pairs]


def chamfer_options(words: list[str]) -> None:
    """Raises unless `chamfer WORDS` names a command and options that exist."""
    register_commands()
    commands = get_command(app).commands  # type: ignore[attr-defined]  # a click group
    assert words[0] in commands, f"chamfer has no command {words[0]}"
    options = {option for parameter in commands[words[0]].params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("--"):
            assert word in options, f"chamfer {words[0]} has no option {word}"


def test_every_copied_path_exists_and_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        word for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    ]
    assert copied
    for word in copied:
        path = word.removeprefix("./")
        assert (ROOT / path).exists(), word
        assert path in allowed, f"{word} is not let through by .dockerignore"


def test_every_chamfer_command_in_the_image_exists() -> None:
    commands = [shlex.split(m.group(1)) for m in re.finditer(r"RUN chamfer ([^\n&]+)", DOCKERFILE)]
    for name, rest in instructions():
        if name == "CMD":
            commands.append(yaml.safe_load(rest))
        if name == "HEALTHCHECK":
            commands.append(yaml.safe_load(rest.split("CMD", 1)[1])[1:])
    assert len(commands) >= 4
    for words in commands:
        chamfer_options(words)


def test_every_stage_that_is_used_is_defined() -> None:
    stages = {rest.split(" AS ")[1] for name, rest in instructions() if name == "FROM" and " AS " in rest}
    assert {"cpu", "gpu"} <= stages
    used = re.findall(r"--from=(\S+)", DOCKERFILE) + [
        rest.split()[0] for name, rest in instructions() if name == "FROM" and ":" not in rest.split()[0]
    ]
    assert set(used) <= stages


def test_the_cpu_image_is_the_default_and_both_run_as_an_ordinary_user() -> None:
    stages = DOCKERFILE.split("\nFROM ")
    assert stages[-1].startswith("runtime AS cpu")
    assert all("USER chamfer" in stage for stage in stages if " AS cpu" in stage or " AS gpu" in stage)


def test_the_image_has_a_healthcheck_and_no_secret_or_latest_tag() -> None:
    names = [name for name, _ in instructions()]
    assert "HEALTHCHECK" in names
    assert "ADD" not in names
    assert ":latest" not in DOCKERFILE


def test_extras_installed_by_the_image_exist() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\"\.\[(\w+)\]\"", DOCKERFILE)) == {"cpu", "gpu"} <= set(extras)


@pytest.mark.parametrize("service", ["demo", "chamfer", "gpu"])
def test_compose_services_use_targets_commands_and_files_that_exist(service: str) -> None:
    entry = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"][service]
    if "build" in entry:
        assert f" AS {entry['build']['target']}\n" in DOCKERFILE
        assert (ROOT / "deploy" / entry["build"]["context"] / "Dockerfile").exists()
    if "command" in entry:
        chamfer_options(entry["command"])
    for volume in entry.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / "deploy" / source).exists(), source


def test_the_settings_of_the_compose_file_are_valid() -> None:
    from chamfer.settings import load_settings

    settings = load_settings(ROOT / "deploy/chamfer.toml", {})
    assert settings.collections


def test_the_links_of_the_namespace_resolve_in_the_image() -> None:
    copied = {word.removeprefix("./") for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]}
    links = [path for path in (ROOT / "src" / "chamfer").iterdir() if path.is_symlink()]
    assert {str(link.resolve().relative_to(ROOT)) for link in links} == {"service", "indexing", "models"} <= copied
    assert not any(link.readlink().is_absolute() for link in links)
