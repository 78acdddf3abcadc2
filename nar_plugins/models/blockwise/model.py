"""Blockwise parallel decoding (Stern et al. 2018): an AR Transformer that also proposes the tokens after the next."""

from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase, TransformerModel
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from fairseq.modules.checkpoint_activations import unwrap_checkpoint
from torch import Tensor

from nar_plugins.checkpoint_io.start import NewParameters, start_new_parameters
from nar_plugins.models.architectures import default, sizes
from nar_plugins.models.base import wrap
from nar_plugins.models.blockwise.parallel_heads import HEADS, ProposalHeads
from nar_plugins.models.blockwise.sequential_heads import SequentialHeads
from nar_plugins.models.flags import UNREAD, UNSUPPORTED, refuse_unsupported
from nar_plugins.models.pairing import check_task
from nar_plugins.modules.attention import allowed_sources, attend_packed
from nar_plugins.modules.block_decoder import BlockDecoder
from nar_plugins.modules.fused_loss import fused_token_loss
from nar_plugins.modules.losses import LossPart
from nar_plugins.modules.packing import queries_of_sentences


class HeadObjective(NamedTuple):
    """What ``blockwise_loss`` asks of ``forward``.

    Attributes:
        weights: the numbers of the heads that are asked, and how much each counts in the loss.
        label_smoothing: of every head's loss.
        positions: (B, K, T) bool, those at which each of the K heads is asked; None: everywhere.
    """

    weights: Dict[int, float]
    label_smoothing: float = 0.0
    positions: Optional[Tensor] = None


class BlockwiseDecoder(TransformerDecoderBase):
    """fairseq's decoder. Its ``forward`` is head 1, an ordinary next-token model, so fairseq's own search and scoring
    work.

    Heads count from 1, as in the paper: head i looks i positions ahead. Head 1 is the identity where the base is frozen
        (the
    output is then the base's, exactly), where it is the only one, or where the others follow it in turn
    (``sequential``), and learned otherwise.
    """

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.block_size = cfg.block_size
        self.sequential = cfg.block_head == "sequential"
        identity = cfg.freeze_base or self.block_size == 1 or self.sequential
        self.learned_from = 2 if identity else 1  # the first head with parameters
        learned = self.block_size + 1 - self.learned_from
        width = self.output_embed_dim
        hidden = cfg.block_ffn_dim or cfg.decoder.ffn_embed_dim
        activation_dropout = cfg.activation_dropout or cfg.relu_dropout or 0.0
        self.proposal_heads = None
        if learned and self.sequential:
            self.proposal_heads = SequentialHeads(
                learned,
                width,
                embed_tokens.embedding_dim,
                cfg.encoder.embed_dim,
                hidden,
                cfg.decoder.attention_heads,
                cfg.dropout,
                cfg.attention_dropout,
                activation_dropout,
            )
        elif learned:
            self.proposal_heads = ProposalHeads(learned, width, hidden, cfg.block_head, cfg.dropout, activation_dropout)

    def output_layer(self, features: Tensor) -> Tensor:
        """Head 1: the decoder's features (..., D) -> logits (..., V)."""
        return self.output_projection(self.head_features(features, 1, 1).squeeze(-2))

    def head_features(self, features: Tensor, first: int, last: int) -> Tensor:
        """What heads ``first`` to ``last``, both included, put before ``output_projection``: (..., D) -> (..., heads,
        D).

        Of sequential heads only the first is known from the features alone; ``proposal_heads`` makes the others in
        turn.
        """
        identity = [features.unsqueeze(-2)] if first < self.learned_from else []
        first = max(first, self.learned_from)
        if first > last:
            return identity[0]
        learned = self.proposal_heads(features, first - self.learned_from, last + 1 - self.learned_from)
        return torch.cat([*identity, learned], -2)

    def turn(self, head: int, base: Tensor, state: Tensor, tokens: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """What a sequential head, 2 or later, puts before ``output_projection``, told the tokens (P,) before; see
        ``SequentialHeads``.
        """
        return self.proposal_heads(head - 2, base, state, self.embed_scale * self.embed_tokens(tokens), ask)


@register_model("blockwise")
class BlockwiseModel(TransformerModel):
    """A stock Transformer and K proposal heads; ``--finetune-from-model`` starts it from any stock ``transformer``."""

    generators = ("blockwise", "beam")
    tasks, criterions = ("nar_translation",), ("blockwise_loss",)
    new_parameters = (  # that an AR model does not have
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
            help="full: one hidden layer that all heads see (the paper); diag: one of its own for each head; "
            "sequential: one after the other, each told the token proposed before it",
        )
        parser.add_argument(
            "--block-ffn-dim", type=int, metavar="N", help="hidden units a head (the decoder's feed-forward size)"
        )
        parser.add_argument(
            "--freeze-base",
            action="store_true",
            help="train heads 2 to K only; the output stays that of the base, word for word",
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
        """A frozen base stays in evaluation mode, so that the heads learn from the features that they will see."""
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
        """What decodes blocks of tokens with it; its heads draft them, where there are any besides the first."""
        kind = "sequential heads" if self.decoder.sequential else "heads"
        return BlockDecoder(self.decoder, kind if self.decoder.block_size > 1 else None)

    def trained_heads(self) -> range:
        """The numbers of the heads that have parameters, and of head 1 unless the base is frozen."""
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

        All heads go through the vocabulary projection together, whose weights' gradient is then made once; their logits
        are never all in memory.

        Args:
            src_tokens: (B, S) int64. prev_output_tokens, target: (B, T) int64, padded on the right.
            objective: None: all trained heads count alike.
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
            states, words = zip(*self.asked_in_turn(features, encoder_out, target, list(heads), positions))
        else:
            states, words = zip(*(self.asked(features, target, head, positions) for head in heads))
        counts = [len(part) for part in words]
        weights = torch.cat([features.new_full((n,), weight) for n, weight in zip(counts, heads.values())])
        of_all = fused_token_loss(
            self.decoder.output_projection, torch.cat(states), torch.cat(words), objective.label_smoothing, weights
        )
        split = zip(heads.items(), counts, *(part.split(counts) for part in of_all))
        return {
            f"h{head}": LossPart(loss.sum(), nll.sum(), torch.tensor(n, device=nll.device), weight, correct.sum())
            for (head, weight), n, loss, nll, correct in split
        }

    def asked(self, features: Tensor, target: Tensor, head: int, taken: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        """Head i's states (M, D) and targets (M,): at position t target[t + i - 1]; what is shifted past the end has
        none.

        Args:
            features: (B, T, D). target: (B, T) int64. taken: ``objective.positions``.
        """
        ahead = target[:, head - 1 :]
        chosen = ahead.ne(self.decoder.padding_idx)
        if taken is not None:
            chosen = chosen & taken[:, head - 1, : ahead.size(1)]
        states = self.decoder.head_features(features[:, : ahead.size(1)][chosen], head, head).squeeze(1)
        return states, ahead[chosen]

    def asked_in_turn(
        self, features: Tensor, encoder_out: Dict, target: Tensor, heads: List[int], taken: Optional[Tensor]
    ) -> Iterator[Tuple[Tensor, Tensor]]:
        """What ``asked`` gives, of sequential heads: head i is told the target before its own. All but head 1 are
        trained at the positions taken for head 2, where those after it go on from its state."""
        if 1 in heads:
            yield self.asked(features, target, 1, taken)
        decoder, pad, last = self.decoder, self.decoder.padding_idx, max(heads)
        if last == 1:
            return
        ahead = F.pad(target, (0, last), value=pad)
        chosen = ahead[:, 1 : target.size(1) + 1].ne(pad)  # where head 2 has a target
        if taken is not None:
            chosen = chosen & taken[:, 1]
        sentence, place = chosen.nonzero(as_tuple=True)
        keys, values = decoder.proposal_heads.memory(encoder_out["encoder_out"][0].transpose(0, 1))
        allowed = allowed_sources(encoder_out)
        slots, width = queries_of_sentences(sentence, target.size(0))

        def ask(x: Tensor) -> Tensor:
            return attend_packed(decoder.proposal_heads.encoder_attn, x, keys, values, allowed, slots, width)

        state = base = features[sentence, place]
        for head in range(2, last + 1):
            state = decoder.turn(head, base, state, ahead[sentence, place + head - 2], ask)
            if head in heads:
                word = ahead[sentence, place + head - 1]
                there = word.ne(pad)
                yield state[there], word[there]

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
    """For tests and tries: 2+2 layers, 64/128, 4 heads."""
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    blockwise(args)
