"""Fine-tuning batches: examples of a task, bucketed by length. Only target tokens count in the loss."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence

from spdf_dist.accounting.flops import training_flops
from spdf_dist.accounting.plan import TaskSize, finetuning_plan
from spdf_dist.base.numbers import counted
from spdf_dist.base.random_streams import derive_seed
from spdf_dist.config.errors import UserError
from spdf_dist.config.schema import FinetuneConfig, ModelConfig, SparsityConfig
from spdf_dist.data.tasks import Example, Task, find_task, load_task
from spdf_dist.data.tasks.batches import FinetuneBatches, micro_batches
from spdf_dist.data.tasks.encoding import EncodedExample, collate
from spdf_dist.data.tokenizer import Tokenizer
from spdf_dist.parallel.groups import Groups
from spdf_dist.training.batches import GlobalBatch, MicroBatch
from spdf_dist.training.opening import Opening


def encode_to_fit(
    kind: Task, examples: Sequence[Example], tokenizer: Tokenizer, longest: int
) -> tuple[list[EncodedExample], int]:
    """The examples encoded with at most ``longest`` tokens each, and the number of those that were cut."""
    encoded = kind.encode(examples, tokenizer, longest + 1)
    too_long = [number for number, item in enumerate(encoded) if len(item.ids) > longest]
    for number, item in zip(
        too_long, kind.encode([examples[number] for number in too_long], tokenizer, longest), strict=True
    ):
        encoded[number] = item
    return encoded, len(too_long)


class TaskBatches:
    """``Data`` over a task: ``epochs`` passes, each in a new order."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: ModelConfig,
        sparsity: SparsityConfig | None,
        tokenizer: Tokenizer,
        groups: Groups,
    ) -> None:
        """Read and encode the task's files.

        ``sparsity`` is that of the model under training; None for a dense model. Raises UserError for a file or an
        example that is not valid, and where the warm-up is not shorter than the run.
        """
        task = config.finetune
        self.config, self.model, self.sparsity = config, model, sparsity
        self.groups = groups
        self.pad = tokenizer.eod_id
        longest = min(task.max_length, model.seq_length)
        kind = find_task(task.task)
        examples = load_task(task.task, task.train, "train")
        self.synthetic = kind.is_synthetic(examples)
        """Whether the training examples were generated."""
        self.longest = longest
        self.examples, self.cut = encode_to_fit(kind, examples, tokenizer, longest)
        self.held_out: list[EncodedExample] = []
        self.held_out_cut = 0
        if task.validation:
            held_out = load_task(task.task, task.validation, "validation")
            self.held_out, self.held_out_cut = encode_to_fit(kind, held_out, tokenizer, longest)
        lengths = [len(example.ids) for example in self.examples]
        self.order = FinetuneBatches(lengths, config.training.global_batch_size, config.seed)
        self.steps_per_epoch = len(self.order)
        self.total_steps = min(task.epochs * self.steps_per_epoch, task.max_steps or sys.maxsize)
        if task.warmup_steps >= self.total_steps:
            raise UserError(
                f"finetune.warmup_steps: {task.warmup_steps} must be less than the run's "
                f"{counted(self.total_steps, 'step')} ({counted(task.epochs, 'epoch')} of {self.steps_per_epoch})"
            )
        self._batches_of = functools.lru_cache(maxsize=2)(self.order.epoch)
        numbers = range(len(self.held_out))
        size = config.training.micro_batch_size
        self.validation_passes = len(micro_batches(numbers, groups.data_rank, groups.data_size, size))
        self._flops = {length: training_flops(model, sparsity, length - 1) for length in set(lengths)}

    def opening(self) -> Opening:
        """The summary of the run before it starts, on this rank's device."""
        groups, precision = self.groups, self.config.training.precision
        summary = finetuning_plan(
            self.config,
            self.model,
            self.sparsity,
            groups.world_size,
            groups.device.type,
            TaskSize(
                lengths=[len(example.ids) - 1 for example in self.examples],
                target_tokens=sum(example.target_tokens for example in self.examples),
                held_out=[len(example.ids) - 1 for example in self.held_out],
                steps_per_epoch=self.steps_per_epoch,
                steps=self.total_steps,
                tokens=self.consumed_tokens(self.total_steps),
            ),
        )
        return Opening("finetune", summary, precision, groups.device, groups.world_size)

    def data_lines(self) -> list[str]:
        """Lines on the pairs that the run reads, and how often."""
        pairs, targets = len(self.examples), sum(example.target_tokens for example in self.examples)
        longest = max(len(example.ids) for example in self.examples)
        epochs = self.total_steps / self.steps_per_epoch
        passes = f"for {epochs:.3g} {'epoch' if epochs == 1 else 'epochs'} of {counted(self.steps_per_epoch, 'step')}"
        lines = [
            f"trains on {counted(pairs, 'pair')} with {targets:,} target tokens {passes}; the longest pair has "
            f"{longest:,} tokens"
        ]
        for name, cut, count in (
            ("training", self.cut, pairs),
            ("validation", self.held_out_cut, len(self.held_out)),
        ):
            if cut:
                lines.append(
                    f"WARNING: {cut:,} of {count:,} {name} pairs have more than {self.longest:,} tokens (the smaller "
                    "of finetune.max_length and the model's seq_length) and lose the end of their input"
                )
        return lines

    def batch(self, step: int) -> GlobalBatch:
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        numbers = self._batches_of(epoch)[index]
        return GlobalBatch(
            list(self._collated(self.examples, numbers, step)),
            sum(self.examples[number].target_tokens for number in numbers),
            sum(self._flops[len(self.examples[number].ids)] for number in numbers),
        )

    def _collated(self, examples: Sequence[EncodedExample], numbers: Sequence[int], step: int) -> Iterator[MicroBatch]:
        """This rank's share of the examples ``numbers``, as micro-batches padded to their longest example."""
        size, parallel = self.config.training.micro_batch_size, self.config.parallel
        multiple = parallel.tensor if parallel.sequence else 1
        for index, part in micro_batches(numbers, self.groups.data_rank, self.groups.data_size, size):
            rows = [examples[number] for number in part]
            tokens_BT, labels_BT = collate(rows, max(1, len(rows)), self.pad, multiple)
            device = self.groups.device
            # As in pre-training, the seed depends on the samples and not on the rank.
            seed = derive_seed("dropout", self.config.seed, f"{step}/{index}") >> 1
            yield MicroBatch(tokens_BT.to(device), labels_BT.to(device), seed)

    def consumed_tokens(self, step: int) -> int:
        """Target tokens up to and including ``step``; every epoch has the same number."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        tokens = epochs * sum(example.target_tokens for example in self.examples)
        for numbers in self._batches_of(epochs)[:rest] if rest else []:
            tokens += sum(self.examples[number].target_tokens for number in numbers)
        return tokens

    def validation(self) -> Iterator[MicroBatch]:
        numbers = sorted(range(len(self.held_out)), key=lambda n: len(self.held_out[n].ids))
        return self._collated(self.held_out, numbers, 0)
