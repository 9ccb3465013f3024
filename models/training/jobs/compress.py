"""Job `compress`: an encoder or cross-encoder with fewer parameters, by weighted SVD and fine-tuning."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import ITSELF, open_checkpoint, write_checkpoint
from chamfer.models.networks.heads import CrossHeadConfig
from chamfer.models.networks.low_rank import factor
from chamfer.models.networks.transformer import RANKS, folder_of, merge_adapter
from chamfer.models.training.data.groups import Group
from chamfer.models.training.jobs.cross_encoder import CrossEncoderRecipe, CrossEncoderStudent
from chamfer.models.training.jobs.dense import DenseRecipe, DenseStudent
from chamfer.models.training.loop.draws import Draw, Draws
from chamfer.models.training.loop.fisher_svd import importances, rank_of, weighted_error, weighted_svd
from chamfer.models.training.loop.learner import Learner
from chamfer.models.training.loop.lora import linear_layers
from chamfer.models.training.loop.recipe import LINEAR_LAYERS, AdapterConfig, Recipe
from chamfer.models.training.loop.student import Student

_TIMED_GROUPS = 8
_TIMING_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class CompressRecipe(Recipe):
    """Factors linear layers, then trains everything but the word embeddings with the loss of the model's own job.

    model               folder of job cross_encoder or dense, whose backbone, features and limits then apply; none:
                        `backbone` itself as a dense encoder
    keep_ratio          parameters of a layer's factors relative to the layer; 2 and above keeps full rank
    weighting           fisher: inputs are weighted by squared gradients of the loss on `calibration_groups` groups;
                        none: plain SVD
    target_modules      last parts of the names of the layers to factor, from first_layer on
    loss, temperature   loss of a cross-encoder; temperature of a dense encoder's InfoNCE

    The finished folder holds the whole model in f16 and can be the `backbone` of other jobs.
    """

    model: Path | None = None
    keep_ratio: float = 0.5
    weighting: Literal["fisher", "none"] = "fisher"
    calibration_groups: int = 64
    target_modules: tuple[str, ...] = LINEAR_LAYERS
    first_layer: int = 0
    loss: Literal["pointwise", "pairwise", "listwise"] = "listwise"
    temperature: float = 0.05

    RENAMED: ClassVar[dict[str, str]] = {
        **Recipe.RENAMED,
        "keep": "keep_ratio",
        "calibration": "calibration_groups",
        "targets": "target_modules",
    }

    def __post_init__(self) -> None:
        if self.keep_ratio <= 0 or self.calibration_groups < 1:
            raise InvalidInput(
                f"keep_ratio is {self.keep_ratio} and calibration_groups {self.calibration_groups}; expected above 0 "
                "and at least 1"
            )
        if self.adapter.rank:
            raise InvalidInput("job compress trains the factors themselves; leave adapter out")


class CompressStudent(Learner):
    """The student of the model's own job, whose layers are factored after the start was measured."""

    recipe: CompressRecipe

    def __init__(self, recipe: CompressRecipe) -> None:
        super().__init__(recipe)
        self.inner = _start(recipe)
        self._ranks: dict[str, int] = {}

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        self.inner.prepare(documents, steps)

    def restructure(self, draws: Draws) -> bool:
        """Factors the layers; the result depends on the seed and the start model alone."""
        transformer = self.inner.tower.transformer
        self.inner.eval()
        sample = [draws[index] for index in range(min(self.recipe.calibration_groups, len(draws)))]
        parameters, milliseconds = _n_parameters(self.inner), self._milliseconds(sample)
        self._factor(transformer, sample)
        self.facts |= {
            "factored layers": len(self._ranks),
            "parameters before": parameters,
            "parameters after": _n_parameters(self.inner),
            "megabytes in f16 before": round(parameters * 2 / 1e6, 2),
            "megabytes in f16 after": round(_n_parameters(self.inner) * 2 / 1e6, 2),
            "milliseconds a pair before (torch, CPU time)": milliseconds,
            "milliseconds a pair after (torch, CPU time)": self._milliseconds(sample),
        }
        transformer.requires_grad_(True)
        transformer.get_input_embeddings().requires_grad_(False)
        self.inner.train()
        return True

    def losses(self, draws: Sequence[Draw], step: int) -> dict[str, Tensor]:
        return self.inner.losses(draws, step)

    def score_group(self, group: Group, documents: Mapping[str, str]) -> Tensor:
        return self.inner.score_group(group, documents)

    def save(self, folder: Path) -> None:
        """Writes config.json, tokenizer.json and model.safetensors of the backbone beside the checkpoint."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        transformer = self.inner.tower.transformer
        setattr(transformer.config, RANKS, self._ranks)
        transformer.config.save_pretrained(folder)
        description = self.inner.description()
        shutil.copyfile(folder_of(description.backbone) / "tokenizer.json", folder / "tokenizer.json")
        state = {name: t.detach().cpu().half().contiguous() for name, t in transformer.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
        write_checkpoint(folder, replace(description, backbone=ITSELF), dict(self.inner.head.state_dict()), {})

    def _factor(self, transformer: nn.Module, sample: Sequence[Draw]) -> None:
        modules = dict(transformer.named_modules())
        names = linear_layers(transformer, self.recipe.target_modules, self.recipe.first_layer)
        if not names:
            raise InvalidInput(
                f"the backbone has no linear layer named {', '.join(self.recipe.target_modules)}; set target_modules"
            )
        layers: dict[str, nn.Linear] = {name: modules[name] for name in names}
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        importance = {name: torch.ones(weight.shape[1], dtype=torch.float64) for name, weight in weights.items()}
        if self.recipe.weighting == "fisher":
            importance = importances(layers, lambda draw: _total(self.inner.losses([draw], 0)), sample)
        self._ranks = {name: rank_of(weight, self.recipe.keep_ratio) for name, weight in weights.items()}
        factored = factor(transformer, self._ranks)
        error = plain_error = 0.0
        for name, weight in weights.items():
            factors, plain_factors = (
                weighted_svd(weight, inputs, self._ranks[name])
                for inputs in (importance[name], torch.ones_like(importance[name]))
            )
            error += weighted_error(weight, importance[name], factors)
            plain_error += weighted_error(weight, importance[name], plain_factors)
            with torch.no_grad():
                factored[name].inner.weight.copy_(factors[0])
                factored[name].outer.weight.copy_(factors[1])
        self.facts["weighted error, relative to plain SVD"] = round(error / max(plain_error, 1e-300), 4)

    def _milliseconds(self, sample: Sequence[Draw]) -> float:
        """CPU time of scoring one pair: the minimum over some rounds."""
        timed = sample[:_TIMED_GROUPS]
        times = []
        with torch.inference_mode():
            for _ in range(_TIMING_ROUNDS):
                started = time.process_time()
                for draw in timed:
                    self.inner.score(draw.query, draw.texts)
                times.append(time.process_time() - started)
        return round(1000 * min(times) / sum(len(draw.texts) for draw in timed), 3)


class _WholeDense(DenseRecipe):
    """Without an adapter: the whole model is trained."""

    def __post_init__(self) -> None:
        pass


def _start(recipe: CompressRecipe) -> Student:
    """The student of the model's job with the model's weights, its adapter merged in."""
    keys = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
    if recipe.model is None:
        return _dense(keys, recipe)
    checkpoint = open_checkpoint(recipe.model)
    description = checkpoint.description
    if description.kind not in ("cross", "dense") or description.adapted != "both":
        raise InvalidInput(
            f"model = {recipe.model} is of kind {description.kind}, adapted {description.adapted}; job compress "
            "takes a cross-encoder (cross) or an encoder (dense) whose adapter changes both sides"
        )
    keys |= {name: getattr(description, name) for name in keys if hasattr(description, name)}
    keys["adapter"] = AdapterConfig()
    student: Student
    if description.kind == "dense":
        student = _dense(keys, recipe)
    else:
        head = CrossHeadConfig(**description.head)
        student = CrossEncoderStudent(CrossEncoderRecipe(**keys, loss=recipe.loss, head=head))
    student.head.load_state_dict(checkpoint.head)
    merge_adapter(student.tower.transformer, checkpoint.adapter)
    return student


def _dense(keys: dict[str, Any], recipe: CompressRecipe) -> DenseStudent:
    return DenseStudent(_WholeDense(**keys, temperature=recipe.temperature, gradient_cache=False))


def _n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()
