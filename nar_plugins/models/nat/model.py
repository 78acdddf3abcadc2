"""The non-autoregressive Transformer (Gu et al. 2018), with its vanilla, glancing and CTC variants."""

from argparse import BooleanOptionalAction
from typing import Callable, Dict, Optional, Tuple

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from torch import Tensor

from nar_plugins.checkpoint_io.start import NewParameters
from nar_plugins.data.noise import GLANCING_STREAM, uniform
from nar_plugins.models.architectures import default, sizes
from nar_plugins.models.base import NarModel
from nar_plugins.models.contract import Canvas, Memory, Plan
from nar_plugins.models.flags import UNREAD_WITHOUT_PQ, UNSUPPORTED_IN_PARALLEL, layers, refuse_unsupported
from nar_plugins.models.nat.decoder import NatDecoder, NatEncoder
from nar_plugins.models.nat.fertility_head import fertility_loss
from nar_plugins.models.nat.finetuning import finetuning_losses
from nar_plugins.models.pairing import check_task
from nar_plugins.modules import ctc, glancing, source_copy
from nar_plugins.modules.attention import Attention
from nar_plugins.modules.best_of_rows import most_probable
from nar_plugins.modules.exporting import is_padded
from nar_plugins.modules.factorised import plain_projection
from nar_plugins.modules.fast.linear import in_int8
from nar_plugins.modules.losses import LIKELIHOOD, LossPart, TokenObjective, length_loss


@register_model("nat")
class NatModel(NarModel):
    """Predicts a target in one pass from copies of the source's embeddings.

    ``--source-copy fertility`` (Gu et al. 2018) copies every source token as often as its predicted fertility.
    ``uniform`` and ``soft`` stretch the source to a predicted length. ``--ctc`` copies every token ``--upsample`` times
    and drops repetitions and blanks from the result; ``<mask>`` is the blank.

    The plain architecture ``nat`` has the parts of a stock Transformer only. The other architectures have the paper's
    positional attention, diagonal mask and layer-wise attention. Each of them is a flag and has a ``--no-`` form.
    """

    generators = ("one_pass", "noisy_parallel")  # the second with fertilities only: see build_model

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
    unread_flags = UNREAD_WITHOUT_PQ  # fairseq's decoder projects token embeddings, and this one has no tokens

    @classmethod
    def add_args(cls, parser):
        NarModel.add_args(parser)
        parser.add_argument(
            "--source-copy",
            choices=source_copy.SOURCE_COPIES,
            help="the copies that fill the canvas: by fertilities, or the source stretched to a predicted length, "
            "hard (uniform) or blurred (soft)",
        )
        parser.add_argument(
            "--positional-attention",
            action=BooleanOptionalAction,
            help="positional attention in every decoder layer (Gu et al. 2018)",
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
            help="divide attention logits by the root of the model's width (Gu et al. 2018), not of the head's",
        )
        parser.add_argument(
            "--glancing",
            metavar="SCHEDULE",
            help="reveal gold tokens in training (Qian et al. 2021): a ratio of the wrong tokens, as in "
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
        check_task(cls, args, task)  # first: without flags, the attributes read below are missing
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
                    module.scaling = args.encoder_embed_dim**-0.5  # the module's own may have been pruned
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        return NatEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return NatDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    def max_positions(self) -> tuple:
        """Longest source and target; with CTC, learned positions limit the upsampled source, too."""
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
        """Called by fairseq before every update; glancing follows it."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    # -- the contract ------------------------------------------------------------------------------------------------

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """The random numbers that choose the tokens revealed by glancing."""
        if self.glancing is None:
            return {}
        target, source = sample["target"], sample["net_input"]["src_tokens"]
        width = self.args.upsample * source.size(1) if self.args.ctc else target.size(1)
        return {"reveal_draws": uniform(seed, update ^ GLANCING_STREAM, sample["id"], width)}

    def canvas(self, memory: Memory, plan: Plan) -> Canvas:
        """Copies of the source's embeddings (R, T, D): by fertilities, stretched to lengths, or, with ``--ctc``,
        upsampled.
        """
        copies, sentences = memory.encoded["copies"], plan.sentences
        sources = memory.encoded["source_lengths"][sentences]
        if self.predicts == "fertilities":
            copy = source_copy.from_fertilities(plan.fertilities, plan.width)
        elif self.args.ctc:
            copy = source_copy.upsampled(sources, self.args.upsample, plan.width)
        else:
            copy = source_copy.uniformly(sources, plan.lengths, plan.width)
        if self.args.source_copy == "soft":
            softly = source_copy.softly_each if in_int8(self.decoder.layers[0].fc1) else source_copy.softly
            inputs = softly(copies[sentences], sources, (~copy.padding).sum(1), copy.padding.size(1))
        else:
            inputs = copies[sentences.unsqueeze(1), copy.index]
        return Canvas(inputs, copy.padding if is_padded(copy.padding) else None)

    def fertility_lprobs(self, memory: Memory) -> Tensor:
        """Log-probabilities of the fertility of every source token: (B, S, 50)."""
        return self.encoder.fertility_head(memory.encoded["top"].transpose(0, 1))

    def with_revealed(self, canvas: Canvas, revealed: Tensor, gold: Tensor) -> Canvas:
        """The canvas with gold tokens in place of source copies (glancing).

        Args:
            revealed: (R, T) bool. gold: (R, T) int64.
        """
        embedded = self.decoder.embed_words(gold).to(canvas.inputs)
        return canvas._replace(inputs=torch.where(revealed.unsqueeze(-1), embedded, canvas.inputs))

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
        """The losses by name: ``words``, of the tokens, and ``fertility`` (section 3.3) or ``length``; with ``--ctc``
        ``words`` only.

        ``objective.fertility_draws`` adds the fine-tuning losses ``backprop`` and ``reinforce``. The length loss of a
        sentence is scaled by its share of tokens that are not revealed (Qian et al. 2021).

        Args:
            src_tokens: (B, S) int64. target: (B, T) int64.
            fertilities: (B, S) int64, from the aligner; their sums are the targets' lengths.
            reveal_draws: uniform numbers, one for every position of the canvas (glancing).
            prev_output_tokens: not read: the canvas is made from the source.
        """
        memory = self.encode(src_tokens, src_lengths)
        real = target.ne(self.pad)
        sentences = torch.arange(target.size(0), device=target.device)
        if self.args.ctc:
            return self.forward_ctc(memory, sentences, target, real, reveal_draws, objective)

        lengths = real.sum(1)
        usable = torch.ones_like(lengths, dtype=torch.bool)
        if self.needs_fertilities:
            if fertilities is None:
                raise ValueError("these data have no fertilities: run nar-align on the data folder")
            usable = src_lengths.gt(1) | lengths.le(1)  # an empty source has no meaningful fertilities
        plan = Plan(sentences, lengths, fertilities, width=target.size(1))
        canvas = self.canvas(memory, plan)
        revealed = self.reveal(canvas, memory, reveal_draws, lambda features: target, real)
        picked = real & usable.unsqueeze(1)
        hidden = picked if revealed is None else picked & ~revealed
        if revealed is not None:
            canvas = self.with_revealed(canvas, revealed, target)
        features = self.decode(canvas, memory)
        tokens = self.token_loss(features, target, hidden, objective)._replace(skipped=(~usable).sum())
        if not self.needs_fertilities:
            shares = hidden.sum(1) / picked.sum(1)
            return {"words": tokens, "length": length_loss(self.length_lprobs(memory), lengths, shares)}
        fertile = torch.arange(src_tokens.size(1), device=sentences.device) < (src_lengths - 1).unsqueeze(1)
        fertile = fertile & usable.unsqueeze(1)
        lprobs = self.fertility_lprobs(memory)
        parts = {"words": tokens, "fertility": fertility_loss(lprobs, fertilities, fertile)}
        if objective.fertility_draws is not None:
            passes, sampled = self.finetuning_passes(memory, sentences, lprobs, objective.fertility_draws)
            passes["gold"] = (self.project(features), real)
            sampled_lprobs = sampled.masked_fill(~fertile, 0).sum(1)
            parts.update(finetuning_losses(objective.teacher, passes, sampled_lprobs, usable))
        return parts

    def finetuning_passes(
        self, memory: Memory, sentences: Tensor, lprobs: Tensor, draws: Tensor
    ) -> Tuple[Dict[str, Tuple[Tensor, Tensor]], Tensor]:
        """Decode without gradient, once with ``sampled`` and once with ``expected`` fertilities.

        Args:
            lprobs: (B, S, 50), of the fertilities. draws: (B, S) uniform numbers.

        Returns:
            the logits (B, T, V) and real positions (B, T) of both passes by name; the log-probabilities (B, S) of the
            sampled fertilities.
        """
        probabilities = lprobs.detach().exp()
        sources = memory.encoded["source_lengths"]
        sampled = source_copy.sample(probabilities, draws)
        passes = {}
        with torch.no_grad():
            for name, fertilities in (("sampled", sampled), ("expected", source_copy.average(probabilities))):
                longest = (2 * sources).clamp(max=self.max_decoder_positions())  # the official code's bound
                bounded = source_copy.bounded(fertilities, sources, longest)
                canvas = self.canvas(memory, Plan(sentences, fertilities=bounded))
                passes[name] = (self.project(self.decode(canvas, memory)), canvas.real())
        return passes, lprobs.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)

    def forward_ctc(
        self,
        memory: Memory,
        sentences: Tensor,
        target: Tensor,
        real: Tensor,
        draws: Optional[Tensor],
        objective: TokenObjective,
    ) -> Dict[str, LossPart]:
        """``forward`` with ``--ctc``; the targets of glancing are the best alignment under the first pass."""
        if objective.label_smoothing:
            raise ValueError("--label-smoothing has no meaning with --ctc: leave it out")
        if objective.teacher is not None:
            raise ValueError("--teacher: word-level distillation needs a target at every position, and --ctc has none")
        canvas = self.canvas(memory, Plan(sentences))
        lengths = canvas.lengths()
        alignments = []

        def gold(features: Tensor) -> Tensor:
            projection, states = plain_projection(self.decoder.output_projection, features)
            logits = ctc.own_logits(projection, states, target, real, self.mask)
            alignments.append(ctc.best_alignment(logits, lengths, target, real, self.mask))
            return alignments[0]

        revealed = self.reveal(canvas, memory, draws, gold, canvas.real())
        if revealed is not None:
            canvas = self.with_revealed(canvas, revealed, alignments[0])
        projection, features = plain_projection(self.decoder.output_projection, self.decode(canvas, memory))
        return {"words": ctc.projected_ctc_loss(projection, features, canvas.real(), target, real, self.mask)}

    def reveal(
        self, canvas: Canvas, memory: Memory, draws: Optional[Tensor], gold: Callable, real: Tensor
    ) -> Optional[Tensor]:
        """The positions revealed by glancing, after a first pass without gradient and with the second's dropout.

        Args:
            draws: (R, T) uniform numbers, or None. gold: the first pass's features -> the target tokens (R, T).

        Returns:
            (R, T) bool; None without glancing, and in validation.
        """
        if self.glancing is None or not self.training or draws is None:
            return None
        with torch.no_grad(), glancing.same_dropout(real.device):
            features = self.decode(canvas, memory)
            predicted, wanted = most_probable(self.project, features), gold(features)
        torch.clear_autocast_cache()  # PyTorch < 2.9 keeps the weights cast here, without gradient, for the second pass
        draws = draws[:, : real.size(1)]  # the batch may be padded beyond its longest sentence
        return glancing.reveal(predicted, wanted, real, draws, self.glancing.at(self.num_updates))


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
    """The decoder of Gu et al. 2018 (section 3.2), with fairseq's attention scale, so that a teacher's encoder fits."""
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
    """For tests: 2+2 layers, 64/128, 4 heads."""
    paper_form(args)
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    nat(args)
