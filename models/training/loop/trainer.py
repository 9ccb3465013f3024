"""The loop of every job: transformers' Trainer over draws of groups; resumable, seeded, on CPU, one GPU or several.

sentence-transformers' trainers extend this same Trainer, but their collators turn each text column into features and
have no place for a list of candidates with labels, teachers' scores and weights; so we stand one step below them.
What is saved is what learns, a few megabytes: adapters and heads, with the state of optimiser, schedule and draws.
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
from chamfer.models.training.loop.recipe import FitConfig
from chamfer.models.training.loop.student import Draws, Learner

CHECKPOINTS = "checkpoints"
_LEARNT = "learnt.safetensors"
MEASURES = ("nDCG@10", "RR@10")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a run gave: measures before and after by source, the losses logged, seconds, steps, and where it resumed.

    rebuilt holds the measures of a model that was made anew before it learnt (Learner.rebuild), else nothing.
    """

    before: Mapping[str, Mapping[str, float]]
    rebuilt: Mapping[str, Mapping[str, float]]
    after: Mapping[str, Mapping[str, float]]
    curve: Sequence[Mapping[str, float]]
    seconds: float
    steps: int
    resumed_at: int


def fit(
    student: Learner,
    draws: Draws,
    held_out: Sequence[tuple[Group, Mapping[str, str]]],
    arguments: TrainingArguments,
    progress: Callable[[int, int, float], None] | None = None,
) -> Fitted:
    """Trains the student in place; `arguments` are those of `arguments_of`, `progress` gets step, of, loss.

    A work folder with checkpoints is gone on with. Of several processes all train, and the first alone measures.
    """
    config = student.recipe.fit
    if config.threads:
        torch.set_num_threads(config.threads)
    if arguments.world_size > 1 and getattr(student.recipe, "cached", False):
        raise InvalidInput(f"cached gradients are for one process, found {arguments.world_size}; set cached = false")
    work = Path(arguments.output_dir).parent
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(work)
    begin = time.perf_counter()
    with arguments.main_process_first():
        before = _kept(work / "before.json", lambda: measure(student, held_out))
    rebuilt: dict[str, dict[str, float]] = {}
    if student.rebuild(draws):
        with arguments.main_process_first():
            rebuilt = _kept(work / "rebuilt.json", lambda: measure(student, held_out))
    first = arguments.process_index == 0
    trainer = _GroupTrainer(student, draws, arguments, progress if first else None)
    with student.quick():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    student.finish()
    return Fitted(
        before=before,
        rebuilt=rebuilt,
        after=measure(student, held_out) if first else {},
        curve=[row for row in trainer.state.log_history if "loss" in row],
        seconds=time.perf_counter() - begin,
        steps=int(trainer.state.global_step),
        resumed_at=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
    )


def last_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint: the state of the trainer is written last."""
    found = [path for path in (work / CHECKPOINTS).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def measure(student: Learner, held_out: Sequence[tuple[Group, Mapping[str, str]]]) -> dict[str, dict[str, float]]:
    """nDCG@10 and RR@10 of the held-out groups' own candidates, by source and over `all` groups."""
    if not held_out:
        return {}
    training = student.training
    student.eval()
    runs: dict[str, list[ScoredDoc]] = {}
    qrels: dict[str, list[Qrel]] = {}
    with torch.inference_mode():
        for group, documents in held_out:
            scores = student.score_group(group, documents).tolist()
            for name in (group.source, "all"):
                runs.setdefault(name, []).extend(
                    ScoredDoc(group.query_id, d, s) for d, s in zip(group.doc_ids, scores, strict=True)
                )
                qrels.setdefault(name, []).extend(
                    Qrel(group.query_id, d, int(label > 0))
                    for d, label in zip(group.doc_ids, group.labels, strict=True)
                )
    student.train(training)
    return {name: evaluate(runs[name], qrels[name], MEASURES).means for name in sorted(runs)}


class _GroupTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose batches are lists of draws, in the draws' own order, and whose checkpoints hold what learns."""

    def __init__(
        self,
        student: Learner,
        draws: Draws,
        arguments: TrainingArguments,
        progress: Callable[[int, int, float], None] | None,
    ) -> None:
        super().__init__(
            model=student, args=arguments, train_dataset=draws, data_collator=lambda batch: {"draws": batch}
        )
        self._parts: dict[str, float] = {}
        self.model_accepts_loss_kwargs = False  # the loss is a mean over groups; accumulation divides it
        self.remove_callback(PrinterCallback)
        if student.recipe.fit.stop:
            self.add_callback(_Stop(student.recipe.fit.stop))
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
                {"params": [p for name, p in named if _of_tower(name)], "lr": config.rate},
                {"params": [p for name, p in named if not _of_tower(name)], "lr": config.head_rate},
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
        save_file(learnt(self.model), folder / _LEARNT)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / _LEARNT), strict=False)


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, show: Callable[[int, int, float], None]) -> None:
        self._show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        del args, control
        if logs and "loss" in logs:
            self._show(int(state.global_step), int(state.max_steps), float(logs["loss"]))


class _Stop(TrainerCallback):  # type: ignore[misc]
    def __init__(self, after: int) -> None:
        self._after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        control.should_training_stop |= state.global_step >= self._after


def _of_tower(name: str) -> bool:
    return name.startswith("tower.") or ".tower." in name


def learnt(student: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, by name, on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in student.named_parameters() if p.requires_grad}


def arguments_of(config: FitConfig, n_draws: int, work: Path) -> TrainingArguments:
    """The trainer's own settings. Under torchrun this is where the processes find each other."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work / CHECKPOINTS),
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=1,  # epochs are in the draws
        lr_scheduler_type="linear",
        learning_rate=config.rate,
        max_grad_norm=config.clip,
        bf16=config.precision == "bf16",
        use_cpu=not cuda,
        seed=config.seed,
        save_total_limit=2,
        dataloader_drop_last=n_draws >= config.batch,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=cuda,
    )
    steps = steps_of(arguments, n_draws)
    arguments.warmup_steps = int(config.warmup * steps)
    arguments.save_steps = config.save_every or max(1, steps // 10)
    arguments.logging_steps = max(1, steps // 100)
    return arguments


def steps_of(arguments: TrainingArguments, n_draws: int) -> int:
    """Steps of the optimiser, each over the batches of all processes."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return max(1, n_draws // int(batch))


def _kept(path: Path, make: Callable[[], dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """What a first run measured before training, found again by a resumed one."""
    if path.is_file():
        found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    made = make()
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(made), encoding="utf-8")
    temporary.replace(path)
    return made


def seed_everything(seed: int) -> None:
    """Initial weights and dropout from the seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # libraries below draw from it
