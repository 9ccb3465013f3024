"""The catalogue of models, and loading by catalogue name, hub name or local path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from chamfer.errors import InvalidInput
from chamfer.protocols import Encoder, Reranker
from chamfer.types import VectorKind
from models.backbone import DeviceConfig


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that comes with Chamfer."""

    description: str
    kinds: tuple[VectorKind, ...]
    licence: str
    load: Callable[[DeviceConfig], Encoder]


def _load_mini(config: DeviceConfig) -> Encoder:
    from models.mini import load_mini

    return load_mini("mini", config, projected=True)


def _load_mini_384(config: DeviceConfig) -> Encoder:
    from models.mini import load_mini

    return load_mini("mini-384", config, projected=False)


def _trained(name: str, *folders: str) -> Callable[[DeviceConfig], Encoder]:
    def load(config: DeviceConfig) -> Encoder:
        from models.trained_encoder import load_trained_encoder

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
        "all-MiniLM-L6-v2, dense 384 and trained 128-dimensional token vectors for CRISP's poolings",
        _BOTH,
        "Apache-2.0",
        _trained("mini-late", "mini-late"),
    ),
    "mini-sparse": CatalogueEntry(
        "all-MiniLM-L6-v2, dense 384 and learned sparse documents; queries need no model",
        (VectorKind.DENSE, VectorKind.SPARSE),
        "Apache-2.0",
        _trained("mini-sparse", "mini-sparse"),
    ),
    "mini-all": CatalogueEntry(
        "dense, token and sparse vectors of mini-late and mini-sparse from one forward pass",
        (VectorKind.DENSE, VectorKind.TOKENS, VectorKind.SPARSE),
        "Apache-2.0",
        _trained("mini-all", "mini-late", "mini-sparse"),
    ),
}
RERANKERS = ("mini-cross",)
FAMILIES = {"dense": VectorKind.DENSE, "multivector": VectorKind.TOKENS, "sparse": VectorKind.SPARSE}
_HOW = (
    "a catalogue name, KIND:NAME with KIND one of dense, multivector, sparse and NAME a hub name or a local path, or "
    "trained:FOLDER for what chamfer train wrote (several folders with commas)"
)


def load_encoder(name: str, config: DeviceConfig) -> Encoder:
    """The encoder of this name. The kind of a foreign model is said by its prefix, never guessed.

    `NAME+POOLING` pools its token vectors (models.clustering). Raises InvalidInput for a name that means nothing,
    NotFound where the weights are not at hand.
    """
    inner, plus, pooling = name.rpartition("+")
    if plus and "/" not in pooling:
        from models.clustering import parse_pooling
        from models.pooled import PooledEncoder

        return PooledEncoder(load_encoder(inner, config), parse_pooling(pooling))
    if name in CATALOGUE:
        return CATALOGUE[name].load(config)
    family, separator, model = name.partition(":")
    if family == "trained" and model:
        from models.trained_encoder import load_trained_encoder

        return load_trained_encoder(name, [Path(part) for part in model.split(",")], config)
    if not separator or family not in FAMILIES or not model:
        near = get_close_matches(name, CATALOGUE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidInput(f"unknown encoder {name!r}{hint} Expected {_HOW}. Catalogue: {', '.join(CATALOGUE)}")
    from models.hub import load_hub_encoder

    return load_hub_encoder(name, model, FAMILIES[family], config)


def load_reranker(name: str, config: DeviceConfig) -> Reranker:
    """The reranker of this catalogue name, hub name or local path (`cross_encoder:` before it is allowed).

    A folder that `chamfer train` wrote is known by its description.
    """
    model = name.removeprefix("cross_encoder:")
    folder = WEIGHTS / model if model in RERANKERS else Path(model)
    if (folder / "model.json").is_file():
        from models.cross import load_trained_reranker

        return load_trained_reranker(name, folder, config)
    from models.cross_encoder import load_cross_encoder

    return load_cross_encoder(model, config)
