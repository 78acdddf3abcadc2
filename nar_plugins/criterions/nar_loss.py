"""The loss of the non-autoregressive models: word, length and fertility parts, per predicted token of the global
batch.
"""

from dataclasses import dataclass, field
from typing import Dict, Optional

import torch
from fairseq import metrics
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass

from nar_plugins.checkpoint_io.teachers import load_teacher
from nar_plugins.criterions.nat_finetuning import finetune_parts
from nar_plugins.criterions.sums import Sums
from nar_plugins.data.noise import FERTILITY_STREAM, uniform
from nar_plugins.modules.losses import LossPart, soft_word_loss
from nar_plugins.modules.teacher_forcing import check_forced, encode_source, forced_features, forced_lprobs


@dataclass
class NarLossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "label smoothing of the word loss, spread over the whole vocabulary"}
    )
    length_loss_factor: float = field(
        default=1.0,
        metadata={
            "help": "weight of the length loss of a sentence beside the word loss of a token (1, as in Mask-Predict)"
        },
    )
    fertility_loss_factor: float = field(
        default=1.0,
        metadata={
            "help": "weight of the fertility loss of a source token beside the word loss of a token (1, as in NAT)"
        },
    )
    teacher: Optional[str] = field(
        default=None,
        metadata={
            "help": "a frozen autoregressive checkpoint: its word distributions are the targets (word-level "
            "distillation) or, with --finetune-weight, it judges what the model predicts"
        },
    )
    soft_target_weight: Optional[float] = field(
        default=None,
        metadata={"help": "share of the teacher's distributions in the word loss (1; 0 with --finetune-weight)"},
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "softens the teacher's and the model's distributions in word-level distillation"}
    )
    finetune_weight: float = field(
        default=0.0,
        metadata={
            "help": "NAT's fine-tuning with --teacher: weight of the reverse-KL and expected-loss terms (the paper: "
            "0.25), the rest being the usual loss on distilled targets"
        },
    )


@register_criterion("nar_loss", dataclass=NarLossConfig)
class NarLoss(FairseqCriterion):
    """(sum of the words' losses + factor x sum of the lengths' or fertilities') / predicted tokens of the global batch.

    So every predicted token weighs the same, however the batch is cut over workers and micro-batches; a mean per
    micro-batch would not do that. (Mask-Predict release, ``label_smoothed_length_cross_entropy.py``.)

    With ``--teacher`` the word part is word-level distillation (Kim and Rush 2016, section 3.1), or, with
    ``--finetune-weight``, the whole loss is NAT's fine-tuning (Gu et al. 2018, section 4.3). In validation the teacher
    is
    not asked: the loss is the usual one.
    """

    def __init__(
        self,
        task,
        label_smoothing: float,
        length_loss_factor: float,
        fertility_loss_factor: float = 1.0,
        teacher: Optional[str] = None,
        soft_target_weight: Optional[float] = None,
        teacher_temperature: float = 1.0,
        finetune_weight: float = 0.0,
    ):
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--label-smoothing {label_smoothing}: choose a number from 0 up to, not including, 1")
        if not 0 <= finetune_weight <= 1:
            raise ValueError(f"--finetune-weight {finetune_weight}: choose a number from 0 to 1")
        if teacher is None and (finetune_weight > 0 or soft_target_weight or teacher_temperature != 1):
            raise ValueError("--finetune-weight, --soft-target-weight and --teacher-temperature need --teacher CKPT")
        if soft_target_weight is None:
            soft_target_weight = 1.0 if teacher and finetune_weight == 0 else 0.0
        if not 0 <= soft_target_weight <= 1:
            raise ValueError(f"--soft-target-weight {soft_target_weight}: choose a number from 0 to 1")
        if teacher_temperature <= 0:
            raise ValueError(f"--teacher-temperature {teacher_temperature}: choose a number above 0")
        if teacher and soft_target_weight == 0 and finetune_weight == 0:
            raise ValueError("--teacher has nothing to do: give --finetune-weight or a --soft-target-weight above 0")
        self.label_smoothing = label_smoothing
        self.length_loss_factor = length_loss_factor
        self.fertility_loss_factor = fertility_loss_factor
        self.soft_target_weight = soft_target_weight
        self.teacher_temperature = teacher_temperature
        self.finetune_weight = finetune_weight
        self.teacher_path = teacher
        self.loaded = ()  # a tuple, because as a submodule the teacher would be in the student's checkpoints

    def forward(self, model, sample, reduce=True):
        """Loss (summed), its denominator (the predicted tokens) and what to log, of one batch."""
        if not hasattr(model, "losses"):
            raise ValueError(
                "--criterion nar_loss trains this package's models of --arch cmlm and nat: blockwise has "
                "blockwise_loss, "
                "bang bang_loss, an autoregressive model cross_entropy"
            )
        taught = model.training and self.teacher_path is not None
        finetuned = taught and self.finetune_weight > 0
        if finetuned and not getattr(model, "needs_fertilities", False):
            raise ValueError(
                "--finetune-weight is for nat with --source-copy fertility: other models have nothing to sample"
            )
        net_output = model(**sample["net_input"], target=sample["target"], **(self.draws(sample) if finetuned else {}))
        parts = model.losses(net_output, self.label_smoothing)
        predicted = parts["words"].count
        if taught and self.soft_target_weight > 0:
            parts["words"] = self.softened(model, parts["words"], net_output, sample)

        factors = {"words": 1.0, "length": self.length_loss_factor, "fertility": self.fertility_loss_factor}
        for name, factor in factors.items():
            if factor != 1 and name not in parts:
                raise ValueError(f"--{name}-loss-factor: this model predicts no {name}; leave it out")
        loss = sum(factors[name] * part.loss for name, part in parts.items())
        if finetuned:
            judged = finetune_parts(self.teacher(sample["target"].device), sample, net_output, self.task.mask_index)
            loss = (1 - self.finetune_weight) * loss + self.finetune_weight * sum(part.loss for part in judged.values())
            parts.update(judged)
        logs = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": predicted,
            "skipped": net_output.get("skipped", 0),
        }
        for name, part in parts.items():
            logs.update({f"{name}_loss": part.loss.detach(), f"{name}_nll": part.nll, f"{name}_count": part.count})
        return loss, predicted, logs

    # -- the teacher
    # -----------------------------------------------------------------------------------------------------

    def teacher(self, device):
        """The teacher, on a device; loaded when it is first asked, because ``fairseq-validate`` never asks it."""
        if not self.loaded:
            self.loaded = (load_teacher(self.teacher_path, self.task),)
            check_forced(self.loaded[0], f"--teacher {self.teacher_path}")
        return self.loaded[0].to(device)

    def softened(self, model, words: LossPart, net_output: Dict, sample: Dict) -> LossPart:
        """The word part with the teacher's distributions as targets, at the positions that the model predicted."""
        if "picked" not in net_output:
            raise ValueError("--teacher: word-level distillation needs a target at every position, and --ctc has none")
        teacher, pad, eos = (
            self.teacher(sample["target"].device),
            self.task.target_dictionary.pad(),
            self.task.target_dictionary.eos(),
        )
        with torch.no_grad():
            encoded = encode_source(teacher, sample["net_input"]["src_tokens"], pad)
            features = forced_features(teacher, encoded, sample["target"], pad, eos)[net_output["picked"]]
            targets = forced_lprobs(teacher, features, self.task.mask_index, self.teacher_temperature).exp()
        logits = model.decoder.output_layer(net_output["features"])
        soft = soft_word_loss(logits, targets, self.teacher_temperature)
        return words._replace(loss=(1 - self.soft_target_weight) * words.loss + self.soft_target_weight * soft)

    def draws(self, sample: Dict) -> Dict:
        """Random numbers (B, S) for the sampled fertilities: a function of (seed, update, sentence)."""
        width = sample["net_input"]["src_tokens"].size(1)
        update = sample["update"] ^ FERTILITY_STREAM
        return {"fertility_draws": uniform(self.task.cfg.seed, update, sample["id"], width)}

    # -- logging
    # ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Log the loss, and of every part its mean in bits, from the sums of all workers and micro-batches."""
        sums = Sums(logging_outputs)
        sums.log_bits("loss", "loss", "sample_size")
        sums.log_bits("nll_loss", "words_nll", "words_count")
        for key in sorted({k for log in logging_outputs for k in log if k.endswith("_loss")}):
            sums.log_bits(key[: -len("_loss")], key, f"{key[: -len('_loss')]}_count")
        sums.log_perplexity("words_count")
        if sums.total("skipped") > 0:  # pairs that the loss cannot use
            metrics.log_scalar_sum("skipped", sums.total("skipped"))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Every entry is a sum, so fairseq may add them up across workers."""
        return True
