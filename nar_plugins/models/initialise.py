"""How a model starts where no checkpoint is given."""

import torch.nn as nn
from fairseq.modules import MultiheadAttention

from nar_plugins.modules.length_head import LengthHead


def bert_init(module: nn.Module) -> None:
    """The release's initialisation: N(0, 0.02) for tables and linear layers, but Xavier for query, key and value.

    The release's fused query-key-value matrix is no ``Linear``, so its rule passes it by; fairseq's own initialisation
    of the three has the same distribution as the release's of the one. Rows of padding are drawn like the others.
    """
    if isinstance(module, (nn.Linear, nn.Embedding, LengthHead)):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, MultiheadAttention):  # visited after its linear layers
        for projection in (module.q_proj, module.k_proj, module.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
