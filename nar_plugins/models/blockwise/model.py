"""Blockwise parallel decoding (Stern et al. 2018): an AR Transformer that also proposes the tokens after the next."""

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from fairseq.modules.checkpoint_activations import unwrap_checkpoint
from torch import Tensor

from nar_plugins.checkpoint_io.start import NewParameters, start_new_parameters
from nar_plugins.models.architectures import default, sizes
from nar_plugins.models.base import wrap
from nar_plugins.models.blockwise.decoder import BlockwiseDecoder
from nar_plugins.models.blockwise.parallel_heads import HEADS
from nar_plugins.models.flags import UNREAD, UNSUPPORTED, refuse_unsupported
from nar_plugins.models.pairing import check_task
from nar_plugins.modules.attention import allowed_sources, attend_packed
from nar_plugins.modules.block_decoder import BlockDecoder
from nar_plugins.modules.dropout import use_fast_dropout
from nar_plugins.modules.fused_loss import fused_token_loss
from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.packing import queries_of_sentences
from nar_plugins.modules.pruned import shrink


class HeadObjective(NamedTuple):
    """What ``blockwise_loss`` asks of ``forward``.

    Attributes:
        weights: the weight in the loss of each trained head, by its number.
        label_smoothing: of every head's loss.
        positions: (B, K, T) bool, where each of the K heads is trained; None: everywhere.
    """

    weights: Dict[int, float]
    label_smoothing: float = 0.0
    positions: Optional[Tensor] = None


@register_model("blockwise")
class BlockwiseModel(TransformerModel):
    """A stock Transformer and K proposal heads; ``--finetune-from-model`` starts it from any stock ``transformer``."""

    generators = ("blockwise", "beam")
    tasks, criterions = ("nar_translation",), ("blockwise_loss",)
    new_parameters = (  # that an AR checkpoint does not have
        NewParameters(
            r"decoder\.proposal_heads\.",
            "proposal heads",
            "--block-head",
            "--block-size, --block-head, --block-ffn-dim and --freeze-base",
        ),
    )
    unread_flags = UNREAD  # the task refuses them in training

    @classmethod
    def add_args(cls, parser):
        """``TransformerModel``'s flags and those of the heads."""
        TransformerModel.add_args(parser)
        parser.add_argument(
            "--block-size", type=int, metavar="K", help="heads: head i proposes the token i positions ahead"
        )
        parser.add_argument(
            "--block-head",
            choices=HEADS,
            help="full: one hidden layer that all heads see (the paper); diag: a separate layer for each head; "
            "sequential: one after the other, each given the previously proposed token",
        )
        parser.add_argument(
            "--block-ffn-dim", type=int, metavar="N", help="hidden units per head (the decoder's feed-forward size)"
        )
        parser.add_argument(
            "--freeze-base",
            action="store_true",
            help="train heads 2 to K only; the output stays exactly that of the base",
        )

    @classmethod
    def build_model(cls, args, task):
        check_task(cls, args, task)
        refuse_unsupported(args, UNSUPPORTED)
        if args.block_size < 1:
            raise ValueError(f"--block-size {args.block_size}: at least one head is needed")
        if args.block_ffn_dim is not None and args.block_ffn_dim < 1:
            raise ValueError(f"--block-ffn-dim {args.block_ffn_dim}: at least one unit is needed")
        args.freeze_base = getattr(args, "freeze_base", False)
        if args.freeze_base and args.block_size == 1:
            raise ValueError("--freeze-base with --block-size 1 leaves nothing to train: give a larger --block-size")
        model = super().build_model(args, task)
        shrink(model, args)
        use_fast_dropout(model)
        for layer in (*model.encoder.layers.children(), *model.decoder.layers.children()):
            wrap(unwrap_checkpoint(layer), model.cfg)
        if args.freeze_base:
            model.requires_grad_(False)
            model.decoder.proposal_heads.requires_grad_(True)
        return model

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return BlockwiseDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    def train(self, mode: bool = True):
        """A frozen base stays in evaluation mode, so that the heads are trained on the features of decoding."""
        super().train(mode)
        if getattr(self.args, "freeze_base", False):
            self.encoder.eval()
            self.decoder.eval()
            self.decoder.proposal_heads.train(mode)
        return self

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """None; that it exists makes the task tell the criterion the number of the update, which decides the sampled
        head.
        """
        return {}

    def block_decoder(self) -> BlockDecoder:
        """The decoder of blocks of tokens, with the heads after the first, if any, as drafter."""
        kind = "sequential heads" if self.decoder.sequential else "heads"
        return BlockDecoder(self.decoder, kind if self.decoder.block_size > 1 else None, self.decoder.first_head)

    def trained_heads(self) -> range:
        """The numbers of the heads with parameters, and head 1 unless the base is frozen."""
        return range(2 if self.args.freeze_base else 1, self.decoder.block_size + 1)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        target: Optional[Tensor] = None,
        objective: Optional[HeadObjective] = None,
        **kwargs,
    ):
        """fairseq's forward (head 1); with ``target``, the losses of the heads by name, ``h1`` ...

        All heads share one call of the vocabulary projection, so that the gradient of its weights is computed once. The
        logits are computed in chunks and never all in memory.

        Args:
            src_tokens: (B, S) int64. prev_output_tokens, target: (B, T) int64, padded on the right.
            objective: None: all trained heads have weight 1.
        """
        if target is None:
            return super().forward(src_tokens, src_lengths, prev_output_tokens, **kwargs)
        if objective is None:
            objective = HeadObjective(dict.fromkeys(self.trained_heads(), 1.0))
        heads, positions = objective.weights, objective.positions
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.args.freeze_base):
            encoder_out = self.encoder(src_tokens, src_lengths=src_lengths)
            features, _ = self.decoder.extract_features(prev_output_tokens, encoder_out=encoder_out)
        if self.decoder.sequential:
            states, targets = zip(*self.sequential_states(features, encoder_out, target, list(heads), positions))
        else:
            states, targets = zip(*(self.head_states(features, target, head, positions) for head in heads))
        counts = [len(part) for part in targets]
        weights = torch.cat([features.new_full((n,), weight) for n, weight in zip(counts, heads.values())])
        losses = fused_token_loss(
            self.decoder.output_projection, torch.cat(states), torch.cat(targets), objective.label_smoothing, weights
        )
        split = zip(heads.items(), counts, *(part.split(counts) for part in losses))
        return {
            f"h{head}": LossPart(loss.sum(), nll.sum(), torch.tensor(n, device=nll.device), weight, correct.sum())
            for (head, weight), n, loss, nll, correct in split
        }

    def head_states(
        self, features: Tensor, target: Tensor, head: int, positions: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """The states (M, D) and targets (M,) of head i; the target at position t is target[t + i - 1], where it exists.

        Args:
            features: (B, T, D). target: (B, T) int64. positions: ``objective.positions``.
        """
        ahead = target[:, head - 1 :]
        selected = ahead.ne(self.decoder.padding_idx)
        if positions is not None:
            selected = selected & positions[:, head - 1, : ahead.size(1)]
        states = self.decoder.head_features(features[:, : ahead.size(1)][selected], head, head).squeeze(1)
        return states, ahead[selected]

    def sequential_states(
        self, features: Tensor, encoder_out: Dict, target: Tensor, heads: List[int], positions: Optional[Tensor]
    ) -> Iterator[Tuple[Tensor, Tensor]]:
        """``head_states`` of sequential heads; head i is given the target of head i - 1.

        Heads after head 2 continue from its state, so all but head 1 are trained at the positions of head 2.
        """
        if 1 in heads:
            yield self.head_states(features, target, 1, positions)
        decoder, pad, last = self.decoder, self.decoder.padding_idx, max(heads)
        if last == 1:
            return
        ahead = F.pad(target, (0, last), value=pad)
        selected = ahead[:, 1 : target.size(1) + 1].ne(pad)  # where head 2 has a target
        if positions is not None:
            selected = selected & positions[:, 1]
        sentence, position = selected.nonzero(as_tuple=True)
        keys, values = decoder.proposal_heads.memory(encoder_out["encoder_out"][0].transpose(0, 1))
        allowed = allowed_sources(encoder_out)
        slots, width = queries_of_sentences(sentence, target.size(0))

        def cross_attention(x: Tensor) -> Tensor:
            return attend_packed(decoder.proposal_heads.encoder_attn, x, keys, values, allowed, slots, width)

        state = base = features[sentence, position]
        for head in range(2, last + 1):
            state = decoder.sequential_head(head, base, state, ahead[sentence, position + head - 2], cross_attention)
            if head in heads:
                targets = ahead[sentence, position + head - 1]
                exists = targets.ne(pad)
                yield state[exists], targets[exists]

    def upgrade_state_dict_named(self, state_dict, name):
        """Let ``--finetune-from-model`` take an AR checkpoint."""
        super().upgrade_state_dict_named(state_dict, name)
        start_new_parameters(self, state_dict, name)


@register_model_architecture("blockwise", "blockwise")
def blockwise(args):
    """The sizes of fairseq's ``transformer``; four heads of the paper's form."""
    default(args, block_size=4, block_head="full", block_ffn_dim=None)
    transformer_base(args)


@register_model_architecture("blockwise", "blockwise_wmt_en_de")
def blockwise_wmt_en_de(args):
    """The paper's base: 6+6 layers, 512/2048."""
    sizes(args, dim=512, ffn=2048, heads=8, layers=6)
    blockwise(args)


@register_model_architecture("blockwise", "blockwise_iwslt_de_en")
def blockwise_iwslt_de_en(args):
    """The sizes of fairseq's ``transformer_iwslt_de_en``: 512/1024, 4 heads."""
    sizes(args, dim=512, ffn=1024, heads=4, layers=6)
    blockwise(args)


@register_model_architecture("blockwise", "blockwise_tiny")
def blockwise_tiny(args):
    """For tests: 2+2 layers, 64/128, 4 heads."""
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    blockwise(args)
