"""Sequential proposal heads: each reads the previously proposed token and attends to the source again.

Stern et al.'s heads all predict from one state, which must hold every token of the next block. Here head i reads the
proposal of head i - 1, so that later proposals agree with earlier ones (Hydra, Ankner et al. 2024; EAGLE, Li et al.
2024). All heads share one layer, so that little data trains it. The layer has a cross-attention, because tokens further
ahead depend on other parts of the source.
"""

from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.modules import FairseqDropout
from torch import Tensor

from nar_plugins.modules.attention import Attention
from nar_plugins.modules.fast.rough import Product


class Products(NamedTuple):
    """Those of the heads' layer, in its order."""

    join: Product
    query: Product
    output: Product
    hidden: Product
    last: Product


class SequentialHeads(nn.Module):
    """n heads that share one layer, applied n times.

    The second feed-forward layer starts at zero, so that every head starts as the base's next-token prediction.

    Args:
        heads: n. dim: D. embed_dim: E of the tokens. encoder_dim: of the encoder's states. hidden: units of the
            feed-forward layer. attention_heads: H.
    """

    def __init__(
        self,
        heads: int,
        dim: int,
        embed_dim: int,
        encoder_dim: int,
        hidden: int,
        attention_heads: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ):
        super().__init__()
        self.join = nn.Linear(dim + embed_dim, dim)
        self.number = nn.Parameter(torch.zeros(heads, dim))  # an embedding of the head's number
        self.join_norm = nn.LayerNorm(dim)
        self.encoder_attn = Attention(
            dim,
            attention_heads,
            kdim=encoder_dim,
            vdim=encoder_dim,
            dropout=attention_dropout,
            encoder_decoder_attention=True,
        )
        self.encoder_attn_norm = nn.LayerNorm(dim)
        self.hidden_layer = nn.Linear(dim, hidden)
        self.weight = nn.Parameter(torch.zeros(dim, hidden))
        self.bias = nn.Parameter(torch.zeros(heads, dim))
        self.dropout_module = FairseqDropout(dropout, module_name=type(self).__name__)
        self.activation_dropout_module = FairseqDropout(activation_dropout, module_name=type(self).__name__)
        for layer in (self.join, self.hidden_layer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def memory(self, states: Tensor) -> Tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D/H) of the encoder's states (B, S, D), once per sentence."""
        return self.encoder_attn.keys_values(states)

    def forward(
        self, index: int, base: Tensor, state: Tensor, token: Tensor, cross_attention: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The states of head ``index`` (from 0), for the vocabulary projection.

        Args:
            base: (P, D), the decoder's features. state: (P, D), the states of the head before it; for the
                first head ``base``.
            token: (P, E), the embedding of the previously proposed token.
            cross_attention: this module's cross-attention of states (P, D) to their sources.

        Returns:
            (P, D).
        """
        x = self.join_norm(
            F.linear(torch.cat([state, token], -1), self.join.weight, self.join.bias + self.number[index])
        )
        x = self.encoder_attn_norm(x + self.dropout_module(cross_attention(x)))
        hidden = self.activation_dropout_module(self.hidden_layer(x).relu_())
        return base + self.dropout_module(F.linear(hidden, self.weight, self.bias[index]))

    def decoding_products(self, scale: float, product: Callable[[Tensor], Product]) -> Products:
        """The products of ``forward``.

        Args:
            scale: of the tokens' embeddings, which ``decoding`` is given without.
            product: that with a weight (out, in).
        """
        join, *others = self.weights()
        join = torch.cat([join[:, : len(join)], join[:, len(join) :] * scale], 1)
        return Products(*map(product, (join, *others)))

    def decoding(
        self, keys: Tensor, values: Tensor, allowed: Optional[Tensor], products: Products
    ) -> Callable[[Tensor], Callable[[int, Tensor, Tensor], Tensor]]:
        """``forward`` in evaluation mode for one position per sentence: a function of ``base`` (P, D), which returns
        one of ``index``, ``state`` (P, D) and ``token`` (P, E).

        It reads the parameters once: for a single sentence, calling the modules takes as long as the computation.

        Args:
            keys, values: (P, H, S, D/H), from ``memory``. allowed: (P, 1, 1, S) bool, or None.
            products: of the weights of now.
        """
        attention, (join, query, output, hidden_layer, last) = self.encoder_attn, products
        parts = (attention.q_proj, attention.out_proj, self.hidden_layer)
        b_query, b_output, b_hidden = (part.bias for part in parts)
        norms = [
            (norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            for norm in (self.join_norm, self.encoder_attn_norm)
        ]
        join_biases, biases = (self.join.bias + self.number).unbind(), self.bias.unsqueeze(1)
        heads, scaling = (len(keys), attention.num_heads, 1, attention.head_dim), attention.scaling
        if allowed is not None:  # attention would make a bias of it in every call
            allowed = torch.zeros(allowed.shape, dtype=keys.dtype, device=keys.device).masked_fill_(
                ~allowed, -float("inf")
            )

        def heads_after(base: Tensor) -> Callable[[int, Tensor, Tensor], Tensor]:
            outputs = base + biases  # of every head, without its hidden layer

            def head(index: int, state: Tensor, token: Tensor) -> Tensor:
                x = F.layer_norm(join(torch.cat([state, token], -1), join_biases[index]), *norms[0])
                context = F.scaled_dot_product_attention(
                    query(x, b_query).view(heads), keys, values, attn_mask=allowed, scale=scaling
                )
                x = F.layer_norm(output(context.flatten(1), b_output).add_(x), *norms[1])
                return last(hidden_layer(x, b_hidden).relu_(), outputs[index])

            return head

        return heads_after

    def weights(self) -> List[Tensor]:
        """Those that a head multiplies by at one position, (out, in) each, without the attention to the source."""
        attention = self.encoder_attn
        layers = (self.join, attention.q_proj, attention.out_proj, self.hidden_layer)
        return [*(layer.weight for layer in layers), self.weight]
