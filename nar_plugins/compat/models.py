"""fairseq's own models."""

from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

from nar_plugins.compat.replace import replaces


def encode_by_plain_layers() -> None:
    """Let fairseq 0.12.2's encoders decode by the layers that they were trained by, as fairseq 0.12.3's do.

    Loaded from a checkpoint, they call PyTorch's fast path as PyTorch 1.13 had it. A later one raises "Mask Type should
    be defined" for padding on the left. For a batch in which padding ends every sentence, as ``--num-batch-buckets``
    makes them, the output is shorter than its mask. And the path reads copies of the weights, not the layers that
    ``--decode-dtype`` prepares. (facebookresearch/fairseq#4858, #4899)
    """

    @replaces(TransformerEncoderLayerBase, "__init__")
    def __init__(init, self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.can_use_fastpath = False
