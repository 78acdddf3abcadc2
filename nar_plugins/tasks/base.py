"""The base of all tasks: batches, noise, precision, and the symbols of the dictionaries in a checkpoint."""

import importlib.util
import logging
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Dict, List, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask
from omegaconf import II
from torch import Tensor

from nar_plugins.checkpoint_io.mask_row import accept_missing_mask_row
from nar_plugins.checkpoint_io.start import check_finetuned, kept_sizes_of, starting_point
from nar_plugins.checkpoint_io.symbols import check_stored_symbols, stored_symbols
from nar_plugins.compat.patience import continue_patience, patience_used
from nar_plugins.data.dictionary import load_dictionary
from nar_plugins.data.noise import VALIDATION_UPDATE
from nar_plugins.generators import registry
from nar_plugins.models.flags import refuse_unread, refuse_untrainable
from nar_plugins.models.pairing import check_criterion, check_foreign_model
from nar_plugins.modules.attention import training_kernel
from nar_plugins.modules.fast.prepare import weights_changed
from nar_plugins.modules.precision import faster_dtype

logger = logging.getLogger(__name__)


@dataclass
class NarTaskConfig(FairseqDataclass):
    train_dtype: ChoiceEnum(["float32", "bfloat16", "auto"]) = field(
        default="float32",
        metadata={
            "help": "autocast training to bfloat16, also on CPUs (fairseq's --amp is float16 on GPUs); auto: bfloat16 "
            "where the device computes it faster than float32"
        },
    )
    seed: int = II("common.seed")
    amp: bool = II("common.amp")
    cpu: bool = II("common.cpu")
    bf16: bool = II("common.bf16")
    tpu: bool = II("common.tpu")
    fp16: bool = II("common.fp16")
    update_freq: List[int] = II("optimization.update_freq")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    reset_meters: bool = II("checkpoint.reset_meters")
    restore_file: str = II("checkpoint.restore_file")
    save_dir: str = II("checkpoint.save_dir")


class Progress:
    """Log the progress of a validation: decoding can take minutes, and fairseq's progress bar is for terminals.

    Args:
        total: sentences of the validation.
    """

    every = 10.0  # seconds

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.last_logged = self.start

    def add(self, sentences: int) -> None:
        """Count decoded sentences, and log once every ``every`` seconds."""
        self.done, now = self.done + sentences, time.monotonic()
        if now - self.last_logged >= self.every:
            self.last_logged = now
            logger.info(f"validation: {self.done:,} of {self.total:,} sentences in {now - self.start:.0f} s")


class NarTask(FairseqTask):
    """Base of tasks whose noise is a function of (seed, update, sentence) and whose batches are one of (seed, epoch).

    A resumed run continues exactly like an uninterrupted one. Validation and generation keep every sentence. A data set
    has ``tgt_sizes``: (sentences,) int, the target tokens of each.
    """

    few_tokens = 8_000  # target tokens an update; fewer are far below the papers'
    paper_tokens, papers = 32_000, "the papers' 32,000 to 128,000"
    serves_foreign_models = True  # fairseq's own

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        if str(cfg.train_dtype) != "float32" and cfg.amp:
            raise ValueError(f"--train-dtype {cfg.train_dtype} and --amp are two ways to one end: leave one out")
        self.auto_dtype = None  # of --train-dtype auto, set when the device is known
        self.noise = None  # the model's, set when it is built
        self.trained = None  # the model's class and architecture name
        self.model_options = None
        self.logged_tokens = False
        self.progress = Progress(0)  # of the validation
        self.last_batches = {}  # in training, and outside of it: the last that fairseq does not keep

    def sides(self) -> Dict[str, object]:
        """The dictionaries whose symbols a checkpoint keeps, by name."""
        return {"source": self.source_dictionary, "target": self.target_dictionary}

    @classmethod
    def load_dictionary(cls, filename):
        """fairseq's dictionary, or BERT's when the file starts with ``[PAD]``."""
        return load_dictionary(filename)

    # -- batches -------------------------------------------------------------------------------------------------------

    def can_reuse_epoch_itr(self, dataset):
        """Whether batches are reused: those of a split are, but training makes new ones every epoch.

        fairseq keeps those of the epoch in which the run began, so a resumed run has other batches (fairseq#1156). It
        also keeps every data set that it makes batches of, those of fairseq-interactive's lines, too.
        """
        split = any(dataset is held for held in self.datasets.values())
        return (
            split and super().can_reuse_epoch_itr(dataset) and dataset is not self.datasets.get(self.cfg.train_subset)
        )

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """fairseq's batches; outside training the batch-size multiple is 1.

        fairseq drops a last batch whose size is no multiple of 8 (fairseq#5036), and with it up to seven hypotheses.
        """
        training = "grouped_shuffling" in kwargs  # only Trainer.get_train_iterator passes it
        if not training:
            kwargs["required_batch_size_multiple"] = 1
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if training:
            self.log_tokens(dataset, iterator, kwargs)
        elif not kwargs.get("ignore_invalid_inputs"):
            kept = sum(len(batch) for batch in iterator.frozen_batches)
            assert kept == len(dataset), f"{kept} of {len(dataset)} sentences are in a batch"
        if not training:
            self.progress = Progress(sum(map(len, iterator.frozen_batches)) // kwargs.get("num_shards", 1))
        if iterator is not self.dataset_to_epoch_iter.get(dataset):
            self.let_go_of_the_last(training, iterator)
        return iterator

    def let_go_of_the_last(self, training: bool, iterator) -> None:
        """Free the epoch before ``iterator``, or the validation on the training data before it, and with it the
        processes that made its batches.

        An epoch and its loader refer to one another, and the loader's processes wait for more. Left to the garbage
        collector, every epoch would keep its processes for many epochs, each with the memory of the training, and then
        wait five seconds for each.
        """
        last = self.last_batches.get(training)
        if last is not None:  # whoever still iterates over it holds what he needs
            last._cur_epoch_itr = last._next_epoch_itr = last.dataloader = None
        self.last_batches[training] = iterator

    def log_tokens(self, dataset, iterator, kwargs) -> None:
        """Log the mean number of target tokens of an update, once."""
        if self.logged_tokens:
            return
        self.logged_tokens = True
        batches = iterator.frozen_batches
        tokens = sum(int(dataset.tgt_sizes[list(batch)].sum()) for batch in batches) / max(1, len(batches))
        workers, micro = kwargs.get("num_shards", 1), self.cfg.update_freq[0]
        update = tokens * workers * micro
        logger.info(
            f"{update:,.0f} target tokens an update ({tokens:,.0f} x {workers} workers x --update-freq {micro})"
        )
        if 0 < update < self.few_tokens:
            logger.warning(
                f"that is far below {self.papers}: --update-freq {micro * round(self.paper_tokens / update)} would "
                "reach them"
            )

    # -- the model and its steps ---------------------------------------------------------------------------------------

    def build_model(self, cfg, from_checkpoint=False):
        """The model; it loads checkpoints without a row for ``<mask>`` too."""
        if not from_checkpoint:  # generators refuse the models that they do not decode
            check_foreign_model(cfg, self)
            registry.check_model(ARCH_MODEL_REGISTRY.get(getattr(cfg, "_name", None) or getattr(cfg, "arch", None)))
            self.refuse_half()
            refuse_untrainable(cfg, "merge_src_tgt_embed")
            self.take_kept_sizes(cfg)
        model = super().build_model(cfg, from_checkpoint)
        accept_missing_mask_row(model)
        if not from_checkpoint:
            refuse_unread(cfg, getattr(model, "unread_flags", {}))
            if self.cfg.finetune_from_model and os.path.exists(self.cfg.finetune_from_model):
                check_finetuned(self.cfg.finetune_from_model, model, self.sides())
            if hasattr(model, "start_from_checkpoints"):
                model.start_from_checkpoints(self)
        self.noise = getattr(model, "noise", None)
        self.trained, self.model_options = (type(model), getattr(cfg, "arch", None) or getattr(cfg, "_name", None)), cfg
        return model

    def take_kept_sizes(self, args) -> None:
        """Let a training that starts from a pruned model, or continues one, have that model's sizes.

        Args:
            args: the model's arguments, from which it is built next.
        """
        path = starting_point(self.cfg)
        kept = kept_sizes_of(path) if path is not None and os.path.exists(path) else {}
        for name, value in kept.items():
            setattr(args, name, value)
        if kept:
            logger.info(f"the sizes of the layers are those of {path}, which was pruned")

    def refuse_half(self) -> None:
        """Raise for fairseq's half-precision flags where they do not train.

        ``--bf16`` sets ``--tpu`` on every device. ``--fp16`` moves tensors to a GPU; its other forms do so at the first
        overflow.
        """
        ours = "give --train-dtype bfloat16, or auto, which train on GPUs and CPUs"
        if (self.cfg.bf16 or self.cfg.tpu) and importlib.util.find_spec("torch_xla") is None:
            given = "--bf16 and --memory-efficient-bf16 are for TPUs in fairseq, and" if self.cfg.bf16 else "--tpu:"
            raise ValueError(f"{given} there is no torch_xla: {ours}")
        if self.cfg.fp16 and (self.cfg.cpu or not torch.cuda.is_available()):
            raise ValueError(f"--fp16 and --memory-efficient-fp16 train on GPUs only: {ours}")

    def build_criterion(self, cfg, *args, **kwargs):
        """The criterion; raise unless it is one of the model's.

        Another criterion would silently leave proposal heads or masks untrained.
        """
        refuse_untrainable(self.model_options, "adaptive_softmax_cutoff")
        name = getattr(cfg, "_name", None) or getattr(cfg, "criterion", None)
        if self.trained is not None and name is not None:
            check_criterion(*self.trained, name)
        return super().build_criterion(cfg, *args, **kwargs)

    def corrupt(self, sample: Dict, update: int) -> Dict:
        """The batch with the model's noise in its ``net_input``; the batch itself for a model without noise."""
        if self.noise is None or not sample:
            return sample
        net_input = {**sample["net_input"], **self.noise(sample, self.cfg.seed, update)}
        return {**sample, "net_input": net_input, "update": update}

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        """fairseq's step (with its ``--amp`` and ``set_num_updates``) on the batch with this update's noise."""
        sample = self.corrupt(sample, update_num)
        tokens = sample["net_input"]["src_tokens"]
        half = self.train_dtype(tokens.device, model, tokens) == torch.bfloat16

        def autocast_criterion(*args):  # inside train_step: fairseq turns autocast off there on GPUs without --amp
            with torch.autocast(tokens.device.type, torch.bfloat16) if half else nullcontext():
                return criterion(*args)

        # also around the backward pass, which computes checkpointed activations again
        with training_kernel(tokens.device, tokens.size(1)):
            return super().train_step(sample, model, autocast_criterion, optimizer, update_num, ignore_grad)

    def optimizer_step(self, optimizer, model, update_num):
        """fairseq's step; models that are prepared for decoding, for ``--eval-bleu``, are told of it."""
        super().optimizer_step(optimizer, model, update_num)
        weights_changed()

    def train_dtype(self, device: torch.device, model=None, tokens: Optional[Tensor] = None) -> torch.dtype:
        """The type of ``--train-dtype`` on this device; ``auto`` is decided and logged once.

        Args:
            model, tokens: the model and its first batch (B, S), for ``auto``.
        """
        name = str(self.cfg.train_dtype)
        if name != "auto":
            return getattr(torch, name)
        if self.auto_dtype is None:
            self.auto_dtype = faster_dtype(device) if model is None else faster_dtype(device, model, tokens.numel())
            logger.info(
                f"--train-dtype auto: {self.auto_dtype}, the faster one on this {device.type}".replace("torch.", "")
            )
        return self.auto_dtype

    def valid_step(self, sample, model, criterion):
        """fairseq's step, with BLEU for ``--eval-bleu``; the noise depends on (seed, sentence) only."""
        results = super().valid_step(self.corrupt(sample, VALIDATION_UPDATE), model, criterion)
        self.progress.add(sample["id"].numel())
        return results

    # -- the task's state in a checkpoint ------------------------------------------------------------------------------

    def state_dict(self) -> Dict:
        """The symbols of the dictionaries: a checkpoint is not used with others of the same size."""
        return {**super().state_dict(), **stored_symbols(self.sides())}

    def load_state_dict(self, state_dict: Dict) -> None:
        """Raise when the checkpoint's dictionaries are not this data's, naming the first symbol that differs."""
        for side, dictionary in self.sides().items():
            check_stored_symbols(state_dict, side, dictionary, f"the {side} dictionary of {self.cfg.data}")

    def get_checkpoint_dict(self) -> Dict:
        """The state that fairseq-train saves, beside that for generation."""
        return {type(self).__name__: {**self.state_dict(), "patience": patience_used()}}

    def set_checkpoint_dict(self, state: Dict) -> None:
        """Check the state of a resumed training, and take over what is fairseq's to keep."""
        self.load_state_dict(state)
        if not self.cfg.reset_meters:
            continue_patience(state.get("patience", {}))
