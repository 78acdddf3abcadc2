"""The non-autoregressive Transformer (Gu et al. 2018), with the vanilla, glancing and CTC models that came of it."""

from argparse import BooleanOptionalAction
from typing import Dict, List, Optional, Tuple

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from torch import Tensor

from nar_plugins.checkpoint_io.start import NewParameters
from nar_plugins.data.noise import GLANCING_STREAM, uniform
from nar_plugins.models.architectures import default, sizes
from nar_plugins.models.base import NarDecoder, NarEncoder, NarModel, wrap
from nar_plugins.models.contract import Canvas, Memory, Plan
from nar_plugins.models.flags import UNREAD_WITHOUT_PQ, UNSUPPORTED_IN_PARALLEL, layers, refuse_unsupported
from nar_plugins.models.nat import glancing
from nar_plugins.models.nat.fertility_head import FertilityHead, fertility_loss
from nar_plugins.models.nat.finetuning import finetuning_losses
from nar_plugins.models.nat.positional_attention import PositionalDecoderLayer, not_itself
from nar_plugins.models.pairing import check_task
from nar_plugins.modules import ctc, source_copy
from nar_plugins.modules.attention import Attention
from nar_plugins.modules.layers import NarDecoderLayer, pick
from nar_plugins.modules.losses import LIKELIHOOD, LossPart, TokenObjective, length_loss
from nar_plugins.modules.precision import full


class NatEncoder(NarEncoder):
    """The encoder, with a fertility head where fertilities decide the canvas."""

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        self.fertility_head = FertilityHead(cfg.encoder.embed_dim) if cfg.source_copy == "fertility" else None

    def forward(self, src_tokens: Tensor, src_lengths=None, return_all_hiddens=True, token_embeddings=None) -> Dict:
        """``NarEncoder``'s with the states of all layers and, in ``copies``, what the canvas is made of, (B, S, D): the
        embedded source with its positions, before any dropout or norm.
        """
        out = super().forward(src_tokens, src_lengths, True, token_embeddings)
        if self.layer_norm is not None:  # it norms the top only, and every layer may be attended to
            states = out["encoder_states"]
            out["encoder_states"] = [states[0], *(self.layer_norm(state) for state in states[1:])]
        positions = 0 if self.embed_positions is None else self.embed_positions(src_tokens)
        copies = out["encoder_embedding"][0] + positions
        return {**out, "copies": [copies.masked_fill(src_tokens.eq(self.padding_idx).unsqueeze(-1), 0)]}


class NatDecoder(NarDecoder):
    """A decoder over a canvas of copied source embeddings."""

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        kind = PositionalDecoderLayer if cfg.positional_attention else NarDecoderLayer
        return wrap(kind(cfg, no_encoder_attn), cfg)

    def attended_states(self, encoder_out: Dict) -> List[Tensor]:
        """With ``--layerwise-attention`` layer k attends to layer k of the encoder."""
        if self.cfg.layerwise_attention:
            return encoder_out["encoder_states"][1:]
        return super().attended_states(encoder_out)

    def allowed_positions(self, padding: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
        """With ``--mask-diagonal`` a position may not look at itself."""
        return not_itself(padding, x) if self.cfg.mask_diagonal else super().allowed_positions(padding, x)

    def read_by_heads(self, encoder_out: Dict) -> Dict[str, Tensor]:
        """``Memory.encoded``: copies and top (B, S, D) for canvas and fertilities, source_lengths (B,), and
        length_state (B, D) where there is a length head.
        """
        return {
            **super().read_by_heads(encoder_out),
            "copies": encoder_out["copies"][0],
            "top": encoder_out["encoder_out"][0].transpose(0, 1),
            "source_lengths": encoder_out["src_lengths"][0].squeeze(1),
        }

    def embed_revealed(self, gold: Tensor) -> Tensor:
        """What the canvas has where tokens (R, T) int64 are revealed: (R, T, D), before the positions are added."""
        x = self.embed_scale * self.embed_tokens(gold)
        return x if self.project_in_dim is None else self.project_in_dim(x)

    def forward(self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """One pass over a canvas of embeddings: features (R, T or n, D); the target's positions are added here."""
        x, padding = canvas
        places = torch.full(x.shape[:2], self.padding_idx + 1, device=x.device)  # tokens only by being padding or not
        if padding is not None:
            places = places.masked_fill(padding, self.padding_idx)
        positions = 0 if self.embed_positions is None else self.embed_positions(places).to(x)
        x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        extra = {"positions": positions} if self.cfg.positional_attention else {}
        features = self.through_layers(self.dropout_module(x), memory, padding, **extra)
        return features if picked is None else pick(features, picked)


@register_model("nat")
class NatModel(NarModel):
    """Predicts a target in one pass from copies of the source's embeddings.

    How often a source token is copied its predicted fertility says (``--source-copy fertility``, Gu et al. 2018), or a
    predicted length by which the source is stretched (``uniform``, ``soft``), or, with ``--ctc``, nothing: every token
    stands ``--upsample`` times, and repetitions and blanks are dropped from the result. ``<mask>`` is the blank.

    The plain architecture ``nat`` has the parts of a stock Transformer only; the presets have the paper's positional
    attention, diagonal mask and layer-wise attention. Each is a flag and has a ``--no-`` form.
    """

    generators = ("one_pass", "noisy_parallel")  # the second with fertilities only; a built model has its own

    new_parameters = (
        *NarModel.new_parameters,
        NewParameters(r"encoder\.fertility_head\.", "a fertility head", "--source-copy", "--encoder-embed-dim"),
        NewParameters(
            r"decoder\.layers\.\d+\.positional_attn(_layer_norm)?\.",
            "positional attention",
            "--decoder-layers",
            "--decoder-embed-dim",
        ),
    )
    unread_flags = UNREAD_WITHOUT_PQ  # fairseq's decoder projects the embeddings of its tokens, and here are none

    @classmethod
    def add_args(cls, parser):
        NarModel.add_args(parser)
        parser.add_argument(
            "--source-copy",
            choices=source_copy.SOURCE_COPIES,
            help="what fills the canvas: the source by its fertilities, or stretched to a predicted length, "
            "hard (uniform) or blurred (soft)",
        )
        parser.add_argument(
            "--positional-attention",
            action=BooleanOptionalAction,
            help="an attention by position alone in every decoder layer (Gu et al. 2018)",
        )
        parser.add_argument(
            "--mask-diagonal",
            action=BooleanOptionalAction,
            help="no decoder position attends to itself (Gu et al. 2018)",
        )
        parser.add_argument(
            "--layerwise-attention",
            action=BooleanOptionalAction,
            help="decoder layer k attends to encoder layer k, not to the top (Gu et al. 2018)",
        )
        parser.add_argument(
            "--width-scaled-attention",
            action=BooleanOptionalAction,
            help="divide attention logits by the root of the model's width, as Gu et al. 2018, not of the head's",
        )
        parser.add_argument(
            "--glancing",
            metavar="SCHEDULE",
            help="reveal gold tokens in training (Qian et al. 2021): a ratio of the wrong ones, as in "
            "0.5:0.3@300k, from 0.5 to 0.3 over 300,000 updates",
        )
        parser.add_argument(
            "--ctc",
            action="store_true",
            help="latent alignments: train with CTC on a canvas --upsample times the source",
        )
        parser.add_argument("--upsample", type=int, metavar="N", help="copies of every source token with --ctc (2)")

    @classmethod
    def build_model(cls, args, task):
        """Build; raise when flags do not go together."""
        check_task(cls, args, task)  # a configuration without flags has none of what is asked next
        if args.ctc and args.source_copy == "fertility":
            raise ValueError("--ctc needs no fertilities: --source-copy uniform or soft")
        if args.ctc and args.upsample < 1:
            raise ValueError(f"--upsample {args.upsample}: every source token stands at least once")
        if args.upsample and not args.ctc:
            raise ValueError("--upsample is for --ctc: leave it out")
        if (args.length_head == "none") != (args.ctc or args.source_copy == "fertility"):
            raise ValueError(
                f"--length-head {args.length_head} is for --source-copy uniform and soft without --ctc: leave it out"
            )
        if args.length_head == "none" and getattr(args, "stop_length_gradient", False):
            raise ValueError("--stop-length-gradient: this model predicts no length; leave it out")
        if args.encoder_embed_dim != args.decoder_embed_dim:
            raise ValueError(
                f"the canvas is made of the source's embeddings: --encoder-embed-dim {args.encoder_embed_dim} and "
                f"--decoder-embed-dim {args.decoder_embed_dim} must be equal"
            )
        refuse_unsupported(args, UNSUPPORTED_IN_PARALLEL)
        sides = {side: layers(args, side) for side in ("encoder", "decoder")}
        if args.layerwise_attention and sides["encoder"] != sides["decoder"]:
            raise ValueError(
                f"--layerwise-attention needs as many --encoder-layers ({sides['encoder']}) as --decoder-layers "
                f"({sides['decoder']}): give --no-layerwise-attention"
            )
        if args.positional_attention and getattr(args, "no_token_positional_embeddings", False):
            raise ValueError("--positional-attention needs positions: leave out --no-token-positional-embeddings")
        schedule = glancing.Schedule.parse(args.glancing) if args.glancing else None
        model = super().build_model(args, task)
        model.glancing, model.num_updates = schedule, 0
        model.generators = ("one_pass", "noisy_parallel") if args.source_copy == "fertility" else ("one_pass",)
        if schedule is None and not (args.share_all_embeddings or args.share_decoder_input_output_embed):
            model.decoder.embed_tokens.weight.requires_grad_(False)  # nothing reads it: DDP would wait for its gradient
            model.unread_flags = {**cls.unread_flags, "decoder_embed_path": None}
        if args.width_scaled_attention:
            for module in model.modules():
                if isinstance(module, Attention):
                    module.scaling = module.embed_dim**-0.5
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        return NatEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return NatDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    def max_positions(self) -> tuple:
        """Longest source and target; with CTC and learned positions the canvas must have a row for each of its
        places.
        """
        source, target = super().max_positions()
        if self.args.ctc and self.args.decoder_learned_pos:
            source = min(source, self.decoder.max_positions() // self.args.upsample)
        return source, target

    @property
    def predicts(self) -> Optional[str]:
        """See ``CanvasModel``."""
        if self.args.ctc:
            return None
        return "fertilities" if self.args.source_copy == "fertility" else "lengths"

    @property
    def canvas_kind(self) -> tuple:
        """See ``CanvasModel``."""
        return self.args.source_copy, self.args.ctc, self.args.upsample if self.args.ctc else 0

    @property
    def blank(self) -> Optional[int]:
        """See ``CanvasModel``: ``<mask>``."""
        return self.mask if self.args.ctc else None

    @property
    def needs_fertilities(self) -> bool:
        """Whether training reads the fertility files of ``nar-align``."""
        return self.predicts == "fertilities"

    def set_num_updates(self, num_updates: int) -> None:
        """fairseq says it before every update; glancing follows it."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    # -- the hooks
    # -------------------------------------------------------------------------------------------------------

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """The random numbers that choose what glancing reveals."""
        if self.glancing is None:
            return {}
        target, source = sample["target"], sample["net_input"]["src_tokens"]
        width = self.args.upsample * source.size(1) if self.args.ctc else target.size(1)
        return {"reveal_draws": uniform(seed, update ^ GLANCING_STREAM, sample["id"], width)}

    def canvas(self, memory: Memory, plan: Plan) -> Canvas:
        """Copies of the source's embeddings (R, T, D): by fertilities, stretched to lengths, or, with ``--ctc``,
        ``--upsample`` of every token.
        """
        copies, sentences = memory.encoded["copies"], plan.sentences
        sources = memory.encoded["source_lengths"][sentences]
        if self.predicts == "fertilities":
            copy = source_copy.from_fertilities(plan.fertilities, plan.width)
        elif self.args.ctc:
            copy = source_copy.upsampled(sources, self.args.upsample)
        else:
            copy = source_copy.uniformly(sources, plan.lengths, plan.width)
        if self.args.source_copy == "soft":
            lengths = (~copy.padding).sum(1)
            weights = source_copy.soft_weights(sources, lengths, copies.size(1), copy.padding.size(1))
            inputs = weights.to(copies) @ copies[sentences]
        else:
            inputs = copies[sentences.unsqueeze(1), copy.index]
        return Canvas(inputs, copy.padding if copy.padding.any() else None)

    def fertility_lprobs(self, memory: Memory) -> Tensor:
        """Log-probabilities of the fertility of every source token: (B, S, 50)."""
        return self.encoder.fertility_head(memory.encoded["top"].transpose(0, 1))

    def with_revealed(self, canvas: Canvas, revealed: Tensor, gold: Tensor) -> Canvas:
        """The canvas with tokens in place of the source's copies (glancing).

        Args:
            revealed: (R, T) bool, where. gold: (R, T) int64, which.
        """
        seen = self.decoder.embed_revealed(gold).to(canvas.inputs)
        return canvas._replace(inputs=torch.where(revealed.unsqueeze(-1), seen, canvas.inputs))

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        target: Tensor,
        fertilities: Optional[Tensor] = None,
        reveal_draws: Optional[Tensor] = None,
        prev_output_tokens: Optional[Tensor] = None,
        objective: TokenObjective = LIKELIHOOD,
    ) -> Dict[str, LossPart]:
        """The losses: ``words``, and ``fertility`` (section 3.3) or ``length`` unless ``--ctc`` predicts neither.

        With ``objective.fertility_draws`` those of fine-tuning besides, ``backprop`` and ``reinforce``. The length loss
        of a sentence shrinks with what is revealed of it (Qian et al. 2021).

        Args:
            src_tokens: (B, S) int64. target: (B, T) int64.
            fertilities: (B, S) int64, of the aligner; they add up to the targets' lengths.
            reveal_draws: uniform numbers, one for every position of the canvas (glancing).
            prev_output_tokens: an autoregressive decoder's input; not read.
        """
        memory = self.encode(src_tokens, src_lengths)
        real = target.ne(self.pad)
        rows = torch.arange(target.size(0), device=target.device)
        if self.args.ctc:
            return self.forward_ctc(memory, rows, target, real, reveal_draws, objective)

        lengths = real.sum(1)
        usable = torch.ones_like(lengths, dtype=torch.bool)
        if self.needs_fertilities:
            if fertilities is None:
                raise ValueError("these data have no fertilities: run nar-align on the data folder")
            usable = src_lengths.gt(1) | lengths.le(1)  # the fertilities of an empty source mean nothing
        plan = Plan(rows, lengths, fertilities, width=target.size(1))
        canvas = self.canvas(memory, plan)
        revealed = self.reveal(canvas, memory, reveal_draws, lambda logits: target, real)
        picked = real & usable.unsqueeze(1)
        hidden = picked if revealed is None else picked & ~revealed
        if revealed is not None:
            canvas = self.with_revealed(canvas, revealed, target)
        features = self.decode(canvas, memory)
        words = self.word_loss(features, target, hidden, objective)._replace(skipped=(~usable).sum())
        if not self.needs_fertilities:
            shares = hidden.sum(1) / picked.sum(1)
            return {"words": words, "length": length_loss(self.length_lprobs(memory), lengths, shares)}
        fertile = torch.arange(src_tokens.size(1), device=rows.device) < (src_lengths - 1).unsqueeze(1)
        fertile = fertile & usable.unsqueeze(1)
        lprobs = self.fertility_lprobs(memory)
        parts = {"words": words, "fertility": fertility_loss(lprobs, fertilities, fertile)}
        if objective.fertility_draws is not None:
            passes, sampled = self.finetuning_passes(memory, rows, lprobs, objective.fertility_draws)
            passes["gold"] = (self.project(features), real)
            sampled_lprobs = sampled.masked_fill(~fertile, 0).sum(1)
            parts.update(finetuning_losses(objective.teacher, passes, sampled_lprobs, usable))
        return parts

    def finetuning_passes(
        self, memory: Memory, rows: Tensor, lprobs: Tensor, draws: Tensor
    ) -> Tuple[Dict[str, Tuple[Tensor, Tensor]], Tensor]:
        """Decode, without gradient, at ``sampled`` and at ``expected`` fertilities.

        Args:
            lprobs: (B, S, 50), of the fertilities. draws: (B, S) uniform numbers.

        Returns:
            logits (B, T, V) and real positions (B, T) by name; and the log-probabilities (B, S) of the sampled
            fertilities.
        """
        probabilities = lprobs.detach().exp()
        sources = memory.encoded["source_lengths"]
        sampled = source_copy.sample(probabilities, draws)
        passes = {}
        with torch.no_grad():
            for name, fertilities in (("sampled", sampled), ("expected", source_copy.average(probabilities))):
                longest = (2 * sources).clamp(max=self.max_decoder_positions())  # the official code's bound
                bounded = source_copy.bounded(fertilities, sources, longest)
                canvas = self.canvas(memory, Plan(rows, fertilities=bounded))
                passes[name] = (self.project(self.decode(canvas, memory)), canvas.real())
        return passes, lprobs.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)

    def forward_ctc(
        self,
        memory: Memory,
        rows: Tensor,
        target: Tensor,
        real: Tensor,
        draws: Optional[Tensor],
        objective: TokenObjective,
    ) -> Dict[str, LossPart]:
        """``forward`` with ``--ctc``; glancing compares with, and reveals, the best alignment of the target."""
        if objective.label_smoothing:
            raise ValueError("--label-smoothing has no meaning with --ctc: leave it out")
        if objective.teacher is not None:
            raise ValueError("--teacher: word-level distillation needs a target at every position, and --ctc has none")
        canvas = self.canvas(memory, Plan(rows))
        lengths = canvas.lengths()
        found = []

        def gold(logits: Tensor) -> Tensor:
            found.append(ctc.best_alignment(full(logits), lengths, target, real, self.mask))
            return found[0]

        revealed = self.reveal(canvas, memory, draws, gold, canvas.real())
        if revealed is not None:
            canvas = self.with_revealed(canvas, revealed, found[0])
        logits = self.project(self.decode(canvas, memory))
        return {"words": ctc.ctc_loss(full(logits).log_softmax(-1), lengths, target, real, self.mask)}

    def reveal(self, canvas: Canvas, memory: Memory, draws: Optional[Tensor], gold, real: Tensor) -> Optional[Tensor]:
        """What glancing shows: a first pass without gradient and with the dropout that the second will have.

        Args:
            draws: (R, T) uniform numbers, or None. gold: the first pass's logits -> the right tokens (R, T).

        Returns:
            (R, T) bool; None where there is no glancing (also in validation).
        """
        if self.glancing is None or not self.training or draws is None:
            return None
        with torch.no_grad(), glancing.same_dropout(real.device):
            logits = self.project(self.decode(canvas, memory))
        torch.clear_autocast_cache()  # before 2.9 PyTorch kept weights cast here, without gradient, for the second pass
        draws = draws[:, : real.size(1)]  # the batch may be padded beyond its longest sentence
        return glancing.reveal(logits.argmax(-1), gold(logits), real, draws, self.glancing.at(self.num_updates))


@register_model_architecture("nat", "nat")
def nat(args):
    """A stock Transformer's parts and sizes, with fertilities."""
    default(
        args,
        ctc=False,
        glancing="",
        positional_attention=False,
        mask_diagonal=False,
        layerwise_attention=False,
        width_scaled_attention=False,
    )
    default(args, upsample=2 if args.ctc else 0, source_copy="uniform" if args.ctc else "fertility")
    default(args, length_head="none" if args.ctc or args.source_copy == "fertility" else "pooled")
    transformer_base(args)


def paper_form(args) -> None:
    """The decoder of Gu et al. 2018 (section 3.2); the attention's scale stays fairseq's, so that a teacher's encoder
    fits.
    """
    default(args, positional_attention=True, mask_diagonal=True, layerwise_attention=True)


@register_model_architecture("nat", "nat_wmt_en_de")
def nat_wmt_en_de(args):
    """The paper's WMT model: 6+6 layers, 512/2048, dropout 0.1 (the official code has a feed-forward of 512)."""
    paper_form(args)
    sizes(args, dim=512, ffn=2048, heads=8, layers=6)
    default(args, dropout=0.1)
    nat(args)


@register_model_architecture("nat", "nat_iwslt_de_en")
def nat_iwslt_de_en(args):
    """The sizes of fairseq's ``transformer_iwslt_de_en``: 6+6 layers, 512/1024, 4 heads, dropout 0.3."""
    paper_form(args)
    sizes(args, dim=512, ffn=1024, heads=4, layers=6)
    default(args, dropout=0.3)
    nat(args)


@register_model_architecture("nat", "nat_tiny")
def nat_tiny(args):
    """For tests and tries: 2+2 layers, 64/128, 4 heads."""
    paper_form(args)
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    nat(args)
