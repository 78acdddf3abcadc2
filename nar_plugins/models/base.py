"""The base of the non-autoregressive models: fairseq's Transformer with a decoder that sees the whole canvas.

``contract.py`` lists the methods of a model. ``NarModel`` implements all but ``canvas`` and ``forward``, which in
training and validation returns the parts of the loss by name.
"""

from contextlib import nullcontext
from functools import partial
from typing import Dict, List, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq import utils
from fairseq.models.transformer import (
    TransformerConfig,
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModel,
)
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from nar_plugins.checkpoint_io.start import NewParameters, start_from, start_new_parameters
from nar_plugins.models.contract import Canvas, Memory, check_methods
from nar_plugins.models.flags import UNREAD_IN_PARALLEL, UNSUPPORTED_IN_PARALLEL, refuse_unsupported
from nar_plugins.models.initialise import bert_init
from nar_plugins.models.pairing import check_task
from nar_plugins.modules.attention import allowed_keys, allowed_sources
from nar_plugins.modules.dropout import use_fast_dropout
from nar_plugins.modules.exporting import is_padded
from nar_plugins.modules.factorised import plain_projection
from nar_plugins.modules.fast.real_layers import fast_form
from nar_plugins.modules.fast.table import canvas_positions
from nar_plugins.modules.fused_loss import SoftTargets, fused_token_loss
from nar_plugins.modules.layers import NarDecoderLayer, NarEncoderLayer, through_decoder, through_encoder
from nar_plugins.modules.length_head import LENGTH_HEADS, LengthHead
from nar_plugins.modules.losses import LossPart, TokenObjective
from nar_plugins.modules.pruned import shrink


class NarEncoder(TransformerEncoderBase):
    """fairseq's encoder; with the ``token`` length head it runs over S + 1 positions and returns S.

    Attributes:
        compiled: the layers compiled, in a model prepared with ``--compile``; else None.
        fast: the layers' fast form, in a model prepared for decoding on a CPU; else None.
    """

    compiled = fast = None

    def __init__(self, cfg, dictionary, embed_tokens):
        super().__init__(cfg, dictionary, embed_tokens)
        form = cfg.length_head
        classes = cfg.max_target_positions + 1
        self.length_head = None if form == "none" else LengthHead(classes, embed_tokens.embedding_dim, form)

    def build_encoder_layer(self, cfg):
        return wrap(NarEncoderLayer(cfg), cfg)

    def forward(self, src_tokens: Tensor, src_lengths=None, return_all_hiddens=False, token_embeddings=None) -> Dict:
        """fairseq's dictionary of lists for src_tokens (B, S), and in ``length_state`` the length head's input (B, D).

        ``encoder_states`` has one state more than there are layers; a layer dropped by ``--encoder-layerdrop`` repeats
        its input.
        """
        padding = src_tokens.eq(self.padding_idx)
        x, embedding = self.forward_embedding(src_tokens, token_embeddings)
        x = x.masked_fill(padding.unsqueeze(-1), 0)
        form = None if self.length_head is None else self.length_head.form
        with_token = form == "token"
        layer_padding = padding
        if with_token:
            token = self.dropout_module(self.length_head.token(x.size(0)))  # x already had its dropout
            x = torch.cat([token.to(x), x], 1)
            layer_padding = F.pad(padding, (1, 0))
        layer_padding = layer_padding if is_padded(padding) else None

        states = self.through_layers(x.transpose(0, 1), layer_padding)
        x = states[-1]
        if self.layer_norm is not None:
            x = self.layer_norm(x)

        if with_token:
            length_state, x = x[0], x[1:]
            states = [state[1:] for state in states]
        else:
            length_state = self.length_head.pool(x, padding) if form == "pooled" else None
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [embedding],
            "encoder_states": states if return_all_hiddens else [],
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [(~padding).sum(1, keepdim=True)],
            "length_state": [length_state],
        }

    def through_layers(self, x: Tensor, padding: Optional[Tensor]) -> List[Tensor]:
        """The states (S, B, D) before the first layer and after every one; padding is (B, S) bool, or None."""
        if self.compiled is not None:
            return self.compiled.states(x, padding)
        fast = fast_form(self)
        if fast is not None:
            return [state.transpose(0, 1) for state in fast.states(x.transpose(0, 1), padding)]
        # LayerDrop yields other layers in every iteration; torch.export wraps a layer anew, with another id, in each
        drawn = {id(layer) for layer in self.layers} if self.training else None
        layers = [layer if drawn is None or id(layer) in drawn else None for layer in self.layers.children()]
        return through_encoder(layers, x, padding)


class NarDecoder(TransformerDecoderBase):
    """fairseq's decoder without the causal mask, over canvases. The memory is computed once per sentence.

    Attributes:
        compiled: the layers compiled, in a model prepared with ``--compile``; else None.
        fast: the layers' fast form, in a model prepared for decoding on a CPU; else None.
        one_source: ``attended_states`` are the same for every layer, whose keys and values may be one product.
    """

    compiled = fast = None
    one_source = True

    def build_decoder_layer(self, cfg, no_encoder_attn=False):
        return wrap(NarDecoderLayer(cfg, no_encoder_attn), cfg)

    def memory(self, encoder_out: Dict) -> Memory:
        """The decoder's memory of fairseq's encoder output; ``encoded`` is for the heads."""
        attended = self.attended_states(encoder_out)
        batch_first = {id(state): state.transpose(0, 1) for state in attended}  # of layers with one input: one tensor
        states = [batch_first[id(state)] for state in attended]
        attentions = [layer.encoder_attn for layer in self.layers]
        one_layout = self.compiled is not None  # a graph is for one
        return Memory.of(attentions, states, allowed_sources(encoder_out), self.read_by_heads(encoder_out), one_layout)

    def read_by_heads(self, encoder_out: Dict) -> Dict[str, Tensor]:
        """``Memory.encoded``: here ``length_state`` (B, D), the length head's input, where there is a length head."""
        state = encoder_out["length_state"][0]
        return {} if state is None else {"length_state": state}

    def attended_states(self, encoder_out: Dict) -> List[Tensor]:
        """The encoder's states (S, B, D) that each layer attends to: the top ones."""
        return encoder_out["encoder_out"] * len(self.layers)

    def embed_words(self, tokens: Tensor) -> Tensor:
        """Tokens (R, T) int64 -> (R, T, D), without positions."""
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.quant_noise is not None:
            x = self.quant_noise(x)
        return x if self.project_in_dim is None else self.project_in_dim(x)

    def embed(self, canvas: Canvas, words: Optional[Tensor] = None) -> Tensor:
        """R canvases of T tokens -> (R, T, D); ``words`` (R, T, D) take the place of ``embed_words``."""
        x = self.embed_words(canvas.inputs) if words is None else words
        if self.embed_positions is not None:
            x = x + canvas_positions(self.embed_positions, *canvas)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x)

    def forward(self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """One pass: features (R, T or n, D), to be projected by ``output_layer``; see ``CanvasModel.decode``."""
        return self.through_layers(self.embed(canvas), memory, canvas.padding, picked)

    def through_layers(
        self, x: Tensor, memory: Memory, padding: Optional[Tensor] = None, picked: Optional[Tensor] = None, **extra
    ) -> Tensor:
        """``forward`` from the embedded canvas (R, T, D) on; ``extra`` are further arguments of a subclass's layers."""
        if self.compiled is not None:
            x = self.compiled.features(x, memory, padding, picked, extra)
        else:
            x = self.through_uncompiled(x, memory, padding, picked, **extra)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x if self.project_out_dim is None else self.project_out_dim(x)

    def through_uncompiled(
        self, x: Tensor, memory: Memory, padding: Optional[Tensor], picked: Optional[Tensor], **extra
    ) -> Tensor:
        """The layers one by one: (R, T, D) -> (R, T or n, D)."""
        fast, hides_itself = None if set(extra) - {"positions"} else fast_form(self), self.hides_itself()
        if fast is not None and (hides_itself or self.sees_all(padding, x)):
            return fast.features(x, padding, memory, picked, hides_itself=hides_itself, **extra)
        return through_decoder(self.layers, x, memory, self.allowed_positions(padding, x), picked, **extra)

    def hides_itself(self) -> bool:
        """Whether a position sees all others of its canvas and not itself, but where it is the only one."""
        return False

    def sees_all(self, padding: Optional[Tensor], x: Tensor) -> bool:
        """Whether the visible keys of the canvas are all but padding."""
        if type(self).allowed_positions is NarDecoder.allowed_positions:
            return True
        allowed = self.allowed_positions(padding, x)
        return allowed is None if padding is None else torch.equal(allowed, allowed_keys(padding))

    def allowed_positions(self, padding: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
        """The visible keys of the canvas (R, T, D): all but padding."""
        return allowed_keys(padding)


class NarModel(TransformerModel):
    """Base of the models that predict every position of a canvas at once, with a length head.

    A subclass defines ``canvas`` and ``forward``. A class that is only a base of others is declared ``abstract=True``.
    """

    generators = ()  # names, the default first
    predicts, blank, canvas_kind = "lengths", None, ()  # see ``CanvasModel``
    tasks, criterions = ("nar_translation",), ("nar_loss",)
    new_parameters = (  # that an AR checkpoint does not have
        NewParameters(
            r"encoder\.length_head\.",
            "a length head",
            "--length-head",
            "--max-target-positions and --encoder-embed-dim",
        ),
    )
    unread_flags = UNREAD_IN_PARALLEL  # the task refuses them in training

    def __init_subclass__(cls, abstract: bool = False, **kwargs):
        """Raise a ValueError for a subclass that names generators and lacks a method of the contract, unless it is
        ``abstract``."""
        super().__init_subclass__(**kwargs)
        if not abstract and cls.generators:
            check_methods(cls, cls.generators[0], ("canvas", "forward"), NarModel.__mro__)  # the rest is defined here

    @classmethod
    def add_args(cls, parser):
        """``TransformerModel``'s flags and those of the length head, the initialisation and the norm."""
        TransformerModel.add_args(parser)
        parser.add_argument(
            "--length-head",
            choices=LENGTH_HEADS,
            help="predict the length from a LENGTH token (Mask-Predict) or the pooled encoder (fairseq)",
        )
        parser.add_argument(
            "--stop-length-gradient", action="store_true", help="the length loss does not train the encoder"
        )
        parser.add_argument(
            "--bert-init",
            action="store_true",
            help="normal initialisation with deviation 0.02, as BERT and the Mask-Predict release",
        )
        parser.add_argument(
            "--layer-norm-eps",
            type=float,
            metavar="EPS",
            help="epsilon of every layer norm (PyTorch 1e-5, Mask-Predict 1e-12)",
        )
        parser.add_argument(
            "--init-encoder-from",
            metavar="CKPT",
            help="start the encoder from this checkpoint (any stock transformer of the same sizes)",
        )
        parser.add_argument("--init-decoder-from", metavar="CKPT", help="start the decoder from this checkpoint")

    @classmethod
    def build_model(cls, args, task):
        """Build and initialise; the task then calls ``start_from_checkpoints``, unless it resumes from a checkpoint."""
        check_task(cls, args, task)
        refuse_unsupported(args, UNSUPPORTED_IN_PARALLEL)
        model = super().build_model(args, task)
        model.pad, model.mask = task.target_dictionary.pad(), task.mask_index
        if getattr(args, "bert_init", False):
            model.apply(bert_init)
            load_embeddings(model, args)  # again, because the initialisation overwrote them
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and getattr(args, "layer_norm_eps", None) is not None:
                module.eps = args.layer_norm_eps
        shrink(model, args)
        use_fast_dropout(model)
        return model

    @classmethod
    def build_encoder(cls, args, src_dict, embed_tokens):
        return NarEncoder(TransformerConfig.from_namespace(args), src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args, tgt_dict, embed_tokens):
        return NarDecoder(TransformerConfig.from_namespace(args), tgt_dict, embed_tokens)

    # -- the contract ------------------------------------------------------------------------------------------------

    @property
    def length_classes(self) -> int:
        """See ``CanvasModel``."""
        head = self.encoder.length_head
        return 0 if head is None else head.weight.size(0)

    def encode(self, src_tokens: Tensor, src_lengths: Optional[Tensor] = None) -> Memory:
        """See ``CanvasModel``; ``encoded`` has the ``length_state`` (B, D)."""
        return self.decoder.memory(self.encoder(src_tokens, src_lengths=src_lengths))

    def decode(self, canvas: Canvas, memory: Memory, picked: Optional[Tensor] = None) -> Tensor:
        """See ``CanvasModel``."""
        return self.decoder(canvas, memory, picked)

    def project(self, features: Tensor) -> Tensor:
        """See ``CanvasModel``."""
        return self.decoder.output_layer(features)

    def noise(self, sample: Dict, seed: int, update: int) -> Dict[str, Tensor]:
        """See ``CanvasModel``; none."""
        return {}

    def length_lprobs(self, memory: Memory) -> Tensor:
        """See ``CanvasModel``; with ``--stop-length-gradient`` the encoder does not learn from it."""
        state = memory.encoded["length_state"]
        if self.training and getattr(self.args, "stop_length_gradient", False):
            state = state.detach()
        return self.encoder.length_head(state)

    # -- training ----------------------------------------------------------------------------------------------------

    def token_loss(self, features: Tensor, target: Tensor, picked: Tensor, objective: TokenObjective) -> LossPart:
        """The loss of the tokens at the predicted positions; the logits are computed in chunks.

        Args:
            features: (B, T, D). target: (B, T) int64. picked: (B, T) bool, the predicted positions.
        """
        soft, teacher = None, objective.teacher
        if teacher is not None and objective.soft_target_weight > 0:
            theirs, temperature = teacher.features(target)[picked], objective.temperature
            soft = SoftTargets(
                lambda part: teacher.lprobs(theirs[part], temperature).exp(), objective.soft_target_weight, temperature
            )
        targets = target[picked]
        projection, states = plain_projection(self.decoder.output_projection, features[picked])
        losses, nll, _ = fused_token_loss(projection, states, targets, objective.label_smoothing, soft=soft)
        return LossPart(losses.sum(), nll.sum(), torch.tensor(targets.numel(), device=targets.device), weight=1)

    def start_from_checkpoints(self, task) -> None:
        """Honour ``--init-encoder-from`` and ``--init-decoder-from``; checkpoints must have the task's dictionaries."""
        for side in ("encoder", "decoder"):
            path = getattr(self.args, f"init_{side}_from", None)
            if path:
                start_from(getattr(self, side), side, path, task, self.new_parameters)

    def upgrade_state_dict_named(self, state_dict, name):
        """Let ``--finetune-from-model`` take an AR checkpoint."""
        super().upgrade_state_dict_named(state_dict, name)
        start_new_parameters(self, state_dict, name)


def load_embeddings(model: TransformerModel, args) -> None:
    """Honour ``--encoder-embed-path`` and ``--decoder-embed-path``, as fairseq does when it builds the embeddings."""
    for side in (model.encoder, model.decoder):
        path = getattr(args, "encoder_embed_path" if side is model.encoder else "decoder_embed_path", None)
        if path:
            utils.load_embedding(utils.parse_embedding(path), side.dictionary, side.embed_tokens)


def wrap(layer: nn.Module, cfg) -> nn.Module:
    """Honour ``--checkpoint-activations`` and ``--offload-activations``. The results do not change.

    PyTorch's checkpointing recomputes under the autocast of the forward pass. fairseq's does not and fails with
    ``--amp``.
    """
    if cfg.checkpoint_activations:
        layer.forward = partial(recomputed, layer.forward, cfg.offload_activations)
    return layer


def recomputed(forward, offload: bool, *args, **kwargs):
    """``forward``, recomputed in the backward pass from its arguments; with ``offload`` they are kept on the CPU."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    with save_on_cpu() if offload else nullcontext():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
