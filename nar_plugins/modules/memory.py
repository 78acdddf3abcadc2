"""The encoded source for the decoder: computed once per sentence, read in every pass."""

from typing import Dict, Iterable, List, NamedTuple, Optional

from fairseq.modules import MultiheadAttention
from torch import Tensor

from nar_plugins.modules.attention import project, split_heads
from nar_plugins.modules.fast.fused import one_product
from nar_plugins.modules.fast.linear import shared_input


class Memory(NamedTuple):
    """The encoded source of B sentences, for every decoder of this package."""

    keys: List[Tensor]  # of every layer's cross-attention, each (B, H, S, D/H)
    values: List[Tensor]  # likewise
    allowed: Optional[Tensor]  # (B, 1, 1, S) bool, True for visible keys; None: no source is padded
    encoded: Dict[str, Tensor]  # further encoder states by name (for canvas, length, fertilities), each (B, ...)

    @classmethod
    def of(
        cls,
        attentions: Iterable[MultiheadAttention],
        states: Iterable[Tensor],
        allowed: Optional[Tensor],
        encoded: Optional[Dict[str, Tensor]] = None,
        contiguous: bool = False,
    ) -> "Memory":
        """Project the encoder's states to the keys and values of every layer.

        Args:
            attentions: every layer's cross-attention.
            states: the encoder's states that each of them attends to, (B, S, D).
            allowed, encoded: as in the class.
            contiguous: copy keys and values: faster for many calls with few queries each.
        """
        keys, values = [], []
        attentions, states = list(attentions), list(states)
        projections = [layer for attention in attentions for layer in (attention.k_proj, attention.v_proj)]
        distinct = {id(state): state for state in states}
        inputs = {key: shared_input(state, *projections) for key, state in distinct.items()}
        whole = one_product(attentions) if len(inputs) == 1 else None
        outputs = None if whole is None else iter(whole(*inputs.values()))
        for attention, state in zip(attentions, states):
            if outputs is None:
                projected = project(attention, inputs[id(state)], "k_proj", "v_proj")
            else:
                projected = [split_heads(attention, next(outputs)) for _ in ("k_proj", "v_proj")]
            for heads, each in zip((keys, values), projected):
                heads.append(each.contiguous() if contiguous else each)
        return cls(keys, values, allowed, encoded or {})

    def select(self, sentences: Tensor) -> "Memory":
        """The memory of the sentences (n,) int64, which may repeat."""
        return Memory(
            [keys[sentences] for keys in self.keys],
            [values[sentences] for values in self.values],
            None if self.allowed is None else self.allowed[sentences],
            {name: state[sentences] for name, state in self.encoded.items()},
        )
