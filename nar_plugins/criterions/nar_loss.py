"""The loss of the non-autoregressive models: token, length and fertility losses per predicted token."""

import argparse
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Dict, Optional

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.models import MODEL_REGISTRY
from torch import Tensor

from nar_plugins.checkpoint_io.teachers import load_teacher
from nar_plugins.compat.registration import replace_dataclass
from nar_plugins.criterions.base import PartsCriterion, check_label_smoothing
from nar_plugins.data.noise import FERTILITY_STREAM, uniform
from nar_plugins.models.flags import flag
from nar_plugins.modules.losses import LossPart, TokenObjective
from nar_plugins.modules.teacher_forcing import Teacher, check_forced

FINETUNING = ("backprop", "reinforce")  # the parts whose factor is --finetune-weight
LOSS_PARTS: Dict[str, float] = {}  # the parts whose factor has a flag, and its default


@dataclass
class NarLossConfig(FairseqDataclass):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "label smoothing of the token loss, spread over the whole vocabulary"}
    )
    teacher: Optional[str] = field(
        default=None,
        metadata={
            "help": "a frozen autoregressive checkpoint; its output distributions are the targets (word-level "
            "distillation) or, with --finetune-weight, score the model's predictions"
        },
    )
    soft_target_weight: Optional[float] = field(
        default=None,
        metadata={"help": "share of word-level distillation in the token loss (unset: 1; 0 with --finetune-weight)"},
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "temperature of both softmax distributions in word-level distillation"}
    )
    finetune_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the reverse-KL and expected-loss terms in NAT's fine-tuning, which needs --teacher (the "
            "paper: 0.25); the usual loss has the rest of the weight"
        },
    )


@register_criterion("nar_loss", dataclass=NarLossConfig)
class NarLoss(PartsCriterion):
    """(token losses + factor x length or fertility losses) / predicted tokens, summed over the global batch.

    (Mask-Predict release, ``label_smoothed_length_cross_entropy.py``.)

    With ``--teacher`` the token loss is word-level distillation (Kim and Rush 2016, section 3.1); with
    ``--finetune-weight`` the whole loss is NAT's fine-tuning (Gu et al. 2018, section 4.3). Validation has no teacher,
    and computes the usual loss.

    Args:
        factors: factors of registered parts by name; the others have their defaults.
    """

    wrong_model = (
        "--criterion nar_loss trains this package's models of --arch cmlm, nat and dag: blockwise has blockwise_loss, "
        "bang bang_loss, an autoregressive model cross_entropy"
    )

    def __init__(
        self,
        task,
        label_smoothing: float = 0.0,
        factors: Optional[Dict[str, float]] = None,
        teacher: Optional[str] = None,
        soft_target_weight: Optional[float] = None,
        teacher_temperature: float = 1.0,
        finetune_weight: float = 0.0,
    ):
        super().__init__(task)
        check_label_smoothing(label_smoothing)
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
        self.part_factors = {**LOSS_PARTS, **(factors or {})}
        self.soft_target_weight = soft_target_weight
        self.teacher_temperature = teacher_temperature
        self.finetune_weight = finetune_weight
        self.teacher_path = teacher
        self.loaded_teacher = ()  # a tuple, because the student's checkpoints would include a submodule

    @classmethod
    def build_criterion(cls, cfg, task):
        """Build with the factors of all registered parts from the command line."""
        criterion = super().build_criterion(cfg, task)
        criterion.part_factors = {name: getattr(cfg, f"{name}_loss_factor") for name in LOSS_PARTS}
        return criterion

    def objective(self, model, sample: Dict) -> TokenObjective:
        """Label smoothing and, in training, the teacher and its weights."""
        if self.teacher_path is None or not model.training:
            return TokenObjective(self.label_smoothing)
        finetuned = self.finetune_weight > 0
        if finetuned and not getattr(model, "needs_fertilities", False):
            raise ValueError(
                "--finetune-weight is for nat with --source-copy fertility: other models have nothing to sample"
            )
        return TokenObjective(
            self.label_smoothing,
            Teacher(self.teacher(sample["target"].device), sample["net_input"]["src_tokens"], self.task.mask_index),
            self.soft_target_weight,
            self.teacher_temperature,
            self.draws(sample) if finetuned else None,
        )

    def factors(self, model, parts: Dict[str, LossPart]) -> Dict[str, float]:
        """The factors from the flags; with fine-tuning, the usual parts are scaled by 1 - ``--finetune-weight``."""
        for name, factor in self.part_factors.items():
            if factor != LOSS_PARTS[name] and name not in parts:
                raise ValueError(f"--{name}-loss-factor: this model predicts no {name}; leave it out")
        finetuned = any(name in parts for name in FINETUNING)
        usual = 1 - self.finetune_weight if finetuned else 1.0
        return {
            name: self.finetune_weight if name in FINETUNING else usual * self.part_factors.get(name, 1.0)
            for name in parts
        }

    def teacher(self, device):
        """The teacher on a device; loaded at its first use, because ``fairseq-validate`` does not use it."""
        if not self.loaded_teacher:
            self.loaded_teacher = (load_teacher(self.teacher_path, self.task),)
            check_forced(self.loaded_teacher[0], f"--teacher {self.teacher_path}")
        return self.loaded_teacher[0].to(device)

    def draws(self, sample: Dict) -> Tensor:
        """Random numbers (B, S) that sample fertilities: a function of (seed, update, sentence)."""
        width = sample["net_input"]["src_tokens"].size(1)
        update = sample["update"] ^ FERTILITY_STREAM
        return uniform(self.task.cfg.seed, update, sample["id"], width)


def register_loss_part(name: str, factor: float = 1.0, help: str = "") -> None:
    """Add the flag ``--NAME-loss-factor`` to ``nar_loss``: the factor of a part of the loss.

    A part without such a flag has factor 1. Call this before the command line is parsed, for example in a user's
    ``--user-dir``.

    Args:
        name: the part's key in the dictionary that the model's ``forward`` returns.
        factor: the flag's default.
        help: the flag's help text.

    Raises:
        ValueError: the part is registered already, or the flag exists.
    """
    option = f"{name}_loss_factor"
    as_flag = flag(option)
    if name in LOSS_PARTS or name in FINETUNING:
        raise ValueError(f"the loss part '{name}' has a factor in nar_loss already: register it under another name")
    if not option.isidentifier():
        raise ValueError(f"the loss part '{name}' needs a name of letters, digits and underscores, for its flag")
    options = CRITERION_DATACLASS_REGISTRY["nar_loss"]
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    for model in MODEL_REGISTRY.values():
        if "nar_loss" in getattr(model, "criterions", ()):
            model.add_args(parser)
    if option in {f.name for f in fields(options)} or as_flag in parser._option_string_actions:
        raise ValueError(f"the loss part '{name}': {as_flag} is a flag already; register it under another name")
    added = (option, float, field(default=factor, metadata={"help": help}))
    options = make_dataclass(options.__name__, [added], bases=(options,), namespace={"__module__": __name__})
    replace_dataclass("criterion", "nar_loss", NarLoss, CRITERION_DATACLASS_REGISTRY, options)
    LOSS_PARTS[name] = factor


register_loss_part(
    "length", help="factor of a sentence's length loss, relative to the loss of one token (1, as in Mask-Predict)"
)
register_loss_part(
    "fertility", help="factor of a source token's fertility loss, relative to the loss of one token (1, as in NAT)"
)
