"""The training loop: transformers' Trainer over draws of groups; resumable, seeded, on CPU, one GPU or several.

sentence-transformers' trainers extend this same Trainer, but their collators turn each text column into features and
cannot carry a list of candidates with labels, teachers' scores and weights, so Chamfer uses the class below them.
Checkpoints hold only what is trained, a few megabytes: adapters and heads, with the state of optimiser and schedule.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from chamfer.core.errors import InvalidInput
from chamfer.core.evaluation import Qrel, ScoredDoc, evaluate
from chamfer.models.training.data.groups import Group
from chamfer.models.training.loop.draws import Draws
from chamfer.models.training.loop.learner import Learner
from chamfer.models.training.loop.recipe import FitConfig

CHECKPOINTS = "checkpoints"
_TRAINABLE = "trainable.safetensors"
MEASURES = ("nDCG@10", "RR@10")


@dataclass(frozen=True, slots=True)
class Fitted:
    """The outcome of a run.

    before, after   measures by source
    restructured    those of the model after Learner.restructure changed it and before training; else empty
    curve           the logged losses
    resumed_at      the step from which the run resumed, 0 for a fresh one
    """

    before: Mapping[str, Mapping[str, float]]
    restructured: Mapping[str, Mapping[str, float]]
    after: Mapping[str, Mapping[str, float]]
    curve: Sequence[Mapping[str, float]]
    seconds: float
    steps: int
    resumed_at: int


def fit(
    learner: Learner,
    draws: Draws,
    eval_groups: Sequence[tuple[Group, Mapping[str, str]]],
    arguments: TrainingArguments,
    progress: Callable[[int, int, float], None] | None = None,
) -> Fitted:
    """Trains the learner in place. `arguments` come from `arguments_of`; `progress` is called with (step, steps, loss).

    Resumes from the newest checkpoint in the work directory. With several processes all train and only the first
    measures. InvalidInput if the job is for one process and there are several.
    """
    config = learner.recipe.fit
    if config.threads:
        torch.set_num_threads(config.threads)
    if arguments.world_size > 1 and learner.single_process:
        raise InvalidInput(
            f"gradient_cache works in one process, found {arguments.world_size}; set gradient_cache = false"
        )
    work = Path(arguments.output_dir).parent
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(work)
    started = time.perf_counter()
    with arguments.main_process_first():
        before = _measured_once(work / "before.json", lambda: measure(learner, eval_groups))
    restructured: dict[str, dict[str, float]] = {}
    if learner.restructure(draws):
        with arguments.main_process_first():
            restructured = _measured_once(work / "restructured.json", lambda: measure(learner, eval_groups))
    first = arguments.process_index == 0
    trainer = _GroupTrainer(learner, draws, arguments, progress if first else None)
    with learner.fast_forward():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    learner.on_train_end()
    return Fitted(
        before=before,
        restructured=restructured,
        after=measure(learner, eval_groups) if first else {},
        curve=[row for row in trainer.state.log_history if "loss" in row],
        seconds=time.perf_counter() - started,
        steps=int(trainer.state.global_step),
        resumed_at=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
    )


def last_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint, that is, one with the trainer's state, which is written last."""
    complete = [path for path in (work / CHECKPOINTS).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def measure(learner: Learner, eval_groups: Sequence[tuple[Group, Mapping[str, str]]]) -> dict[str, dict[str, float]]:
    """nDCG@10 and RR@10 over the candidates of each group, by source and over `all` groups; {} without groups."""
    if not eval_groups:
        return {}
    training = learner.training
    learner.eval()
    runs: dict[str, list[ScoredDoc]] = {}
    qrels: dict[str, list[Qrel]] = {}
    with torch.inference_mode():
        for group, documents in eval_groups:
            scores = learner.score_group(group, documents).tolist()
            for name in (group.source, "all"):
                runs.setdefault(name, []).extend(
                    ScoredDoc(group.query_id, d, s) for d, s in zip(group.doc_ids, scores, strict=True)
                )
                qrels.setdefault(name, []).extend(
                    Qrel(group.query_id, d, int(label > 0))
                    for d, label in zip(group.doc_ids, group.labels, strict=True)
                )
    learner.train(training)
    return {name: evaluate(runs[name], qrels[name], MEASURES).means for name in sorted(runs)}


class _GroupTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose batches are lists of draws, in order, and whose checkpoints hold only what is trained."""

    def __init__(
        self,
        learner: Learner,
        draws: Draws,
        arguments: TrainingArguments,
        progress: Callable[[int, int, float], None] | None,
    ) -> None:
        super().__init__(
            model=learner, args=arguments, train_dataset=draws, data_collator=lambda batch: {"draws": batch}
        )
        self._parts: dict[str, float] = {}
        self.model_accepts_loss_kwargs = False  # the loss is a mean over groups, which accumulation must divide
        self.remove_callback(PrinterCallback)
        if learner.recipe.fit.max_steps:
            self.add_callback(_StopAfter(learner.recipe.fit.max_steps))
        if progress is not None:
            self.add_callback(_Progress(progress))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        parts: dict[str, Tensor] = model(inputs["draws"], self.state.global_step)
        loss = torch.stack(list(parts.values())).sum()
        self._parts = {f"part_{name}": float(value.detach()) for name, value in parts.items()}
        self._parts |= {f"note_{name}": value for name, value in self.model.notes.items()}
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **(self._parts if "loss" in logs else {})}, start_time)

    optimizer: torch.optim.Optimizer | None

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            config: FitConfig = self.model.recipe.fit
            named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            groups = [
                {"params": [p for name, p in named if _of_tower(name)], "lr": config.learning_rate},
                {"params": [p for name, p in named if not _of_tower(name)], "lr": config.head_learning_rate},
            ]
            self.optimizer = torch.optim.AdamW(
                [group for group in groups if group["params"]], weight_decay=config.weight_decay
            )
        return self.optimizer

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable(self.model), folder / _TRAINABLE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / _TRAINABLE), strict=False)


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, show: Callable[[int, int, float], None]) -> None:
        self._show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        del args, control
        if logs and "loss" in logs:
            self._show(int(state.global_step), int(state.max_steps), float(logs["loss"]))


class _StopAfter(TrainerCallback):  # type: ignore[misc]
    """Ends the run early; Trainer's own max_steps would shorten the schedule too."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        control.should_training_stop |= state.global_step >= self._max_steps


def _of_tower(name: str) -> bool:
    return name.startswith("tower.") or ".tower." in name


def trainable(learner: torch.nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in learner.named_parameters() if p.requires_grad}


def arguments_of(config: FitConfig, n_draws: int, work: Path) -> TrainingArguments:
    """The Trainer's own settings. Under torchrun, creating them connects the processes."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work / CHECKPOINTS),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=1,  # the draws repeat the groups data.epochs times
        lr_scheduler_type="linear",
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=not cuda,
        seed=config.seed,
        save_total_limit=2,
        dataloader_drop_last=n_draws >= config.batch_size,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=cuda,
    )
    steps = steps_of(arguments, n_draws)
    arguments.warmup_steps = int(config.warmup_ratio * steps)
    arguments.save_steps = config.save_steps or max(1, steps // 10)
    arguments.logging_steps = max(1, steps // 100)
    return arguments


def steps_of(arguments: TrainingArguments, n_draws: int) -> int:
    """Number of optimiser steps, each over the batches of all processes."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return max(1, n_draws // int(batch))


def _measured_once(path: Path, measure_now: Callable[[], dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The measures in a file; on the first run they are taken and written there, for resumed runs to report."""
    if path.is_file():
        measures: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
        return measures
    measures = measure_now()
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(measures), encoding="utf-8")
    temporary.replace(path)
    return measures


def seed_everything(seed: int) -> None:
    """Seeds initial weights and dropout."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # PEFT and Trainer draw from it
