"""The initialisation of a model without a checkpoint."""

import torch.nn as nn
from fairseq.modules import MultiheadAttention

from nar_plugins.modules.length_head import LengthHead


def bert_init(module: nn.Module) -> None:
    """The Mask-Predict release's initialisation: N(0, 0.02), but Xavier for query, key and value.

    The release's fused query-key-value matrix is no ``Linear``, so its BERT initialisation does not apply to it.
    fairseq's Xavier initialisation of the three parts has the same distribution. Padding's embedding is drawn, too.
    """
    if isinstance(module, (nn.Linear, nn.Embedding, LengthHead)):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, MultiheadAttention):  # visited after its linear layers
        for projection in (module.q_proj, module.k_proj, module.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
