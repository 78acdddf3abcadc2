"""BANG (Qi et al. 2021): one decoder that predicts a token from the tokens before it or from any number of masks."""

from argparse import BooleanOptionalAction
from typing import Dict, Optional

import torch
import torch.nn as nn
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from torch import Tensor

from nar_plugins.checkpoint_io.start import check_tables
from nar_plugins.models.architectures import default, sizes, switch_on
from nar_plugins.models.bang.block_decoder import BangBlockDecoder
from nar_plugins.models.bang.decoder import BangDecoder, BangEncoder
from nar_plugins.models.bang.losses import (
    ALL_MASKS,
    CLASSES,
    BangObjective,
    class_counts,
    class_losses,
    class_members,
    class_shares,
)
from nar_plugins.models.bang.stream_layout import mask_counts, span_starts
from nar_plugins.models.flags import UNREAD_BY_BANG, UNSUPPORTED_BY_BANG, refuse_unsupported
from nar_plugins.models.pairing import check_task
from nar_plugins.modules.dropout import use_fast_dropout
from nar_plugins.modules.fused_loss import fused_token_loss
from nar_plugins.modules.pruned import shrink


@register_model("bang")
class BangModel(TransformerModel):
    """One set of weights for autoregressive, non-autoregressive and every decoding between.

    Post-norm, GELU, learned positions and one table of embeddings without scale. The parameters have the release's
    names, so its checkpoints load unchanged. ``--max-source-positions`` and ``--max-target-positions`` are the sizes of
    the tables of positions (512 in the release).
    """

    generators = ("bang", "beam", "blockwise")
    tasks, criterions = ("nar_translation", "bang_pretraining"), ("bang_loss",)
    unread_flags = UNREAD_BY_BANG  # the task refuses them in training

    @classmethod
    def add_args(cls, parser):
        """``TransformerModel``'s flags and those of the streams."""
        TransformerModel.add_args(parser)
        parser.add_argument(
            "--ngram",
            type=int,
            metavar="N",
            help="predicting streams in training: the most masks in a row (0: as many as the target has tokens)",
        )
        parser.add_argument(
            "--nar-sees-bos",
            action=BooleanOptionalAction,
            help="masks from the start of the target see the start token (default), as in pre-training; "
            "--no-nar-sees-bos for what was fine-tuned with the official code",
        )

    @classmethod
    def build_model(cls, args, task):
        """Build and initialise.

        Raises:
            ValueError: an unsupported flag of fairseq's, a negative number of streams, or two dictionaries or widths
                for the one table of embeddings.
        """
        check_task(cls, args, task)
        refuse_unsupported(args, UNSUPPORTED_BY_BANG)
        if args.ngram < 0:
            raise ValueError(
                f"--ngram {args.ngram}: give the number of streams, or 0 for as many as a target has tokens"
            )
        bang_parts(args)
        if (
            task.source_dictionary != task.target_dictionary
        ):  # fairseq would name --share-all-embeddings, which nobody gave
            raise ValueError(
                f"--arch {args.arch} has one dictionary for both sides: give fairseq-preprocess --joined-dictionary"
            )
        if args.encoder_embed_dim != args.decoder_embed_dim:
            raise ValueError(
                f"--arch {args.arch} has one table of embeddings: --encoder-embed-dim {args.encoder_embed_dim} "
                f"and --decoder-embed-dim {args.decoder_embed_dim} must be equal"
            )
        model = super().build_model(args, task)
        initialise(model)
        shrink(model, args)
        use_fast_dropout(model)
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        return BangEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return BangDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """None. Because the method exists, the task puts the update's number in the batch, from which the criterion
        draws its sampled rows.
        """
        return {}

    def mask_counts(self, real: Tensor, target_idx: Optional[Tensor] = None) -> Tensor:
        """The number of masks of every row with the model's streams; see ``stream_layout.mask_counts``."""
        return mask_counts(real, target_idx, self.args.ngram)

    def block_decoder(self) -> BangBlockDecoder:
        """The decoder of blocks of tokens, with the model's masks as drafter."""
        return BangBlockDecoder(self.decoder)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        prev_output_tokens: Optional[Tensor] = None,
        target: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        target_idx: Optional[Tensor] = None,
        objective: BangObjective = ALL_MASKS,
        **kwargs,
    ):
        """fairseq's forward (autoregressive logits); with ``target``, the losses of the classes of masks by name.

        The logits are computed in chunks and never all in memory.

        Args:
            src_tokens: (B, S) int64.
            prev_output_tokens, target: (B, T) int64, padded on the right; the token before each target, and the target.
            positions: (B, T) int64, the position ids of the main tokens, pad + 1 + the index in the text;
                None: pad + 1, pad + 2, ...
            target_idx: (B, T) int64, the index of every target in its span, 0 on padding; None: a sentence is one span.
        """
        if target is None:
            return super().forward(src_tokens, src_lengths, prev_output_tokens, **kwargs)
        real, sees_bos = target.ne(self.decoder.padding_idx), self.decoder.nar_sees_bos
        all_counts, starts = self.mask_counts(real, target_idx), span_starts(real, target_idx)
        counts = all_counts if objective.counts is None else objective.counts
        layout = self.decoder.layout(real, counts, objective.with_ar, positions)
        memory = self.decoder.memory(self.encoder(src_tokens, src_lengths=src_lengths))
        features = self.decoder.mask_features(prev_output_tokens, memory, layout)
        masks = layout.masks
        weights = dict.fromkeys(CLASSES, 1.0) if objective.weights is None else objective.weights
        shares = class_shares(class_members(masks, starts, sees_bos), masks, objective)
        losses, nll, _ = fused_token_loss(
            self.decoder.output_projection,
            features,
            target[masks.sentence, masks.start + masks.offset],
            objective.label_smoothing,
            sum(weights[name] * shares[name] for name in CLASSES),
        )
        return class_losses(losses, nll, shares, class_counts(real, all_counts, starts, sees_bos), weights)

    def upgrade_state_dict_named(self, state_dict, name):
        """Refuse a checkpoint whose vocabulary or positions have other sizes, and name them."""
        super().upgrade_state_dict_named(state_dict, name)
        check_tables(self, state_dict, name)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """BERT's initialisation, N(0, 0.02), for embeddings and linear layers; the fused ``in_proj`` keeps Xavier's."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(std=0.02)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    for module in model.modules():  # afterwards, because the output projection is the table of embeddings
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def bang_parts(args) -> None:
    """Fixed parts of every ``bang``, whatever the flags."""
    switch_on(
        args,
        "share_all_embeddings",
        "share_decoder_input_output_embed",
        "encoder_learned_pos",
        "decoder_learned_pos",
        "layernorm_embedding",
        "no_scale_embedding",
    )
    args.length_head = "none"


@register_model_architecture("bang", "bang")
def bang(args):
    """The sizes of fairseq's ``transformer``."""
    default(args, ngram=0, nar_sees_bos=True, activation_fn="gelu")
    bang_parts(args)
    transformer_base(args)


@register_model_architecture("bang", "bang_tiny")
def bang_tiny(args):
    """For tests: 2+2 layers, 64/128, 4 heads."""
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    bang(args)


def released(args, **size) -> None:
    """A size of the release, with its dropout."""
    sizes(args, **size)
    default(args, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1)
    bang(args)


@register_model_architecture("bang", "bang_base")
def bang_base(args):
    """The paper's: 6+6 layers, 768/3072, 12 heads."""
    released(args, dim=768, ffn=3072, heads=12, layers=6)


@register_model_architecture("bang", "bang_middle")
def bang_middle(args):
    """6+6 layers, 1024/4096, 16 heads."""
    released(args, dim=1024, ffn=4096, heads=16, layers=6)


@register_model_architecture("bang", "bang_large")
def bang_large(args):
    """12+12 layers, 1024/4096, 16 heads."""
    released(args, dim=1024, ffn=4096, heads=16, layers=12)


# the release has one model per mode; here all are ``bang``
for _mode in ("bang_ar", "bang_nar", "bang_ar_nar_mixed"):
    for _size, _arch in (("base", bang_base), ("middle", bang_middle), ("large", bang_large)):
        register_model_architecture("bang", f"{_mode}_{_size}")(_arch)
