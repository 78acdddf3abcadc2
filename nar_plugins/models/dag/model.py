"""The directed acyclic Transformer (Huang et al. 2022): one pass, without distillation."""

import math
from argparse import BooleanOptionalAction
from typing import Dict, NamedTuple, Optional

import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_legacy import base_architecture as transformer_base
from torch import Tensor

from nar_plugins.checkpoint_io.start import NewParameters
from nar_plugins.data.noise import GLANCING_STREAM, uniform
from nar_plugins.models.architectures import default, sizes, switch_on
from nar_plugins.models.base import NarModel
from nar_plugins.models.contract import Canvas, Memory, Plan
from nar_plugins.models.dag import fuzzy, paths
from nar_plugins.models.dag.decoder import DagDecoder
from nar_plugins.models.dag.words import token_lprobs
from nar_plugins.models.pairing import check_task
from nar_plugins.modules import glancing
from nar_plugins.modules.best_of_rows import most_probable
from nar_plugins.modules.exporting import canvas_width, is_padded
from nar_plugins.modules.factorised import plain_projection
from nar_plugins.modules.layers import pick
from nar_plugins.modules.losses import LIKELIHOOD, LossPart, TokenObjective

SOURCE_COPIES = ("none", "uniform")
EVEN = math.log(0.5)  # a token that is more probable is the most probable one


class Revealed(NamedTuple):
    """What glancing shows of the targets."""

    tokens: Tensor  # (B, T) bool
    vertices: Tensor  # (B, T) int64: those of the best path


@register_model("dag")
class DagModel(NarModel):
    """Predicts a graph of ``--upsample`` vertices a source token: a distribution of tokens on each, and the
    probabilities of the links between them. A path through the graph is an output.

    The first vertex emits nothing, so that an output's first token may stand on any of the following; the release's
    emits ``<s>``. The last vertex emits ``</s>``. The loss is the log-probability of the target summed over its paths,
    per target token; every sentence has the same weight (section 3.2 of the paper, and its release).
    """

    generators = ("dag",)
    predicts, length_classes = None, 0
    new_parameters = (
        NewParameters(
            r"decoder\.links\.",
            "links between vertices",
            "--decoder-attention-heads",
            "--max-target-positions and --decoder-embed-dim",
        ),
    )

    @classmethod
    def add_args(cls, parser):
        """``NarModel``'s flags and those of the graph and of glancing."""
        NarModel.add_args(parser)
        parser.add_argument(
            "--upsample", type=float, metavar="N", help="vertices of the graph for every source token (8)"
        )
        parser.add_argument(
            "--source-copy",
            choices=SOURCE_COPIES,
            help="what a vertex is embedded as: none, a mask (the paper); uniform, the source's token at its place, "
            "which is learned in fewer updates",
        )
        parser.add_argument(
            "--max-transition-length",
            type=int,
            metavar="N",
            help="the farthest vertex that a link leads to, counted from where it starts; 0: any",
        )
        parser.add_argument(
            "--glancing",
            metavar="SCHEDULE",
            help="reveal gold tokens on the best path in training (Qian et al. 2021): a ratio of the wrong ones, as in "
            "0.5:0.1@200k, from 0.5 to 0.1 over 200,000 updates",
        )
        parser.add_argument(
            "--force-emit",
            action=BooleanOptionalAction,
            help="a revealed token is emitted by its vertex for sure (the paper's release; on with --glancing)",
        )
        parser.add_argument(
            "--fuzzy-ngram",
            type=int,
            metavar="N",
            help="fuzzy alignment (Ma et al. 2023), to fine-tune a trained model: maximise the expected overlap of "
            "n-grams of N tokens (2) in place of the likelihood; 0: off",
        )

    @classmethod
    def build_model(cls, args, task):
        """Build; raise when flags do not go together."""
        check_task(cls, args, task)  # first: without flags, the attributes read below are missing
        args.source_copy = getattr(args, "source_copy", "none")  # checkpoints from before it have no flag
        if args.source_copy == "uniform" and args.encoder_embed_dim != args.decoder_embed_dim:
            raise ValueError(
                "--source-copy uniform puts the encoder's embeddings into the decoder: --encoder-embed-dim "
                f"{args.encoder_embed_dim} and --decoder-embed-dim {args.decoder_embed_dim} must be equal"
            )
        if args.upsample < 2:
            raise ValueError(
                f"--upsample {args.upsample:g}: a graph has more vertices than the target tokens: give 2 or more (the "
                "paper: 8)"
            )
        if args.max_transition_length and args.max_transition_length < args.upsample:
            raise ValueError(
                f"--max-transition-length {args.max_transition_length}: no path of as many tokens as the source would "
                f"reach the last vertex: give at least --upsample, {args.upsample:g}, or 0 for any length"
            )
        if args.length_head != "none":
            raise ValueError(f"--length-head {args.length_head}: this model predicts no length; leave it out")
        if getattr(args, "stop_length_gradient", False):
            raise ValueError("--stop-length-gradient: this model predicts no length; leave it out")
        if args.fuzzy_ngram < 0:
            raise ValueError(f"--fuzzy-ngram {args.fuzzy_ngram}: choose a number from 0 up")
        if args.force_emit and not args.glancing:
            raise ValueError("--force-emit is for the tokens that --glancing reveals: leave it out")
        if args.force_emit and args.fuzzy_ngram:
            raise ValueError("--force-emit: --fuzzy-ngram forces no token; leave it out")
        schedule = glancing.Schedule.parse(args.glancing) if args.glancing else None
        model = super().build_model(args, task)
        model.glancing, model.num_updates = schedule, 0
        model.bos, model.eos = task.target_dictionary.bos(), task.target_dictionary.eos()
        return model

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return DagDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    def max_positions(self) -> tuple:
        """Longest source and target; the positions limit the graph, and so the source."""
        source, target = super().max_positions()
        return min(source, int(self.decoder.max_positions() / self.args.upsample)), target

    @property
    def canvas_kind(self) -> tuple:
        """See ``CanvasModel``."""
        return ("dag", self.args.upsample)

    def set_num_updates(self, num_updates: int) -> None:
        """Called by fairseq before every update; glancing follows it."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    # -- the contract ------------------------------------------------------------------------------------------------

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """The random numbers (B, T) that choose the tokens revealed by glancing."""
        if self.glancing is None:
            return {}
        width = sample["target"].size(1)
        return {"reveal_draws": uniform(seed, update ^ GLANCING_STREAM, sample["id"], width)}

    def canvas(self, memory: Memory, plan: Plan) -> Canvas:
        """``<s> <mask> ... <mask> </s>``, ``--upsample`` times as long as the source: tokens (R, L)."""
        sources = memory.encoded["source_lengths"][plan.sentences]
        lengths = (sources.double() * self.args.upsample).long().clamp(min=2).unsqueeze(1)
        width = canvas_width(lengths, self.max_decoder_positions())
        places = torch.arange(width, device=lengths.device).expand(lengths.size(0), -1)
        tokens = torch.full_like(places, self.mask).masked_fill(places == 0, self.bos)
        tokens = tokens.masked_fill(places == lengths - 1, self.eos).masked_fill(places >= lengths, self.pad)
        padding = places >= lengths
        return Canvas(tokens, padding if is_padded(padding) else None)

    def decode(self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """See ``CanvasModel``. With ``--source-copy uniform`` a mask is embedded as the source's token at its place, as
        glancing models of one pass have it (Qian et al. 2021)."""
        copies = self.args.source_copy == "uniform"
        return self.decoder(canvas, memory, picked, canvas.inputs.eq(self.mask) if copies else None)

    def links(self, features: Tensor, canvas: Canvas) -> Tensor:
        """The log-probabilities of the links, of the decoder's features (R, L, D): (R, L, L) float32, see ``Links``."""
        return self.decoder.links(features, canvas.lengths() - 1)

    # -- training ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        target: Tensor,
        reveal_draws: Optional[Tensor] = None,
        prev_output_tokens: Optional[Tensor] = None,
        objective: TokenObjective = LIKELIHOOD,
    ) -> Dict[str, LossPart]:
        """The loss ``words``, per target token and sentence; in training with ``--fuzzy-ngram`` the loss ``fuzzy``.

        A target that has no path through its graph is skipped.

        Args:
            src_tokens: (B, S) int64. target: (B, T) int64.
            reveal_draws: (B, T) uniform numbers, which choose the revealed tokens (glancing).
            prev_output_tokens: not read: the canvas is made of masks.
        """
        if objective.label_smoothing:
            raise ValueError("--label-smoothing has no meaning with --arch dag: leave it out")
        if objective.teacher is not None:
            raise ValueError("--teacher: word-level distillation needs a target at every position, and dag has none")
        memory = self.encode(src_tokens, src_lengths)
        canvas = self.canvas(memory, Plan(torch.arange(target.size(0), device=target.device)))
        real, last = target.ne(self.pad), canvas.lengths() - 1
        steps = real.sum(1)
        usable = paths.feasible(steps, last, self.args.max_transition_length)
        revealed = self.reveal(canvas, memory, target, reveal_draws, usable)
        if revealed is not None:
            canvas = with_revealed(canvas, revealed, target)
        features = self.decode(canvas, memory)
        emissions, links = self.graph(features, canvas, target)
        if self.training and self.args.fuzzy_ngram:
            return {"fuzzy": fuzzy_loss(emissions, links, real, target, usable, self.args.fuzzy_ngram)}
        if revealed is not None and self.args.force_emit:
            emissions = forced(emissions, revealed)
        lprobs = paths.log_marginal(emissions, links, steps, last)
        return {"words": per_sentence(-lprobs / steps, usable)}

    def graph(self, features: Tensor, canvas: Canvas, target: Tensor) -> tuple:
        """The log-probabilities of the target's tokens on the vertices (B, T, L), and of the links (B, L, L)."""
        projection, states = plain_projection(self.decoder.output_projection, features)
        emissions = token_lprobs(projection, states, canvas.real(), target)
        return emissions, self.links(features, canvas)

    def reveal(
        self, canvas: Canvas, memory: Memory, target: Tensor, draws: Optional[Tensor], usable: Tensor
    ) -> Optional[Revealed]:
        """What glancing shows, after a first pass without gradient and with the second's dropout; None without
        glancing, and in validation.

        Of a sentence's T tokens ratio x (T - right), rounded, are shown, where ``right`` are those that are the most
        probable token of their vertex on the best path (section 3.4, and the release's ``number-random``).

        Args:
            target: (B, T) int64. draws: (B, T) uniform numbers, or None. usable: (B,) bool, the sentences that have a
                path.
        """
        if self.glancing is None or not self.training or draws is None:
            return None
        real, last = target.ne(self.pad), canvas.lengths() - 1
        steps = real.sum(1)
        with torch.no_grad(), glancing.same_dropout(real.device):
            features = self.decode(canvas, memory)
            emissions, links = self.graph(features, canvas, target)
            scores = paths.best_scores(emissions, links)
            vertices = paths.trace(scores, links, steps, last, torch.arange(len(last), device=last.device))
            on_path = emissions.gather(2, vertices.unsqueeze(2)).squeeze(2)
            right, unsure = real & (on_path > EVEN), real & (on_path <= EVEN)
            predicted = most_probable(self.project, pick(features, vertices)[unsure])
            right = right.masked_scatter(unsure, predicted.eq(target[unsure]))
        torch.clear_autocast_cache()  # PyTorch < 2.9 keeps the weights cast here, without gradient, for the second pass
        count = ((steps - right.sum(1)).double() * self.glancing.at(self.num_updates) + 0.5).long()
        rank = draws[:, : real.size(1)].masked_fill(~real, torch.inf).argsort(1).argsort(1)
        return Revealed((rank < count.unsqueeze(1)) & real & usable.unsqueeze(1), vertices)


def with_revealed(canvas: Canvas, revealed: Revealed, target: Tensor) -> Canvas:
    """The canvas (B, L) with the revealed tokens on their vertices."""
    vertices = revealed.vertices.masked_fill(~revealed.tokens, 0)  # vertex 0 keeps its token: it is on no path
    shown = torch.where(revealed.tokens, target, canvas.inputs[:, :1])
    return canvas._replace(inputs=canvas.inputs.scatter(1, vertices, shown))


def forced(emissions: Tensor, revealed: Revealed) -> Tensor:
    """Emissions (B, T, L) in which a revealed token has probability 1 on its vertex and 0 on the others."""
    sure = torch.full_like(emissions, paths.IMPOSSIBLE).scatter_(2, revealed.vertices.unsqueeze(2), 0)
    return torch.where(revealed.tokens.unsqueeze(2), sure, emissions)


def per_sentence(losses: Tensor, usable: Tensor) -> LossPart:
    """The sum over the usable sentences, each of weight 1: losses (B,), usable (B,) bool."""
    loss = losses.masked_fill(~usable, 0).sum()  # of the others, no gradient is infinite
    return LossPart(loss, loss.detach(), usable.sum(), weight=1, skipped=(~usable).sum())


def fuzzy_loss(emissions: Tensor, links: Tensor, real: Tensor, target: Tensor, usable: Tensor, order: int) -> LossPart:
    """1 - ``fuzzy.overlap``, of the usable sentences (B,) bool that have an n-gram."""
    usable = usable & (real.sum(1) >= order)
    if target.size(1) < order:
        return per_sentence(emissions.sum((1, 2)) * 0, usable)
    return per_sentence(1 - fuzzy.overlap(emissions, links, real, target, order), usable)


@register_model_architecture("dag", "dag")
def dag(args):
    """A stock Transformer's parts and sizes, with the paper's graph of 8 vertices a source token."""
    default(args, upsample=8.0, max_transition_length=0, glancing="", fuzzy_ngram=0, length_head="none")
    default(args, source_copy="none", force_emit=bool(args.glancing) and not args.fuzzy_ngram)
    transformer_base(args)


def release_form(args) -> None:
    """The paper's release (``glat_decomposed_link.py``, ``wmt14_ende.sh``): learned positions, GELU, BERT's
    initialisation.
    """
    switch_on(args, "encoder_learned_pos", "decoder_learned_pos", "bert_init")
    default(args, activation_fn="gelu")


@register_model_architecture("dag", "dag_wmt_en_de")
def dag_wmt_en_de(args):
    """The paper's WMT14 English-German model: 6+6 layers, 512/2048, 8 heads, dropout 0.1."""
    release_form(args)
    sizes(args, dim=512, ffn=2048, heads=8, layers=6)
    default(args, dropout=0.1)
    dag(args)


@register_model_architecture("dag", "dag_iwslt_de_en")
def dag_iwslt_de_en(args):
    """The sizes of fairseq's ``transformer_iwslt_de_en``: 6+6 layers, 512/1024, 4 heads, dropout 0.3."""
    release_form(args)
    sizes(args, dim=512, ffn=1024, heads=4, layers=6)
    default(args, dropout=0.3)
    dag(args)


@register_model_architecture("dag", "dag_tiny")
def dag_tiny(args):
    """For tests: 2+2 layers, 64/128, 4 heads."""
    release_form(args)
    sizes(args, dim=64, ffn=128, heads=4, layers=2)
    default(args, dropout=0.0)
    dag(args)
