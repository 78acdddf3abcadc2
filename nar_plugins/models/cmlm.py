"""The conditional masked language model of Mask-Predict (Ghazvininejad et al. 2019)."""

from typing import Dict

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from torch import Tensor

from nar_plugins.data.noise import noise_named
from nar_plugins.models.architectures import default, sizes, switch_on
from nar_plugins.models.base import NarModel
from nar_plugins.models.contract import Canvas, Memory, Plan
from nar_plugins.models.pairing import check_task
from nar_plugins.modules.exporting import is_padded
from nar_plugins.modules.losses import LIKELIHOOD, LossPart, TokenObjective, length_loss


@register_model("cmlm")
class CmlmModel(NarModel):
    """Predicts the masked tokens of a target from its other tokens and the source.

    The plain architecture ``cmlm`` is fairseq's form (pooled length, sinusoidal positions, ReLU, scaled embeddings);
    the other architectures are the release's: LENGTH token, learned positions, GELU, no embedding scale, BERT
    initialisation, layer norms with epsilon 1e-12. Every difference is a flag.
    """

    generators = ("mask_predict",)

    @classmethod
    def add_args(cls, parser):
        """``NarModel``'s flags and the noise."""
        NarModel.add_args(parser)
        parser.add_argument(
            "--target-noise",
            metavar="NAME",
            help="which target tokens are masked in training: uniform, or a registered noise",
        )

    @classmethod
    def build_model(cls, args, task):
        """Build; raise a ValueError for an unknown noise."""
        check_task(cls, args, task)
        noise_named(args.target_noise)
        return super().build_model(args, task)

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """The target with masks; ``uniform`` is section 3.1."""
        corrupt = noise_named(self.args.target_noise)
        return {"prev_output_tokens": corrupt(sample["target"], sample["id"], seed, update, self.pad, self.mask)}

    def canvas(self, memory: Memory, plan: Plan) -> Canvas:
        """``<mask>`` everywhere: tokens (R, T)."""
        width = plan.width or int(plan.lengths.max())
        tokens = blank_canvas(plan.lengths, width, self.mask, self.pad)
        padding = tokens.eq(self.pad)
        return Canvas(tokens, padding if is_padded(padding) else None)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        target: Tensor,
        objective: TokenObjective = LIKELIHOOD,
    ) -> Dict[str, LossPart]:
        """The losses: ``words``, of the masked tokens, with label smoothing, and ``length`` without (section 3.1).

        Args:
            src_tokens: (B, S) int64. prev_output_tokens: (B, T) int64, the target with masks. target: (B, T) int64.
        """
        memory = self.encode(src_tokens, src_lengths)
        padding = target.eq(self.pad)
        features = self.decode(Canvas(prev_output_tokens, padding), memory)
        masked = prev_output_tokens.eq(self.mask) & ~padding
        return {
            "words": self.token_loss(features, target, masked, objective),
            "length": length_loss(self.length_lprobs(memory), (~padding).sum(1)),
        }


def blank_canvas(lengths: Tensor, width: int, mask: int, pad: int) -> Tensor:
    """``mask`` at the first ``lengths`` positions, ``pad`` after them: (...,) int64 -> (..., width) int64."""
    positions = torch.arange(width, device=lengths.device)
    return torch.where(positions < lengths.unsqueeze(-1), mask, pad)


@register_model_architecture("cmlm", "cmlm")
def cmlm(args):
    """fairseq's form, the sizes of its ``transformer``."""
    default(args, length_head="pooled", target_noise="uniform")
    transformer_base(args)


def release_form(args) -> None:
    """The differences of the Mask-Predict release from fairseq (``bert_seq2seq.py``)."""
    switch_on(args, "encoder_learned_pos", "decoder_learned_pos", "no_scale_embedding", "bert_init")
    default(args, length_head="token", activation_fn="gelu", layer_norm_eps=1e-12)


@register_model_architecture("cmlm", "cmlm_wmt_en_de")
def cmlm_wmt_en_de(args):
    """Mask-Predict's WMT14 English-German model: 6+6 layers, 512/2048, dropout 0.3."""
    release_form(args)
    sizes(args, dim=512, ffn=2048, heads=8, layers=6)
    default(args, dropout=0.3)
    cmlm(args)


@register_model_architecture("cmlm", "cmlm_wmt_en_ro")
def cmlm_wmt_en_ro(args):
    """Mask-Predict's WMT16 English-Romanian model: the same sizes (the release gives all pairs one command)."""
    cmlm_wmt_en_de(args)


@register_model_architecture("cmlm", "cmlm_iwslt_de_en")
def cmlm_iwslt_de_en(args):
    """The sizes of fairseq's ``transformer_iwslt_de_en`` and of CMLMC's IWSLT14 script: 512/1024, 4 heads."""
    release_form(args)
    sizes(args, dim=512, ffn=1024, heads=4, layers=6)
    default(args, dropout=0.3)
    cmlm(args)


@register_model_architecture("cmlm", "cmlm_tiny")
def cmlm_tiny(args):
    """For tests: 2+2 layers, 64/128, 4 heads."""
    release_form(args)
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    cmlm(args)
