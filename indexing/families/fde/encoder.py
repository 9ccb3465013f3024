"""The configuration of an FDE channel, and the encoding of token vectors that follows from it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chamfer.core.errors import InvalidInput
from chamfer.core.types import F32, TokenVectors
from chamfer.indexing.families.family import check_tokens
from chamfer.indexing.kernels.fde import FdeMatrices, FdeShape, Projection, encode_documents, encode_queries
from chamfer.indexing.kernels.product import WIDTH

NAME = "fde"


@dataclass(frozen=True, kw_only=True)
class FdeConfig:
    """repetitions, k_sim, d_proj, projection, final_dim: the encoding (chamfer.indexing.kernels.fde.FdeShape).

    fill          an empty cell of a document takes the document's nearest token
    centred       the mean of the sample's token vectors is subtracted from every token
    seed          of all random draws
    storage       int8: one byte per dimension and one scale per document; float16: two bytes; pq8: the paper's
                  PQ-256-8, one byte per 8 dimensions; rabitq: one bit per dimension (chamfer.indexing.rows.storage)
    search        flat: every row is scored; hnsw, ivf: in segments of at least 1,000 documents, faiss proposes
                  `depth_factor` times k candidates, which the storage scores. Both keep a float16 copy of the rows
    depth_factor  see search
    ef_search     size of the candidate list of a search by hnsw
    n_probe       number of lists that a search by ivf reads
    """

    repetitions: int = 20
    k_sim: int = 4
    d_proj: int = 8
    projection: Projection = "count_sketch"
    final_dim: int = 0
    fill: bool = True
    centred: bool = False
    seed: int = 1
    storage: Literal["int8", "float16", "pq8", "rabitq"] = "int8"
    search: Literal["flat", "hnsw", "ivf"] = "flat"
    depth_factor: int = 4
    ef_search: int = 256
    n_probe: int = 16

    def __post_init__(self) -> None:
        shape = self.shape()  # raises InvalidInput for impossible sizes
        if self.storage in ("pq8", "rabitq") and shape.dim % WIDTH:
            raise InvalidInput(
                f"fde.storage {self.storage} needs a multiple of {WIDTH} dimensions, but the encoding has {shape.dim}"
            )
        if min(self.depth_factor, self.ef_search, self.n_probe) < 1:
            raise InvalidInput(
                f"fde depth_factor {self.depth_factor}, ef_search {self.ef_search}, n_probe {self.n_probe}; "
                "expected at least 1 each"
            )
        if self.search == "ivf":
            warnings.warn(
                "fde.search ivf is known to lose a large part of the recall of an FDE; measure it (chamfer plan), or "
                "set fde.search to flat or hnsw",
                stacklevel=2,
            )

    def shape(self) -> FdeShape:
        return FdeShape(self.repetitions, self.k_sim, self.d_proj, self.projection, self.final_dim)


@dataclass(frozen=True, eq=False)
class FdeEncoder:
    """Encodes token vectors with the matrices of one collection: documents on `device`, queries on the CPU."""

    matrices: FdeMatrices
    centre: F32
    config: FdeConfig
    device: str = "cpu"

    def documents(self, tokens: TokenVectors) -> F32:
        """Encodings f32 [N, D] of N documents."""
        values, shape, fill = self._centred(tokens, "document"), self.config.shape(), self.config.fill
        if self.device == "cpu":
            return encode_documents(values, tokens.offsets, self.matrices, shape, fill=fill)
        import torch

        from chamfer.indexing.kernels import fde_torch

        on_device, offsets = (torch.from_numpy(array).to(self.device) for array in (values, tokens.offsets))
        encodings: F32 = fde_torch.encode_documents(on_device, offsets, self.matrices, shape, fill=fill).cpu().numpy()
        return encodings

    def queries(self, tokens: TokenVectors) -> F32:
        """Encodings f32 [Q, D] of Q queries."""
        return encode_queries(self._centred(tokens, "query"), tokens.offsets, self.matrices, self.config.shape())

    def _centred(self, tokens: TokenVectors, text_kind: str) -> F32:
        check_tokens(tokens.values, len(self.centre), NAME, text_kind)
        values = np.asarray(tokens.values, dtype=np.float32)
        return values - self.centre if self.centre.any() else values
