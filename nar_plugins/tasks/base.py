"""What every task of this package does alike: batches, noise, precision, and what a checkpoint keeps of its
dictionaries.
"""

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
from nar_plugins.checkpoint_io.start import check_finetuned
from nar_plugins.checkpoint_io.symbols import check_stored_symbols, stored_symbols
from nar_plugins.data.dictionary import load_dictionary
from nar_plugins.data.noise import VALIDATION_UPDATE
from nar_plugins.generators import registry
from nar_plugins.models.flags import refuse_unread, refuse_untrainable
from nar_plugins.models.pairing import check_criterion, check_foreign_model
from nar_plugins.modules.attention import training_kernel
from nar_plugins.modules.precision import faster_dtype

logger = logging.getLogger(__name__)


@dataclass
class NarTaskConfig(FairseqDataclass):
    train_dtype: ChoiceEnum(["float32", "bfloat16", "auto"]) = field(
        default="float32",
        metadata={
            "help": "autocast training to bfloat16, on CPUs too (fairseq's --amp is float16 on GPUs); auto: where the "
            "device computes it faster than float32"
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


class Progress:
    """How far a validation is, said in the log now and then: fairseq's bar is for terminals, and decoding can take
    minutes.

    Args:
        total: sentences to come.
    """

    every = 10.0  # seconds

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.said = self.start

    def add(self, sentences: int) -> None:
        """So many sentences more are done."""
        self.done, now = self.done + sentences, time.monotonic()
        if now - self.said >= self.every:
            self.said = now
            logger.info(f"validation: {self.done:,} of {self.total:,} sentences in {now - self.start:.0f} s")


class NarTask(FairseqTask):
    """A base for tasks whose noise is a function of (seed, update, sentence) and whose batches are one of (seed,
    epoch).

    A resumed run then continues as if it had never stopped, and validation and generation keep every sentence. A data
    set has ``tgt_sizes``: (sentences,) int, how many target tokens each has.
    """

    few_tokens = 8_000  # target tokens an update far below the papers'
    paper_tokens, papers = 32_000, "the papers' 32,000 to 128,000"
    serves_foreign_models = True  # fairseq's own

    def __init__(self, cfg, *args, **kwargs):
        super().__init__(cfg, *args, **kwargs)
        if str(cfg.train_dtype) != "float32" and cfg.amp:
            raise ValueError(f"--train-dtype {cfg.train_dtype} and --amp are two ways to one end: leave one out")
        self.chosen_dtype = None  # of --train-dtype auto, when the device is known
        self.noise = None  # the model's, set when it is built
        self.trained = None  # the model's class and the name of its architecture
        self.model_options = None
        self.said_tokens = False
        self.progress = Progress(0)  # of the validation

    def sides(self) -> Dict[str, object]:
        """The dictionaries that a checkpoint keeps the symbols of, by name."""
        return {"source": self.source_dictionary, "target": self.target_dictionary}

    @classmethod
    def load_dictionary(cls, filename):
        """fairseq's dictionary, or BERT's when the file starts with ``[PAD]``."""
        return load_dictionary(filename)

    # -- batches -------------------------------------------------------------------------------------------------------

    def can_reuse_epoch_itr(self, dataset):
        """Training batches are made anew every epoch.

        fairseq would keep those of the epoch in which the run began, and a resumed run would have others
        (fairseq#1156).
        """
        return super().can_reuse_epoch_itr(dataset) and dataset is not self.datasets.get(self.cfg.train_subset)

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """fairseq's batches; outside training none is dropped for being smaller than the batch-size multiple.

        fairseq deletes a last batch whose size is no multiple of 8 (fairseq#5036), so up to seven hypotheses.
        """
        training = "grouped_shuffling" in kwargs  # only Trainer.get_train_iterator passes it
        if not training:
            kwargs["required_batch_size_multiple"] = 1
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if training:
            self.say_tokens(dataset, iterator, kwargs)
        elif not kwargs.get("ignore_invalid_inputs"):
            kept = sum(len(batch) for batch in iterator.frozen_batches)
            assert kept == len(dataset), f"{kept} of {len(dataset)} sentences are in a batch"
        if not training:
            self.progress = Progress(sum(map(len, iterator.frozen_batches)) // kwargs.get("num_shards", 1))
        return iterator

    def say_tokens(self, dataset, iterator, kwargs) -> None:
        """Log, once, how many target tokens an update really has."""
        if self.said_tokens:
            return
        self.said_tokens = True
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
        """The model, ready to load checkpoints that were made before ``<mask>`` was in the dictionary."""
        if not from_checkpoint:  # generators name what they cannot decode
            check_foreign_model(cfg, self)
            registry.check_model(ARCH_MODEL_REGISTRY.get(getattr(cfg, "_name", None) or getattr(cfg, "arch", None)))
            self.refuse_half()
            refuse_untrainable(cfg, "merge_src_tgt_embed")
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

    def refuse_half(self) -> None:
        """Raise for fairseq's ways to half precision where they do not train.

        ``--bf16`` switches ``--tpu`` on, whatever the device is. ``--fp16`` moves parts to a GPU; its other forms do so
        at the first overflow.
        """
        ours = "give --train-dtype bfloat16, or auto, which train on GPUs and CPUs"
        if (self.cfg.bf16 or self.cfg.tpu) and importlib.util.find_spec("torch_xla") is None:
            given = "--bf16 and --memory-efficient-bf16 are for TPUs in fairseq, and" if self.cfg.bf16 else "--tpu:"
            raise ValueError(f"{given} there is no torch_xla: {ours}")
        if self.cfg.fp16 and (self.cfg.cpu or not torch.cuda.is_available()):
            raise ValueError(f"--fp16 and --memory-efficient-fp16 train on GPUs only: {ours}")

    def build_criterion(self, cfg, *args, **kwargs):
        """The criterion; raise unless it trains the model that was built before it.

        Heads and masks that another criterion does not know would stay as they are, in silence.
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

        def prepared(*args):  # around the criterion, where fairseq turns autocast off on GPUs, but for --amp
            with torch.autocast(tokens.device.type, torch.bfloat16) if half else nullcontext():
                return criterion(*args)

        # around the backward pass, too, where checkpointed activations are computed again
        with training_kernel(tokens.device, tokens.size(1)):
            return super().train_step(sample, model, prepared, optimizer, update_num, ignore_grad)

    def train_dtype(self, device: torch.device, model=None, tokens: Optional[Tensor] = None) -> torch.dtype:
        """What ``--train-dtype`` means on this device; ``auto`` is decided, and said, once.

        Args:
            model, tokens: what is trained and its first batch, (B, S), for ``auto``.
        """
        name = str(self.cfg.train_dtype)
        if name != "auto":
            return getattr(torch, name)
        if self.chosen_dtype is None:
            self.chosen_dtype = faster_dtype(device) if model is None else faster_dtype(device, model, tokens.numel())
            logger.info(
                f"--train-dtype auto: {self.chosen_dtype}, the faster one on this {device.type}".replace("torch.", "")
            )
        return self.chosen_dtype

    def valid_step(self, sample, model, criterion):
        """fairseq's step, with BLEU for ``--eval-bleu``; the noise depends on (seed, sentence) only."""
        found = super().valid_step(self.corrupt(sample, VALIDATION_UPDATE), model, criterion)
        self.progress.add(sample["id"].numel())
        return found

    # -- what a checkpoint keeps of the task
    # -----------------------------------------------------------------------------

    def state_dict(self) -> Dict:
        """The symbols of the dictionaries, so that a checkpoint is not used with others of the same size."""
        return {**super().state_dict(), **stored_symbols(self.sides())}

    def load_state_dict(self, state_dict: Dict) -> None:
        """Raise when the checkpoint's dictionaries are not this data's, naming the first symbol that differs."""
        for side, dictionary in self.sides().items():
            check_stored_symbols(state_dict, side, dictionary, f"the {side} dictionary of {self.cfg.data}")

    def get_checkpoint_dict(self) -> Dict:
        """fairseq-train's way to keep a task's state, beside the one for generation."""
        return {type(self).__name__: self.state_dict()}

    def set_checkpoint_dict(self, state: Dict) -> None:
        """Called when a training is resumed."""
        self.load_state_dict(state)
