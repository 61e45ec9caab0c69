"""One training run from start to end: the part that pre-training and fine-tuning share.

The order is fixed: checks, the folder, the checkpoint to continue from, the model and its engine, the loop. An error
that is found before the folder is opened leaves no run folder.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spdf_dist.base.digests import file_digest
from spdf_dist.base.numbers import counted
from spdf_dist.base.rank_variables import Ranks
from spdf_dist.base.signals import StopRequest
from spdf_dist.checkpoint.find import whole_checkpoints
from spdf_dist.checkpoint.manifest import read_manifest
from spdf_dist.checkpoint.packed_masks import PackedMasks
from spdf_dist.checkpoint.read import Checkpoint
from spdf_dist.checkpoint.write import CheckpointWriter, Content, prune
from spdf_dist.config.errors import SpdfError, UserError
from spdf_dist.config.load import flatten, read_yaml, to_tree, to_yaml
from spdf_dist.config.schema import AnyConfig, ModelConfig, SparsityConfig
from spdf_dist.data.tokenizer import Tokenizer
from spdf_dist.model.gpt import GPT
from spdf_dist.model.parameterization import Parameterization
from spdf_dist.training.batches import Data
from spdf_dist.training.callbacks import (
    Callback,
    Callbacks,
    MetricsFile,
    Progress,
    RunInfo,
    TensorBoard,
    load_callbacks,
)
from spdf_dist.training.dynamic import DynamicMasks
from spdf_dist.training.engine import Engine
from spdf_dist.training.execution import decide
from spdf_dist.training.inputs import warn_of_shared_data
from spdf_dist.training.loop import Loop, Spikes
from spdf_dist.training.run_folder import RunFolder
from spdf_dist.training.saving import Saver
from spdf_dist.training.setup import (
    build_model,
    hfu_over_mfu,
    make_engine,
    newest_checkpoint,
    peak_flops,
    sparsity_by_group,
    start,
)
from spdf_dist.training.state import Read, load_moments, load_training_state, load_weights
from spdf_dist.training.training_state import TrainingState


@dataclass(frozen=True)
class AllowedChanges:
    """Options by which the user allows a run to change."""

    change: bool = False
    """``--change``: continue the run with a config or data that differ."""
    rewind: int | None = None
    """``--rewind``: go back to the checkpoint of this step (-1: the newest) and skip the batches since."""


@dataclass
class TrainedModel:
    """The model to train, and what its checkpoints record."""

    model: ModelConfig
    sparsity: SparsityConfig | None
    """Sparsity of the model under training; None for a dense model."""
    masks: PackedMasks
    """Masks of the model under training."""
    tokens_per_pass: int
    """Tokens of a forward pass on one rank, for the choice of the execution."""
    label_smoothing: float = 0.0
    recorded_sparsity: SparsityConfig | None = None
    """Sparsity that checkpoints record instead: a densified model keeps the record of its masks. None: ``sparsity``."""
    recorded_masks: PackedMasks | None = None
    """Masks that checkpoints record instead; None: ``masks``."""
    source: Mapping[str, Any] | None = None
    """Lineage of the checkpoint that the run started from."""
    parameterization: Parameterization | None = None
    """None: that of the config."""


@dataclass
class TrainingRun:
    """One run in ``config.run_dir``, as a context manager. Every rank has one and makes the same calls.

    The calls are ``open``, ``resume``, ``build``, ``train`` and ``finish``, in this order.
    """

    kind: str
    """`pretrain` or `finetune`."""
    config: AnyConfig
    ranks: Ranks
    allowed: AllowedChanges = field(default_factory=AllowedChanges)
    stop: StopRequest = field(default_factory=StopRequest)
    save_first: bool = field(default=False, init=False)
    """Save before the first step, so that a rewind survives a kill."""

    def __enter__(self) -> TrainingRun:
        """Start the process groups and check the folder. Raises UserError."""
        self.stop.__enter__()
        try:
            self.groups = start(self.config, self.ranks)
            self.folder = RunFolder(self.config.run_dir)
            self.groups.on_rank_zero(lambda: self.folder.check(self.config, change=self.allowed.change))
        except BaseException:
            self.stop.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.folder.close()
        self.stop.__exit__(*error)

    def open(self, tokenizer: Tokenizer | None, data_digests: dict[str, list[str]]) -> None:
        """Open the run folder, and record the data, the tokenizer and the DeepSpeed settings in it.

        Raises UserError if the folder holds another run or other data, or if another process runs in it.
        """
        change = self.allowed.change
        settings = self.config.deepspeed
        digests = self.digests = {
            **data_digests,
            "tokenizer": [] if tokenizer is None else [tokenizer.digest],
            "deepspeed": [file_digest(Path(settings))] if isinstance(settings, str) else [],
        }
        if self.groups.rank == 0:
            warn_of_shared_data(self.kind, digests)

        def open_folder() -> None:
            self.folder.open(self.config, change=change)
            self.folder.keep_data(digests, change=change)
            if tokenizer is not None:
                self.folder.keep_tokenizer(tokenizer)

        self.groups.on_rank_zero(open_folder)
        self.loaded_tokenizer = tokenizer
        self.tokenizer = self.folder.tokenizer if tokenizer is not None else None
        self.stalled, self.saves, self.seconds = 0.0, 0, 0.0

    def resume(self) -> None:
        """Set ``checkpoint`` to the one to continue from (None in a new run), and ``state``. Raises UserError."""
        for built in ("engine", "saver", "callbacks"):  # frees the memory of an earlier model
            self.__dict__.pop(built, None)
        self.checkpoint = newest_checkpoint(self.folder, self.groups)
        if self.allowed.rewind is not None:
            self.checkpoint = self.rewound()
        if (found := self.checkpoint) is not None:
            change = self.allowed.change
            self.groups.on_rank_zero(lambda: self.folder.check_checkpoint(found, self.config, change=change))
        self.state = load_training_state(self.checkpoint) if self.checkpoint else TrainingState()

    def rewound(self) -> Checkpoint:
        """The checkpoint to go back to; newer ones are deleted. Raises UserError if it does not exist."""
        wanted = self.allowed.rewind
        if self.checkpoint is None:
            raise UserError(f"--rewind: {self.folder.path} has no checkpoint to return to")
        if wanted in (-1, self.checkpoint.step):
            return self.checkpoint
        target = Checkpoint(self.folder.checkpoints / f"step_{wanted}")

        def delete_newer() -> None:
            for folder in whole_checkpoints(self.folder.checkpoints):
                step = read_manifest(folder).step
                if step > target.step and folder.name != f"step_{step}":
                    raise UserError(
                        f"--rewind: {folder} is a checkpoint of a later step: move it out of {self.folder.checkpoints}"
                    )
            prune(self.folder.checkpoints, 0, protect=target.step)

        self.groups.on_rank_zero(delete_newer)
        return target

    def skip_batches_since(self, samples_per_step: int) -> str | None:
        """With ``rewind``, skip the batches between the checkpoint and the last logged step.

        Returns a message about it; None without ``rewind``.
        """
        if self.allowed.rewind is None:
            return None
        assert self.checkpoint is not None
        last = self.groups.on_rank_zero(self.folder.last_logged_step)
        steps = max(0, last - self.state.step)
        self.state.data_offset += steps * samples_per_step
        self.allowed = replace(self.allowed, rewind=None)
        self.save_first = True
        self.state.recent_losses, self.state.recent_grad_norms, self.state.skipped_in_a_row = [], [], 0
        text = f"rewound to step {self.state.step}; the batches of steps {self.state.step + 1} to {last} are skipped"
        self.groups.on_rank_zero(lambda: self.folder.record_change([text]))
        return text

    def keep_place_with_new_batches(self, tokens_per_step: int, samples_per_step: int) -> None:
        """If the batch size has changed, continue with the next sample and the same number of consumed tokens."""
        if self.checkpoint is None:
            return
        old = flatten(read_yaml(self.checkpoint.config_yaml) or {}).get("training.global_batch_size", samples_per_step)
        if old != samples_per_step:
            state = self.state
            state.data_offset += state.step * (int(old) - samples_per_step)
            state.token_offset = self.checkpoint.manifest.consumed_tokens - state.step * tokens_per_step

    def build(
        self,
        trained: TrainedModel,
        *,
        initialize: Callable[[GPT], None] | None = None,
        load: Callable[[Engine], None] | None = None,
        read: Read | None = None,
    ) -> None:
        """Build the model and its engine, and fill them.

        Args:
            trained: the model to train.
            initialize: sets the weights of a new run.
            load: fills the engine of a new run from another checkpoint, instead of ``initialize``.
            read: reads the tensors of the run's own checkpoint; by default its ``read_shard``.
        """
        self.trained = trained
        self.execution = decide(
            self.config, trained.model, trained.masks, self.groups, self.folder, trained.tokens_per_pass
        )
        model = build_model(
            self.config,
            trained.model,
            self.groups,
            trained.masks,
            self.execution,
            trained.label_smoothing,
            trained.parameterization,
        )
        if self.checkpoint is None and initialize is not None:
            initialize(model)
        self.engine = make_engine(model, self.config, self.groups)
        if self.checkpoint is not None:
            load_weights(self.engine, self.checkpoint, read)
            load_moments(self.engine, self.checkpoint, read)
        elif load is not None:
            load(self.engine)

    def train(
        self,
        data: Data,
        lr: Callable[[int], float],
        *,
        validation_interval: int,
        spikes: Spikes | None = None,
        patience: int = 0,
        keep_best: bool = False,
        notes: list[str] | None = None,
        until: int | None = None,
        method: DynamicMasks | None = None,
    ) -> None:
        """Train to the end, or to step ``until``. The arguments are those of ``Loop``; raises what ``Loop.run`` raises.

        ``notes`` are messages to print before the first step.
        """
        self.data = data
        self.keep_best = keep_best
        self.method = method
        self.groups.on_rank_zero(
            lambda: self.folder.cut_metrics(self.state.step, validated=not self.state.validation_due)
        )
        self.callbacks = Callbacks(self.observers())
        self.callbacks.load_state_dict(self.state.callbacks)
        self.callbacks.on_start()
        for note in notes or []:
            self.callbacks.on_note(note)
        checkpoints = self.config.checkpoint
        self.saver = Saver(
            self.engine, self.folder.checkpoints, self.writer, self.saved, asynchronous=checkpoints.asynchronous
        )
        if self.save_first or (self.checkpoint is None and data.total_steps == 0):
            self.saver.save(self.state, wait=True)
            self.save_first = False
        begin = time.perf_counter()
        self.stop.begin()
        Loop(
            engine=self.engine,
            data=data,
            lr=lr,
            state=self.state,
            callbacks=self.callbacks,
            saver=self.saver,
            stop=self.stop,
            checkpoint_interval=checkpoints.interval,
            validation_interval=validation_interval,
            patience=patience,
            keep_best=keep_best,
            spikes=spikes or Spikes(),
            peak_flops=peak_flops(self.config, self.groups),
            until=until,
            method=method,
        ).run()
        self.seconds += time.perf_counter() - begin
        self.stalled += self.saver.stalled
        self.saves += self.saver.count

    def observers(self) -> dict[str, Callback]:
        """This rank's callbacks: metrics, TensorBoard and progress on rank 0, and those in the config."""
        trained, state = self.trained, self.state
        sparsity = sparsity_by_group(self.engine.model)
        summary = {"sparsity": sparsity, "execution": self.execution}
        run = RunInfo(
            self.kind,
            self.config,
            self.folder,
            state.step,
            self.data.total_steps,
            self.groups,
            self.engine,
            log=lambda step, values: self.callbacks.on_metrics(step, values),
            say=lambda text: self.callbacks.on_note(text),
            stop_requested=lambda: self.stop.requested,
            summary=summary,
        )
        further = load_callbacks(run)
        if self.groups.rank != 0:
            return further
        progress = Progress(self.kind, state.step, self.data.total_steps)
        if state.step:
            progress.on_note(f"continues from step {state.step} of {self.data.total_steps}")
        history = self.folder.change_history()
        for record in history:
            if record["after_step"] == state.step:
                progress.on_note(f"changed: {'; '.join(record['changes'])}")
        texts = {"config": as_code(to_yaml(self.config))}
        if history:
            texts["changes"] = as_code(
                "\n".join(f"after step {r['after_step']} ({r['time']}): {'; '.join(r['changes'])}" for r in history)
            )
        ratio = hfu_over_mfu(self.config, trained.model, trained.sparsity, self.execution)
        board = TensorBoard(self.folder, state.step, sparsity, ratio, texts)
        return {"metrics": MetricsFile(self.folder), "tensorboard": board, "progress": progress, **further}

    def writer(self, state: TrainingState) -> tuple[CheckpointWriter, Content]:
        """The writer of a state's checkpoint, and the checkpoint's content."""
        if self.groups.rank == 0:
            self.restore_files()
        trained = self.trained
        masks = trained.masks if trained.recorded_masks is None else trained.recorded_masks
        records = None
        if self.method is not None:
            masks, records = self.method.masks(), copy.deepcopy(self.method.stored_records())
        sparsity = trained.recorded_sparsity or trained.sparsity
        manifest = {
            "kind": self.kind,
            "model": to_tree(trained.model),
            "sparsity": to_tree(sparsity) if sparsity is not None and sparsity.is_sparse else None,
            "parameterization": self.engine.model.parameterization,
            "consumed_tokens": self.data.consumed_tokens(state.step),
            "optimizer": optimizer_record(self.engine),
            "state": vars(state),
            "source": None if trained.source is None else dict(trained.source),
        }
        content: Content = {
            "masks": masks,
            "mask_records": records,
            "config_yaml": to_yaml(self.config),
            "tokenizer": self.tokenizer,
            "manifest": manifest,
        }
        return CheckpointWriter(self.folder.checkpoints, state.step, self.groups), content

    def restore_files(self) -> None:
        """Write the run folder's small files again if somebody deleted or renamed them, so that a save goes on."""
        try:
            missing = self.folder.restore(self.config, self.loaded_tokenizer, self.digests)
        except (OSError, SpdfError):
            return  # the save reports it
        if missing:
            self.callbacks.on_note(f"WARNING: {self.folder.path} lacked {', '.join(missing)}: written again")

    def saved(self, state: TrainingState) -> None:
        """Delete old checkpoints and notify the callbacks. A failure to delete is only a warning."""
        if self.groups.rank == 0:
            try:
                protect = state.best_step if self.keep_best else None
                prune(self.folder.checkpoints, self.config.checkpoint.keep, protect)
            except OSError as error:
                self.callbacks.on_note(f"WARNING: an old checkpoint was not deleted: {error}")
        path = self.folder.checkpoints / f"step_{state.step}"
        self.callbacks.after_checkpoint(state.step, Path(path), self.saver.stalled)

    def finish(self, result: Mapping[str, Any], best: Path | None = None) -> None:
        """Write ``result.json``, which marks the run as complete, and name the run's newest or ``best`` checkpoint."""
        state = self.state
        common = {
            "schema_version": 1,
            "steps": state.step,
            "total_flops": state.total_flops,
            "best_val_loss": state.best_val_loss,
            "checkpoint_stall_seconds": self.stalled,
        }
        if self.groups.rank == 0:
            self.folder.write_json(self.folder.result.name, {**common, **result})
        if self.saves and self.stalled > 0.01 * self.seconds:
            share = self.stalled / max(self.seconds, 1e-9)
            self.callbacks.on_note(
                f"training waited {self.stalled:.1f} s ({share:.0%} of its time) for "
                f"{counted(self.saves, 'checkpoint')}"
            )
        if self.groups.rank == 0:
            kind, checkpoint = ("best checkpoint", best) if best else ("checkpoint", self.saver.newest())
            self.callbacks.on_note(f"complete after {counted(state.step, 'step')}; {kind} {checkpoint}")


def optimizer_record(engine: Engine) -> dict[str, Any]:
    """What a checkpoint records of the optimizer: its number of updates and, unless it is AdamW, its name."""
    name = {} if engine.name == "adamw" else {"name": engine.name}
    return {"updates": engine.updates_done(), **name}


def as_code(text: str) -> str:
    """Text as a Markdown code block, for TensorBoard."""
    return "".join(f"    {line}\n" for line in text.splitlines())
