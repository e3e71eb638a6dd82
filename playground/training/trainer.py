"""The training loop: stages, warmup-stable-decay schedule, checkpoints, resume, loss curve, held-out evaluation.

`train` takes a config file and returns the exported model folder. A resumed run continues with the same batches and
the same schedule; the loop never chooses data weights or model shapes by itself.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor

from playground.errors import ConfigError, PlaygroundError
from playground.training.checkpoint import (
    Progress,
    checkpoints,
    load_checkpoint,
    load_weights,
    read_shape,
    save_checkpoint,
)
from playground.training.config import StageConfig, TrainConfig, load_config, parse_config
from playground.training.data import Corpus, Rows, build_rows
from playground.training.evaluate import bits_per_byte, loss_by_position, reply
from playground.training.export import export_model
from playground.training.model import IGNORE_INDEX, TrainableLlama
from playground.training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from playground.training.workers import Group, start_helpers

log = logging.getLogger(__name__)

LossFunction = Callable[[Tensor, Tensor], Tensor]
POSITION_ROWS = 24
SAMPLE_PROMPTS = (
    "Hello!",
    "Who are you?",
    "Tell me a story about a dragon who loved soup.",
    "Tell me a story about Nora and a robot.",
    "How are you today?",
    "What is 7 + 5?",
)


class TrainingInterrupted(PlaygroundError):
    """The run was asked to stop; its state is saved."""


def train(
    config_path: Path, resume: bool = False, stop_after_steps: int | None = None, start: Path | None = None
) -> Path:
    """Trains as the file says, from the newest checkpoint if `resume`; returns the folder of the exported model.

    With `start`, a model folder, weights, shape and tokenizer are that model's, whatever the file says.
    """
    config = load_config(Path(config_path))
    if start is not None:
        config = starting_from(config, Path(start))
    group, helpers = start_helpers(config.workers, _help, config, resume, stop_after_steps)
    try:
        return _make(config, resume, group).run(stop_after_steps)
    finally:
        group.close()
        for helper in helpers:
            helper.join(timeout=60)


def starting_from(config: TrainConfig, folder: Path) -> TrainConfig:
    """The same run with another start. Raises `ConfigError` for a model that cannot be trained on."""
    shape = read_shape(folder).as_dict()
    del shape["vocab_size"]  # the tokenizer's
    start = {"model": shape, "init_from": str(folder), "tokenizer": str(folder)}
    return parse_config({**config.model_dump(), **start})


def _make(config: TrainConfig, resume: bool, group: Group) -> Trainer:
    if config.distill is None:
        return Trainer(config, resume, group)
    from playground.training.distill import Distiller  # a subclass of Trainer: imported late to avoid a cycle

    return Distiller(config, resume, group)


def _help(rank: int, size: int, port: int, config: TrainConfig, resume: bool, stop_after_steps: int | None) -> None:
    """What a helper process runs: the same loop on its share of the rows, in silence."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; rank 0 decides
    group = Group()
    try:
        group = Group(rank, size, port)
        _make(config, resume, group).run(stop_after_steps)
    except PlaygroundError:
        pass  # rank 0 meets the same and tells the user
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "Connection" in str(error)):  # else rank 0 has gone, and said why
            raise
    finally:
        group.close()


class Trainer:
    """One run. Subclasses change the loss (`loss_function`) and the epoch's rows (`build_epoch`)."""

    def __init__(self, config: TrainConfig, resume: bool, group: Group | None = None) -> None:
        self.config = config
        self.group = group or Group()
        self.output = Path(config.output_dir)
        self.device = resolve_device(config.device)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        if self.group.rank == 0 and not resume and checkpoints(self.output):
            raise ConfigError(
                f"{self.output} already holds checkpoints; continue with --resume or choose another output_dir."
            )
        self.output.mkdir(parents=True, exist_ok=True)
        names = {name for stage in config.stages for name in stage.mix}
        self.corpus = Corpus(Path(config.data_dir), names, config.seed, config.generated_documents)
        if self.group.rank > 0:
            self.group.wait()  # for the tokenizer that rank 0 writes
        self.tokenizer = self._tokenizer()
        if self.group.rank == 0:
            self.group.wait()
        shape = config.model.shape(self.tokenizer.get_vocab_size())
        self.model = TrainableLlama(shape, getattr(torch, config.dtype))
        self.model.initialise(config.seed)
        if config.init_from:
            load_weights(Path(config.init_from), self.model)
        self.model.to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.progress = Progress()
        if resume:
            found = checkpoints(self.output)
            if not found:
                raise ConfigError(f"nothing to resume in {self.output}; start the run without --resume.")
            self.progress = load_checkpoint(found[-1], self.model, self.optimizer)
        self.durations: deque[float] = deque(maxlen=50)
        self.rows: tuple[tuple[int, int], Rows] | None = None
        self.stop_requested = False
        self.clock = self.progress.active_seconds
        self.last_eval = self.progress.active_seconds

    def run(self, stop_after_steps: int | None = None) -> Path:
        previous = self._catch_signals()
        try:
            while self.progress.stage < len(self.config.stages):
                self._run_stage(stop_after_steps)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        target = Path(self.config.export_dir) if self.config.export_dir else self.output / "export"
        if self.group.rank > 0:
            return target
        self._save()  # before the average, which a run that is resumed at its end takes anew
        self._average_with_start()
        self._evaluate()
        documents = [d for documents in self.corpus.held_out.values() for d in documents]
        random.Random(self.config.seed).shuffle(documents)
        positions = loss_by_position(self.model, self.tokenizer, documents, POSITION_ROWS)
        (self.output / "positions.json").write_text(json.dumps(positions) + "\n")
        export_model(self.model, self.tokenizer, target)
        log.info("done: %d steps, %d tokens, exported to %s", self.progress.step, self.progress.tokens, target)
        return target

    # What a subclass may change

    def loss_function(self) -> LossFunction:
        return self.model.loss

    def build_epoch(self, stage: StageConfig, epoch: int) -> Rows:
        started = time.monotonic()
        documents = self.corpus.epoch(stage.mix, stage.name, epoch)
        seed = f"{self.config.seed}/{stage.name}/{epoch}/rows"
        rows = build_rows(documents, self.tokenizer, stage.length, stage.assistant_only, stage.pack, seed)
        seconds = time.monotonic() - started
        log.info(
            "stage %s epoch %d: %d documents, %d rows (%.0f s)",
            stage.name,
            epoch,
            len(documents),
            len(rows.ids),
            seconds,
        )
        return rows

    # The loop

    def _run_stage(self, stop_after_steps: int | None) -> None:
        config, progress = self.config, self.progress
        stage = config.stages[progress.stage]
        end = sum(budget(s) for s in config.stages[: progress.stage + 1])
        loss_function = self.loss_function()
        if config.compile:
            loss_function = torch.compile(loss_function, dynamic=False)
        last_save = progress.active_seconds
        log.info("stage %s from step %d", stage.name, progress.step)
        while self._used() < end:
            started = time.monotonic()
            inputs, targets, weight = self._next_batch(stage)
            rate = learning_rate(config, progress.step, self._used())
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_function(inputs, targets)
            (loss * weight).backward()
            parameters = self.model.parameters()
            progress.active_seconds, stop = self.group.average_gradients(parameters, self.clock, self.stop_requested)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.schedule.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.tokens += stage.length * stage.batch_size
            progress.batch += 1
            if self.group.rank == 0 and (progress.step % 10 == 0 or progress.step == 1):
                self._log(stage, float(loss.detach()), float(norm), rate)
            self.clock += self._active(time.monotonic() - started)
            if progress.active_seconds - self.last_eval >= 60 * config.eval_minutes:
                self._evaluate()
                self.last_eval = progress.active_seconds
            if stop or (stop_after_steps is not None and progress.step >= stop_after_steps):
                self._save()
                raise TrainingInterrupted(
                    f"training stopped at step {progress.step}; its state is in {self.output}, continue with --resume."
                )
            if progress.active_seconds - last_save >= 60 * config.checkpoint_minutes:
                self._save()
                last_save = progress.active_seconds
        progress.stage += 1
        progress.epoch = progress.batch = 0

    def _next_batch(self, stage: StageConfig) -> tuple[Tensor, Tensor, float]:
        """This process's inputs and targets, and what its mean loss weighs in the batch's."""
        progress = self.progress
        while True:
            key = (progress.stage, progress.epoch)
            if self.rows is None or self.rows[0] != key:
                self.rows = (key, self.build_epoch(stage, progress.epoch))
            rows = self.rows[1]
            if progress.batch < rows.num_batches(stage.batch_size):
                break
            if rows.num_batches(stage.batch_size) == 0:
                raise ConfigError(
                    f"stage {stage.name!r}: an epoch has {len(rows.ids)} rows of {stage.length} tokens, fewer than "
                    f"batch_size={stage.batch_size}; raise the mix weights or lower batch_size."
                )
            progress.epoch, progress.batch = progress.epoch + 1, 0
        inputs, targets = rows.batch(progress.batch, stage.batch_size)
        share, every = self.group.share, torch.from_numpy(targets)
        mine = share(every)
        counted, total = int((mine != IGNORE_INDEX).sum()), int((every != IGNORE_INDEX).sum())
        weight = counted * self.group.size / max(1, total)  # so that the average is the mean over the whole batch
        return share(torch.from_numpy(inputs)).to(self.device), mine.to(self.device), weight

    def _used(self) -> float:
        """What is used of the budget: minutes of work, or tokens."""
        timed = self.config.stages[0].minutes is not None
        return self.progress.active_seconds / 60 if timed else float(self.progress.tokens)

    def _active(self, seconds: float) -> float:
        """A step's time; a pause (a stopped process, a sleeping laptop) counts as ten usual steps at most."""
        usual = statistics.median(self.durations) if len(self.durations) >= 20 else None
        self.durations.append(seconds)
        return seconds if usual is None else min(seconds, max(10 * usual, 90.0))

    # Housekeeping

    def _average_with_start(self) -> None:
        """Mixes the weights that the run started from into those that it reached, as `start_weight` says."""
        share = self.config.start_weight
        if not share or self.config.init_from is None:
            return
        start = TrainableLlama(self.model.shape, self.model.compute_dtype)
        load_weights(Path(self.config.init_from), start)
        with torch.no_grad():
            for name, weight in self.model.named_weights().items():
                weight.lerp_(start.named_weights()[name].to(weight.device), share)

    def _tokenizer(self) -> Tokenizer:
        if (self.output / "tokenizer.json").is_file():
            return load_tokenizer(self.output)
        if self.config.tokenizer:
            if not (Path(self.config.tokenizer) / "tokenizer.json").is_file():
                raise ConfigError(
                    f"no tokenizer.json in {self.config.tokenizer}; name a folder that has one, or leave it out."
                )
            tokenizer = load_tokenizer(Path(self.config.tokenizer))
        else:
            texts = (t for documents in self._tokenizer_documents() for t in documents)
            tokenizer = train_tokenizer(texts, self.config.vocab_size)
        save_tokenizer(tokenizer, self.output, self.config.model.max_position_embeddings)
        return tokenizer

    def _tokenizer_documents(self) -> list[list[str]]:
        stage = self.config.stages[0]
        documents = self.corpus.epoch(stage.mix, "tokenizer", 0)
        return [
            [d.text] if d.text else [content for _, content in d.turns] + ["user", "assistant", "system"]
            for d in documents
        ]

    def _save(self) -> None:
        if self.group.rank > 0:
            return
        folder = save_checkpoint(self.output, self.model, self.optimizer, self.progress)
        log.info("saved %s", folder)

    def _log(self, stage: StageConfig, loss: float, norm: float, rate: float) -> None:
        p = self.progress
        recent = statistics.median(self.durations) if self.durations else 0.0
        speed = stage.length * stage.batch_size / recent if recent else 0.0
        self._append("loss.jsonl", {"step": p.step, "tokens": p.tokens, "minutes": round(p.active_seconds / 60, 2),
                                    "stage": stage.name, "loss": round(loss, 4), "norm": round(norm, 3),
                                    "lr": rate, "tokens_per_second": round(speed)})  # fmt: skip
        if p.step % 50 == 0:
            log.info("step %d loss %.3f lr %.2e %.0f tok/s %.1f min", p.step, loss, rate, speed, p.active_seconds / 60)

    def _evaluate(self) -> None:
        """Held-out bits per byte per source and a few samples, appended to eval.jsonl and samples.md."""
        if self.group.rank > 0:
            return
        stage = self.config.stages[min(self.progress.stage, len(self.config.stages) - 1)]
        scores: dict[str, float] = {}
        for name, documents in self.corpus.held_out.items():
            score = bits_per_byte(
                self.model, self.tokenizer, documents, stage.length, self.config.eval_tokens_per_source
            )
            if score is not None:
                scores[name] = round(score, 4)
        self._append(
            "eval.jsonl", {"step": self.progress.step, "tokens": self.progress.tokens, "bits_per_byte": scores}
        )
        log.info("step %d held-out bits per byte: %s", self.progress.step, scores)
        with (self.output / "samples.md").open("a", encoding="utf-8") as file:
            file.write(f"\n## step {self.progress.step}, {self.progress.tokens} tokens\n")
            for seed, prompt in enumerate(SAMPLE_PROMPTS):
                limit = self.config.sample_tokens
                text, ended = reply(self.model, self.tokenizer, [("user", prompt)], seed, 0.7, limit)
                file.write(f"\n**{prompt}**\n\n{text}{'' if ended else ' […]'}\n")

    def _append(self, name: str, record: dict) -> None:
        with (self.output / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _catch_signals(self) -> dict[int, Callable[[int, FrameType | None], object] | int | None]:
        """SIGTERM and Ctrl-C end the run after the step at hand, with a checkpoint (main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            return {}

        def request_stop(number: int, frame: FrameType | None) -> None:
            self.stop_requested = True

        return {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}


def budget(stage: StageConfig) -> float:
    return stage.minutes if stage.minutes is not None else float(stage.tokens or 0)


def learning_rate(config: TrainConfig, step: int, used: float) -> float:
    """Linear warmup by steps, then constant, then linear decay over the last part of the budget."""
    schedule = config.schedule
    total = sum(budget(stage) for stage in config.stages)
    decay_start = total * (1 - schedule.decay_fraction)
    factor = min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    if used > decay_start:
        left = max(0.0, (total - used) / (total - decay_start))
        factor *= schedule.final_fraction + (1 - schedule.final_fraction) * left
    return schedule.learning_rate * factor


def make_optimizer(model: TrainableLlama, config: TrainConfig) -> torch.optim.AdamW:
    schedule = config.schedule
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(schedule.beta1, schedule.beta2), fused=True)


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but no CUDA GPU is usable here; use device auto or cpu.")
    return device
