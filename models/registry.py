"""The catalogue of models that come with Chamfer, and loading by catalogue name, hub name or local path.

Modules that need torch are imported when a model is loaded, so that listing the catalogue stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from chamfer.core.errors import InvalidInput
from chamfer.core.protocols import Encoder, Reranker
from chamfer.core.types import VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.rerankers.remote import RemoteConfig, RemoteReranker


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that comes with Chamfer."""

    description: str
    kinds: tuple[VectorKind, ...]
    licence: str
    load: Callable[[DeviceConfig], Encoder]


def _load_mini(config: DeviceConfig) -> Encoder:
    from chamfer.models.encoders.mini import load_mini

    return load_mini("mini", config, projected=True)


def _load_mini_384(config: DeviceConfig) -> Encoder:
    from chamfer.models.encoders.mini import load_mini

    return load_mini("mini-384", config, projected=False)


def _trained(name: str, *folders: str) -> Callable[[DeviceConfig], Encoder]:
    def load(config: DeviceConfig) -> Encoder:
        from chamfer.models.encoders.trained import load_trained_encoder

        return load_trained_encoder(name, [WEIGHTS / folder for folder in folders], config)

    return load


WEIGHTS = Path(__file__).with_name("weights")
_BOTH = (VectorKind.DENSE, VectorKind.TOKENS)
CATALOGUE: dict[str, CatalogueEntry] = {
    "mini": CatalogueEntry(
        "all-MiniLM-L6-v2, dense 384 and 128-dimensional token vectors", _BOTH, "Apache-2.0", _load_mini
    ),
    "mini-384": CatalogueEntry(
        "all-MiniLM-L6-v2, dense 384 and raw 384-dimensional token vectors", _BOTH, "Apache-2.0", _load_mini_384
    ),
    "mini-late": CatalogueEntry(
        "all-MiniLM-L6-v2 adapted: trained 128-dimensional token vectors for CRISP's poolings",
        (VectorKind.TOKENS,),
        "Apache-2.0",
        _trained("mini-late", "mini-late"),
    ),
    "mini-sparse": CatalogueEntry(
        "all-MiniLM-L6-v2, dense 384 and learned sparse vectors over stems; queries without a forward pass",
        (VectorKind.DENSE, VectorKind.SPARSE),
        "Apache-2.0",
        _trained("mini-sparse", "mini-sparse"),
    ),
}
RERANKERS = ("mini-cross",)
FAMILIES = {"dense": VectorKind.DENSE, "multivector": VectorKind.TOKENS, "sparse": VectorKind.SPARSE}
_RERANKER_NAMES = (
    "a catalogue name, a hub name or local path of a cross-encoder, or PREFIX:NAME with PREFIX one of cross_encoder, "
    "yes_no, true_false, unime, maxsim (an encoder), remote (a server in the settings)"
)
_ENCODER_NAMES = (
    "a catalogue name, KIND:NAME with KIND one of dense, multivector, sparse and NAME a hub name or a local path, or "
    "trained:FOLDER for a model that chamfer train wrote (several folders separated by commas)"
)


def load_encoder(name: str, config: DeviceConfig) -> Encoder:
    """The encoder of this name. The kind of a model from elsewhere follows from its prefix and is never guessed.

    `NAME+POOLING` pools its token vectors (chamfer.models.networks.token_pooling). Raises InvalidInput for a name that
    cannot be resolved, NotFound where the weights are not available locally.
    """
    inner, plus, pooling = name.rpartition("+")
    if plus and "/" not in pooling:
        from chamfer.models.encoders.pooled import PooledEncoder
        from chamfer.models.networks.token_pooling import parse_pooling

        return PooledEncoder(load_encoder(inner, config), parse_pooling(pooling))
    if name in CATALOGUE:
        return CATALOGUE[name].load(config)
    family, separator, model = name.partition(":")
    if family == "trained" and model:
        return _load_trained(name, [Path(part) for part in model.split(",")], config)
    if not separator or family not in FAMILIES or not model:
        near = get_close_matches(name, CATALOGUE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InvalidInput(
            f"unknown encoder {name!r}{hint} Expected {_ENCODER_NAMES}. Catalogue: {', '.join(CATALOGUE)}"
        )
    from chamfer.models.encoders.sentence_transformers import load_hub_encoder

    return load_hub_encoder(name, model, FAMILIES[family], config)


def _load_trained(name: str, folders: list[Path], config: DeviceConfig) -> Encoder:
    from chamfer.models.encoders.multimodal import load_universal_encoder
    from chamfer.models.encoders.trained import load_trained_encoder
    from chamfer.models.networks.checkpoint import describe

    if len(folders) == 1 and describe(folders[0]).kind == "universal":
        return load_universal_encoder(name, folders[0], config)
    return load_trained_encoder(name, folders, config)


def load_reranker(
    name: str,
    config: DeviceConfig,
    remotes: Mapping[str, RemoteConfig] | None = None,
    encoder: DeviceConfig | None = None,
) -> Reranker:
    """The reranker of this name: PREFIX:NAME, or a hub name or local path alone for a cross-encoder.

    `remotes` are the servers by name; `encoder` is the device of the encoder of `maxsim:NAME` (default: `config`).
    Raises InvalidInput for a name that cannot be resolved, NotFound where weights are not available locally.
    """
    kind, separator, model = name.partition(":")
    if separator and not model:
        raise InvalidInput(f"reranker {name!r} names no model. Expected {_RERANKER_NAMES}")
    if kind == "maxsim":
        from chamfer.models.rerankers.maxsim import MaxSimReranker

        return MaxSimReranker(load_encoder(model, encoder or config))
    if kind == "remote":
        return _load_remote(model, remotes or {})
    if kind in ("yes_no", "true_false", "unime"):
        return _load_judge(name, kind, model, config)
    return _load_cross(name, config)


def _load_cross(name: str, config: DeviceConfig) -> Reranker:
    model = name.removeprefix("cross_encoder:")
    folder = WEIGHTS / model if model in RERANKERS else Path(model)
    if (folder / "model.json").is_file():  # what chamfer train wrote
        from chamfer.models.rerankers.trained import load_trained_reranker

        return load_trained_reranker(name, folder, config)
    from chamfer.models.rerankers.sentence_transformers import load_cross_encoder

    return load_cross_encoder(model, config)


def _load_judge(name: str, kind: str, model_name: str, config: DeviceConfig) -> Reranker:
    from chamfer.models.networks.chat_model import load_language_model
    from chamfer.models.rerankers.generative import GenerativeReranker
    from chamfer.models.rerankers.listwise import ListwiseConfig, ListwiseReranker
    from chamfer.models.rerankers.prompts import QWEN3_RERANKER, QWEN3_VL_RERANKER, TRUE_FALSE

    model = load_language_model(model_name, config)
    if kind == "unime":
        return ListwiseReranker(name, model, ListwiseConfig())
    trained = QWEN3_VL_RERANKER if model.reads_images else QWEN3_RERANKER
    return GenerativeReranker(name, model, trained if kind == "yes_no" else TRUE_FALSE)


def _load_remote(name: str, remotes: Mapping[str, RemoteConfig]) -> Reranker:
    if name not in remotes:
        configured = ", ".join(sorted(remotes)) or "none"
        raise InvalidInput(f"no remote reranker {name!r} in the settings (models.remotes); configured: {configured}")
    return RemoteReranker(f"remote:{name}", remotes[name])
