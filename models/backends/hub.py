"""Opening models of transformers and sentence-transformers by hub name or local path, and their fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chamfer.core.artifact import digest_of
from chamfer.core.errors import ChamferError, InvalidInput, NotFound
from chamfer.models.backends.config import DeviceConfig, decide


def open_model(class_name: str, model_name: str, config: DeviceConfig) -> Any:
    """A sentence-transformers model of this class on the decided device, run by torch.

    NotFound if the weights are neither a local path nor cached, InvalidInput if they are not of this class.
    """
    import sentence_transformers
    import torch

    decision = decide(config)
    bf16 = decision.precision == "bf16" and decision.device == "cuda"
    if config.threads and decision.device == "cpu":
        torch.set_num_threads(config.threads)
    try:
        return getattr(sentence_transformers, class_name)(
            model_name,
            device=decision.device,
            local_files_only=not config.allow_download or Path(model_name).exists(),
            model_kwargs={"dtype": torch.bfloat16 if bf16 else torch.float32},
        )
    except ChamferError:
        raise
    except OSError as error:
        raise NotFound(
            f"model {model_name!r} is neither a local path nor in the local hub cache ({error}); "
            "set models.device.allow_download to fetch it"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(f"model {model_name!r} cannot be opened as a {class_name}: {error}") from error


def model_fingerprint(model: Any) -> str:
    """SHA-256 over weights, tokenizer, modules with their settings, prompts and lengths."""
    weights = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        weights.update(key.encode())
        weights.update(str(tensor.dtype).encode())
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    tokenizer = model.tokenizer
    vocabulary = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else repr(tokenizer)
    modules = [(type(module).__name__, str(getattr(module, "get_config_dict", dict)())) for module in model.children()]
    prompts = sorted((getattr(model, "prompts", None) or {}).items())
    length = getattr(model, "max_seq_length", getattr(model, "max_length", None))
    return digest_of(weights.hexdigest(), vocabulary, modules, prompts, length)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the load report and progress bars of transformers, which alarm users about parts that are not used."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
