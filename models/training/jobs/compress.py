"""Job `compress`: an encoder or cross-encoder in fewer numbers, by weighted SVD and fine-tuning of what is left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chamfer.core.errors import InvalidInput
from chamfer.models.networks.checkpoint import ITSELF, describe, parts_of, save
from chamfer.models.networks.heads import CrossHeadConfig
from chamfer.models.networks.low_rank import factor
from chamfer.models.networks.transformer import RANKS, fold, folder_of
from chamfer.models.training.data.groups import Group
from chamfer.models.training.jobs.cross_encoder import CrossEncoderRecipe, CrossEncoderStudent
from chamfer.models.training.jobs.dense import DenseRecipe, DenseStudent
from chamfer.models.training.loop.fisher_svd import importances, rank_of, weighted_error, weighted_svd
from chamfer.models.training.loop.lora import linear_layers
from chamfer.models.training.loop.recipe import TARGETS, AdapterConfig, Recipe
from chamfer.models.training.loop.student import Draw, Draws, Learner, Student

TIMED = 8  # groups whose scoring is timed
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class CompressRecipe(Recipe):
    """Factors linear layers, then trains all but the word embeddings with the loss of the model's own job.

    model           a folder of job cross_encoder or dense, whose own backbone, features and limits then hold;
                    none: `backbone` itself as a dense encoder
    keep            the share of a layer's numbers that its factors have; 2 and more keeps full rank
    weighting       fisher: inputs count by the gradients of the loss on `calibration` groups; none: plain SVD
    targets         the last parts of the names of layers that are factored, from first_layer on
    loss            of a cross-encoder; temperature: of a dense encoder's InfoNCE

    The finished folder holds the whole model in f16 and can be the `backbone` of other jobs.
    """

    model: Path | None = None
    keep: float = 0.5
    weighting: Literal["fisher", "none"] = "fisher"
    calibration: int = 64
    targets: tuple[str, ...] = TARGETS
    first_layer: int = 0
    loss: Literal["pointwise", "pairwise", "listwise"] = "listwise"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.keep <= 0 or self.calibration < 1:
            raise InvalidInput(
                f"keep is {self.keep} and calibration {self.calibration}; expected above 0, and at least 1 group"
            )
        if self.adapter.rank:
            raise InvalidInput("job compress trains the factors themselves; leave adapter out")


class CompressStudent(Learner):
    """The student of the model's own job, with layers factored once its start was measured."""

    recipe: CompressRecipe

    def __init__(self, recipe: CompressRecipe) -> None:
        super().__init__(recipe)
        self.inner = _start(recipe)
        self._ranks: dict[str, int] = {}

    def prepare(self, documents: Iterable[str], steps: int) -> None:
        self.inner.prepare(documents, steps)

    def rebuild(self, draws: Draws) -> bool:
        """Factors the layers; what it learns of them depends on the seed and the start model alone."""
        transformer = self.inner.tower.transformer
        self.inner.eval()
        sample = [draws[place] for place in range(min(self.recipe.calibration, len(draws)))]
        before, slow = _numbers(self.inner), self._milliseconds(sample)
        self._factor(transformer, sample)
        self.facts |= {
            "factored layers": len(self._ranks),
            "parameters before": before,
            "parameters after": _numbers(self.inner),
            "megabytes in f16 before": round(before * 2 / 1e6, 2),
            "megabytes in f16 after": round(_numbers(self.inner) * 2 / 1e6, 2),
            "milliseconds a pair before (torch, CPU time)": slow,
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
        """The whole model: config.json, tokenizer.json and model.safetensors of the backbone, head and description."""
        from safetensors.torch import save as serialised

        folder.mkdir(parents=True, exist_ok=True)
        transformer = self.inner.tower.transformer
        setattr(transformer.config, RANKS, self._ranks)
        transformer.config.save_pretrained(folder)
        description = self.inner.description()
        shutil.copyfile(folder_of(description.backbone) / "tokenizer.json", folder / "tokenizer.json")
        state = {name: t.detach().cpu().half().contiguous() for name, t in transformer.state_dict().items()}
        (folder / "model.safetensors").write_bytes(serialised(state, metadata={"format": "pt"}))
        save(folder, replace(description, backbone=ITSELF), dict(self.inner.head.state_dict()), {})

    def _factor(self, transformer: nn.Module, sample: Sequence[Draw]) -> None:
        modules = dict(transformer.named_modules())
        names = linear_layers(transformer, self.recipe.targets, self.recipe.first_layer)
        if not names:
            raise InvalidInput(f"the backbone has no linear layer named {', '.join(self.recipe.targets)}; set targets")
        layers: dict[str, nn.Linear] = {name: modules[name] for name in names}
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        importance = {name: torch.ones(weight.shape[1], dtype=torch.float64) for name, weight in weights.items()}
        if self.recipe.weighting == "fisher":
            importance = importances(layers, lambda draw: _total(self.inner.losses([draw], 0)), sample)
        self._ranks = {name: rank_of(weight, self.recipe.keep) for name, weight in weights.items()}
        pieces = factor(transformer, self._ranks)
        errors = [0.0, 0.0]
        for name, weight in weights.items():
            found, plain = (
                weighted_svd(weight, wanted, self._ranks[name])
                for wanted in (importance[name], torch.ones_like(importance[name]))
            )
            errors = [
                error + weighted_error(weight, importance[name], own)
                for error, own in zip(errors, (found, plain), strict=True)
            ]
            with torch.no_grad():
                pieces[name].inner.weight.copy_(found[0])
                pieces[name].outer.weight.copy_(found[1])
        self.facts["weighted error, as a share of plain SVD's"] = round(errors[0] / max(errors[1], 1e-300), 4)

    def _milliseconds(self, sample: Sequence[Draw]) -> float:
        """CPU time of scoring one pair, the least of some rounds."""
        asked = sample[:TIMED]
        times = []
        with torch.inference_mode():
            for _ in range(ROUNDS):
                begin = time.process_time()
                for draw in asked:
                    self.inner.score(draw.query, draw.texts)
                times.append(time.process_time() - begin)
        return round(1000 * min(times) / sum(len(draw.texts) for draw in asked), 3)


class _WholeDense(DenseRecipe):
    """Without adapter: everything learns."""

    def __post_init__(self) -> None:
        pass


def _start(recipe: CompressRecipe) -> Student:
    """The student of the model's job at the model's weights, adapter folded in."""
    given = {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}
    if recipe.model is None:
        return _dense(given, recipe)
    description = describe(recipe.model)
    if description.kind not in ("cross", "dense") or description.adapted != "both":
        raise InvalidInput(
            f"{recipe.model} is {description.kind}, adapted {description.adapted}; job compress takes a cross-encoder "
            "or a dense encoder of one tower"
        )
    given |= {name: getattr(description, name) for name in given if hasattr(description, name)}
    given["adapter"] = AdapterConfig()
    student: Student
    if description.kind == "dense":
        student = _dense(given, recipe)
    else:
        head = CrossHeadConfig(**description.head)
        student = CrossEncoderStudent(CrossEncoderRecipe(**given, loss=recipe.loss, head=head))
    state, changes = parts_of(recipe.model, description)
    student.head.load_state_dict(state)
    fold(student.tower.transformer, changes)
    return student


def _dense(given: dict[str, Any], recipe: CompressRecipe) -> DenseStudent:
    return DenseStudent(_WholeDense(**given, temperature=recipe.temperature, cached=False))


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()
