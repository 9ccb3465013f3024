"""A directory with a manifest: the one way in which Chamfer writes to disk and opens what it wrote.

An artifact is written to a temporary directory beside its target. Every file is synced, `manifest.json` is written
last, and one rename publishes the directory; one rename also takes it away (`remove_directory`). A directory without a
manifest counts as absent. Opening always checks the format version, the kind, the names and sizes of the files and the
manifest's own SHA-256; the SHA-256 of the files is checked on request. A published artifact is never edited.
Manifests hold no timestamps, so that equal inputs give equal bytes.

Formats older than OLDEST_FORMAT predate the first release and are not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chamfer.core.errors import Conflict, Corrupt, Incompatible, InvalidInput, NotFound
from chamfer.core.mapped_files import map_array
from chamfer.core.types import Array

FORMAT_VERSION = 3
OLDEST_FORMAT = 3
MANIFEST = "manifest.json"
TEMPORARY_PREFIX = ".writing-"


@dataclass(frozen=True, slots=True)
class ArrayStream:
    """An array that is written piece by piece: chunks laid end to end along the first axis give `shape`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Iterable[Array]


class ArtifactWriter:
    """Collects files in the temporary directory. Made by `write_artifact` alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> Path:
        """The path at which the caller is to write a file of this name."""
        if "/" in name or name.startswith(".") or name == MANIFEST:
            raise InvalidInput(f"artifact file name {name!r}: expected a plain name other than {MANIFEST}")
        return self.directory / name

    def add_array(self, name: str, array: Array | ArrayStream) -> None:
        """Writes NAME.npy (C order), whole or streamed; at least one axis."""
        stream = array if isinstance(array, ArrayStream) else ArrayStream(array.dtype, array.shape, [array])
        rows = 0
        with self.path(f"{name}.npy").open("wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(stream.dtype),
                "fortran_order": False,
                "shape": stream.shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in stream.chunks:
                rows += len(chunk)
                file.write(np.ascontiguousarray(chunk, dtype=stream.dtype).data)
        if stream.shape and rows != stream.shape[0]:
            raise InvalidInput(f"array {name} was announced with {stream.shape[0]} rows and got {rows}")

    def add_json(self, name: str, value: Any) -> None:
        self.path(f"{name}.json").write_text(canonical_json(value) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened directory. `digest` is the SHA-256 of the manifest: the identity of everything inside."""

    path: Path
    kind: str
    digest: str
    body: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @property
    def n_bytes(self) -> int:
        return sum(int(entry["bytes"]) for entry in self.files.values())

    def array(self, name: str) -> Array:
        """NAME.npy, read-only: memory-mapped, or read if it is small. No descriptor stays open."""
        path = self.file(f"{name}.npy")
        try:
            return map_array(path)
        except FileNotFoundError:
            raise Corrupt(_missing(path)) from None
        except ValueError as error:
            raise Corrupt(f"{path} is not a readable array: {error}") from error

    def file(self, name: str) -> Path:
        if name not in self.files:
            raise Corrupt(f"{self.path} lists no file {name!r}; it holds {sorted(self.files)}")
        return self.path / name

    def json(self, name: str) -> Any:
        return json.loads(self.file(f"{name}.json").read_text(encoding="utf-8"))

    def arrays(self, prefix: str) -> dict[str, Array]:
        """All arrays whose name starts with `prefix`, by the rest of their name."""
        names = [n for n in self.files if n.startswith(prefix) and n.endswith(".npy")]
        return {n[len(prefix) : -len(".npy")]: self.array(n[: -len(".npy")]) for n in names}

    def verify(self) -> None:
        """Corrupt if the SHA-256 of any file differs from the manifest."""
        for name, entry in self.files.items():
            digest = file_digest(self.path / name)
            if digest != entry["sha256"]:
                raise Corrupt(
                    f"{self.path / name} has SHA-256 {digest[:16]}…, expected {entry['sha256'][:16]}…: "
                    "its bytes changed after it was written; restore it from a copy or build again"
                )


@contextmanager
def write_artifact(path: Path, kind: str, body: Mapping[str, Any]) -> Iterator[ArtifactWriter]:
    """Yields a writer; on a clean exit publishes `path` by one rename, on an error leaves nothing behind.

    `body` is filled by the caller until the exit, then written into the manifest. Raises Conflict if `path` exists.
    """
    if path.exists():
        raise Conflict(f"{path} exists already; artifacts are never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield ArtifactWriter(temporary)
        _write_manifest(temporary, kind, body)
        os.rename(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def open_artifact(path: Path, kind: str, *, verify: bool = False) -> Artifact:
    """The artifact at `path`.

    Raises NotFound (no manifest), Incompatible (newer format, other kind), Corrupt (a file missing, of another
    size, or, with `verify`, of other bytes).
    """
    manifest_path = path / MANIFEST
    try:
        raw = manifest_path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path} holds no {MANIFEST}: not a finished Chamfer {kind}") from None
    try:
        manifest = json.loads(raw)
        found_format, found_kind = int(manifest["format"]), str(manifest["kind"])
        if found_format < 1:
            raise ValueError(f"format version {found_format}")
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{manifest_path} is not a Chamfer manifest: {error}") from error
    if found_format > FORMAT_VERSION:
        raise Incompatible(
            f"{path} has format version {found_format}, this Chamfer reads up to {FORMAT_VERSION}; update Chamfer"
        )
    if found_format < OLDEST_FORMAT:
        raise Incompatible(
            f"{path} has format version {found_format}, this Chamfer reads from {OLDEST_FORMAT}; build it again"
        )
    if manifest.pop("sha256", None) != _manifest_digest(manifest):
        raise Corrupt(
            f"{manifest_path} does not match the SHA-256 that it records for itself: it changed after it was written; "
            "restore it from a copy or build again"
        )
    if found_kind != kind:
        raise Incompatible(f"{path} is a {found_kind}, expected a {kind}")
    artifact = Artifact(path, kind, hashlib.sha256(raw).hexdigest(), manifest["body"], manifest["files"])
    _check_sizes(artifact)
    if verify:
        artifact.verify()
    return artifact


def find_artifact(path: Path, kind: str) -> Artifact | None:
    """The artifact at `path` if it is there with all of its files; None if it has to be made.

    For intermediate results that can be made again: what is damaged, of another format or of another kind is removed.
    """
    if not path.exists():  # looked at first: what another process publishes after this look is not damaged
        return None
    try:
        return open_artifact(path, kind)
    except (NotFound, Corrupt, Incompatible):
        remove_directory(path)
        return None


def remove_directory(path: Path) -> None:
    """Removes a directory such that a process killed at any moment leaves it whole or gone, never in part.

    One rename gives it the name of a temporary directory; `discard_temporaries` clears what a kill leaves of that. Of
    a symbolic link only the link is removed. Does nothing if there is no such directory.
    """
    aside = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-removed"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    sync_directory(path.parent)
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def discard_temporaries(directory: Path) -> None:
    """Removes what killed writers left in `directory`. Only for the holder of the writer lock."""
    if directory.is_dir():
        for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
            is_directory = leftover.is_dir() and not leftover.is_symlink()
            shutil.rmtree(leftover) if is_directory else leftover.unlink()


def replace_file(path: Path, text: str) -> None:
    """Swaps a small file atomically: sibling temporary, sync, rename, sync of the directory."""
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(*parts: Any) -> str:
    """SHA-256 over the canonical JSON of the parts."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """Canonical JSON: equal values give equal text, with sorted keys and no optional spaces."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _write_manifest(directory: Path, kind: str, body: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    manifest: dict[str, Any] = {"format": FORMAT_VERSION, "kind": kind, "body": body, "files": files}
    manifest["sha256"] = _manifest_digest(manifest)
    with (directory / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over all other entries of a manifest, as they are read back from JSON."""
    return digest_of(json.loads(json.dumps(manifest)))


def _check_sizes(artifact: Artifact) -> None:
    for name, entry in artifact.files.items():
        try:
            size = (artifact.path / name).stat().st_size
        except FileNotFoundError:
            raise Corrupt(_missing(artifact.path / name)) from None
        if size != entry["bytes"]:
            raise Corrupt(
                f"{artifact.path / name} has {size} bytes, the manifest says {entry['bytes']}: truncated or altered; "
                "restore it from a copy or build again"
            )


def _missing(path: Path) -> str:
    return f"{path} is missing; the manifest lists it; restore it from a copy or build again"
