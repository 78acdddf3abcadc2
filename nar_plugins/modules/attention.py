"""Attention with fairseq's parameters and PyTorch's fused kernel; keys and values of the source are computed once."""

from contextlib import nullcontext
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nar_plugins.modules.exporting import is_padded
from nar_plugins.modules.fast.linear import shared_input
from nar_plugins.modules.packing import collect, spread

SHORT = 128  # tokens; see training_kernel


def training_kernel(device: torch.device, length: int):
    """A context with the fastest attention kernel for training on ``device`` with sequences of ``length`` tokens.

    PyTorch's fused attention has a slow backward pass on CPUs. Without it a training step takes 0.7 of the time with 30
    tokens, and 1.4 times as long with 512 tokens (measured on one core, bfloat16). On other devices PyTorch chooses.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and length <= SHORT else nullcontext()


class Attention(MultiheadAttention):
    """fairseq's ``MultiheadAttention`` (its parameters, names and initialisation) computed batch-first and fused.

    Decoding calls the parts separately: ``keys_values`` once per sentence, ``attend`` in every pass. ``forward`` has
    fairseq's signature, so that fairseq's own encoder layers can use this class.
    """

    fused = None  # the product of the layers in ``fuses``, in a model prepared for decoding

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fuses = ("q_proj", "k_proj", "v_proj") if self.self_attention else ("k_proj", "v_proj")

    def queries(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D/H)."""
        return split_heads(self, self.q_proj(x))

    def keys_values(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """(B, S, D) -> keys and values, each (B, H, S, D/H)."""
        return project(self, x, "k_proj", "v_proj")

    def self_projections(self, x: Tensor, picked: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries, keys and values of the same states, each (B, H, T, D/H).

        Args:
            picked: (B, n) int64, the positions of the queries; None: all.
        """
        if picked is None or (self.fused is not None and self.fused.usable()):
            queries, keys, values = project(self, x, "q_proj", "k_proj", "v_proj")
            return queries if picked is None else pick_queries(queries, picked), keys, values
        return self.queries(pick(x, picked)), *self.keys_values(x)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Optional[Tensor] = None) -> Tensor:
        """Softmax attention with output projection; see the function ``attend``."""
        return attend(self, queries, keys, values, allowed)

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor],
        value: Optional[Tensor],
        key_padding_mask: Optional[Tensor] = None,
        need_weights: bool = False,
        **unsupported,
    ) -> Tuple[Tensor, None]:
        """fairseq's signature, as its encoder layers call it: time-first, no cache, no weights returned.

        Args:
            query, key: (T, B, D) and (S, B, D); ``value`` is not read: it equals ``key`` in every layer of
                fairseq.
            key_padding_mask: (B, S) bool, True = padding.

        Raises:
            ValueError: for an unsupported argument of fairseq's.
        """
        if need_weights or any(v is not None and v is not False for v in unsupported.values()):
            raise ValueError(
                f"this attention returns no weights and takes no mask or state here: {sorted(unsupported)}"
            )
        allowed = allowed_keys(key_padding_mask)
        if query is key:
            x = self.attend(*self.self_projections(query.transpose(0, 1)), allowed)
        else:
            x = self.attend(self.queries(query.transpose(0, 1)), *self.keys_values(key.transpose(0, 1)), allowed)
        return x.transpose(0, 1), None


def split_heads(attention: MultiheadAttention, x: Tensor) -> Tensor:
    """(B, T, D) -> (B, H, T, D/H), a view."""
    batch, length, _ = x.shape
    return x.view(batch, length, attention.num_heads, attention.head_dim).transpose(1, 2)


def project(attention: MultiheadAttention, x: Tensor, *names: str) -> Tuple[Tensor, ...]:
    """Several projections of the same states (B, T, D), or of their ``shared_input``, by their names: (B, H, T, D/H)
    each."""
    fused = getattr(attention, "fused", None)  # fairseq's own attentions have none
    if fused is not None and names == attention.fuses and fused.usable():
        return tuple(split_heads(attention, part) for part in fused(x))
    layers = [getattr(attention, name) for name in names]
    x = shared_input(x, *layers)
    return tuple(split_heads(attention, layer(x)) for layer in layers)


def pick(x: Tensor, positions: Tensor) -> Tensor:
    """x (R, T, D) at positions (R, n) -> (R, n, D)."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.size(-1)))


def pick_queries(queries: Tensor, positions: Tensor) -> Tensor:
    """Queries (R, H, T, D/H) at positions (R, n) -> (R, H, n, D/H)."""
    _, heads, _, width = queries.shape
    return queries.gather(2, positions[:, None, :, None].expand(-1, heads, -1, width))


def attend(
    attention: MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, allowed: Optional[Tensor] = None
) -> Tensor:
    """Softmax attention with output projection, with the parameters of any ``MultiheadAttention`` of fairseq's.

    Args:
        queries: (B, H, T, D/H), not yet scaled.
        keys, values: (B, H, S, D/H).
        allowed: bool, True for visible keys, or a float bias; broadcast to (B, H, T, S); None: everywhere.

    Returns:
        (B, T, D).
    """
    return attention.out_proj(fused(attention, queries, keys, values, allowed))


def fused(
    attention: MultiheadAttention, queries: Tensor, keys: Tensor, values: Tensor, allowed: Optional[Tensor] = None
) -> Tensor:
    """``attend`` without the output projection."""
    drop = attention.dropout_module
    heads = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=allowed,
        dropout_p=drop.p if attention.training or drop.apply_during_inference else 0.0,
        scale=attention.scaling,
    )
    return heads.transpose(1, 2).flatten(2)


def attend_packed(
    attention: MultiheadAttention,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Optional[Tensor],
    slots: Tensor,
    width: int,
) -> Tensor:
    """Cross-attention, with its projections, of packed states (P, D) -> (P, D).

    Args:
        keys, values: (B, H, S, D/H). allowed: as in ``attend``.
        slots, width: from ``packing.queries_of_sentences``, which puts a sentence's queries into one row.
    """
    sentences = keys.size(0)
    queries = spread(attention.q_proj(x), slots, sentences * width).unflatten(0, (sentences, width))
    heads = fused(attention, split_heads(attention, queries), keys, values, allowed)
    return attention.out_proj(collect(heads.flatten(0, 1), slots))


def allowed_keys(padding: Optional[Tensor]) -> Optional[Tensor]:
    """(B, S) bool, True = padding -> (B, 1, 1, S) bool, True = visible; None (no padding) stays None."""
    return None if padding is None else ~padding[:, None, None, :]


def allowed_sources(encoder_out: Dict) -> Optional[Tensor]:
    """``allowed_keys`` of fairseq's encoder output; None where no source of the batch is padded."""
    padding = encoder_out["encoder_padding_mask"]
    return allowed_keys(padding[0]) if len(padding) > 0 and is_padded(padding[0]) else None
