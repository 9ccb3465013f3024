"""Settings from file, environment and overrides; unknown keys are errors that suggest the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from chamfer.core.errors import InvalidInput, NotFound
from chamfer.settings import describe, load_settings


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_need_no_file_and_no_environment() -> None:
    settings = load_settings(None, {})
    assert settings.models.encoder == "mini"
    assert settings.service.port == 8000
    assert settings.build.channels == ("dense", "multivector", "lexical")


def test_the_environment_overrides_the_file_and_overrides_override_both(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        """
[models]
encoder = "mini-384"
rerankers = ["a", "b"]
[models.device]
threads = 3
[service]
port = 1
[service.batching]
max_batch = 7
[build]
channels = ["lexical"]
[build.parameters.lexical]
k1 = 1.2
[collections]
docs = "/data/docs"
[plans.mine]
channels = { lexical = { depth = 50 } }
""",
    )
    environment = {
        "CHAMFER_SERVICE__PORT": "2",
        "CHAMFER_SERVICE__BATCHING__WORKERS": "2",
        "CHAMFER_MODELS__DEVICE__ALLOW_DOWNLOAD": "true",
        "OTHER": "x",
    }
    settings = load_settings(file, environment, {"service.port": "3", "build.channels": "dense, lexical"})
    assert settings.models.encoder == "mini-384"
    assert settings.models.rerankers == ("a", "b")
    assert settings.models.device.threads == 3
    assert settings.models.device.allow_download is True
    assert settings.service.port == 3
    assert settings.service.batching.max_batch == 7
    assert settings.service.batching.workers == 2
    assert settings.build.channels == ("dense", "lexical")
    assert settings.build.parameters == {"lexical": {"k1": 1.2}}
    assert settings.collections == {"docs": Path("/data/docs")}
    assert settings.plans["mine"].channels["lexical"].depth == 50
    assert describe(settings)["plans"]["mine"]["channels"]["lexical"]["depth"] == 50


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "[service]\nport = 5\n")
    assert load_settings(None, {"CHAMFER_CONFIG": str(file)}).service.port == 5


def test_converted_models_are_cached_in_the_users_cache_directory_by_default(tmp_path: Path) -> None:
    assert load_settings(None, {"XDG_CACHE_HOME": "/c"}).models.device.cache_dir == Path("/c/chamfer")
    assert load_settings(None, {"HOME": "/h"}).models.device.cache_dir == Path("/h/.cache/chamfer")
    configured = load_settings(None, {"CHAMFER_MODELS__DEVICE__CACHE_DIR": "/elsewhere"})
    assert configured.models.device.cache_dir == Path("/elsewhere")


@pytest.mark.usefixtures("without_home")
def test_without_a_home_directory_converted_models_are_not_cached() -> None:
    device = load_settings(None, {}).models.device
    assert device.cache_dir is None
    assert load_settings(None, {"XDG_CACHE_HOME": "/c"}).models.device.cache_dir == Path("/c/chamfer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[servce]\nport = 1", "unknown setting 'servce'; did you mean 'service'"),
        ("[service]\nprot = 1", r"unknown setting 'service\.prot'; did you mean 'port'"),
        ("[multivector]\nstorage = 'int3'", r"parameters of a channel belong in \[build\.parameters\.multivector\]"),
        ("[service]\nport = 'many'", r"setting 'service\.port' is 'many'"),
        ("[service]\nbatching = 3", r"setting 'service\.batching' is 3, expected a table"),
        ("[models.device]\ndevice = 'tpu'", r"models\.device\.device.*'cpu'"),
        ("[plans.x]\nchannel = {}", r"plans"),
        ("[service.batching]\nmax_batch = 0", "batching.max_batch is 0"),
        ("[build]\nchannels = []", "expected at least one"),
        ("x = [", "not valid TOML"),
    ],
)
def test_an_invalid_setting_is_reported_with_its_dotted_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_settings(write(tmp_path / "c.toml", text), {})


def test_an_unknown_variable_is_an_error_that_suggests_the_nearest_setting() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'encoder'"):
        load_settings(None, {"CHAMFER_MODELS__ENCODR": "mini"})
    with pytest.raises(InvalidInput, match="which is a value, not a table"):
        load_settings(None, {"CHAMFER_MODELS": "x", "CHAMFER_MODELS__ENCODER": "mini"})


def test_a_missing_settings_file_is_an_error() -> None:
    with pytest.raises(NotFound, match=r"none\.toml does not exist"):
        load_settings(Path("none.toml"), {})
