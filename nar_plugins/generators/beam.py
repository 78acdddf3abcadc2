"""fairseq's own search for stock autoregressive checkpoints, which do not know ``<mask>``."""
from contextlib import contextmanager

import torch

from nar_plugins.modules.linear import fast_linear
from nar_plugins.modules.vocabulary import refuse_adaptive_softmax


class BeamGenerator:
    """fairseq's generator, with ``<mask>`` at -inf before the softmax.

    A checkpoint trained without ``<mask>`` then gives the text that it gives under fairseq's ``translation``.

    Args:
        generator: what ``FairseqTask.build_generator`` made.
        models: its models.
        mask: index of ``<mask>``; None where it is a word that the models know.
        dtype: ``--decode-dtype``, the type of the autocast.

    Raises:
        ValueError: a model has an adaptive softmax, which has no logits to ban ``<mask>`` in.
    """

    def __init__(self, generator, models, mask: int, dtype="float32"):
        for model in models:
            refuse_adaptive_softmax(model, f"--generator beam cannot decode this {type(model).__name__}")
        self.generator, self.mask, self.dtype = generator, mask, getattr(torch, str(dtype))
        self.models = models
        self.projections = [m.decoder.output_projection for m in models if hasattr(m.decoder, "output_projection")]

    def generate(self, models, sample, **kwargs):
        """fairseq's hypotheses."""
        device = sample["net_input"]["src_tokens"].device.type
        autocast = torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32)
        with torch.no_grad(), self.without_mask(), fast_linear(self.models, self.dtype), autocast:
            return self.generator.generate(models, sample, **kwargs)

    @contextmanager
    def without_mask(self):
        """While decoding, and only then, the models' vocabulary has no ``<mask>``."""
        if self.mask is None:
            yield
            return
        column = torch.tensor([self.mask])

        def ban(module, inputs, logits):
            return logits.index_fill(-1, column.to(logits.device), -float("inf"))

        handles = [p.register_forward_hook(ban) for p in self.projections]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __getattr__(self, name):
        # fairseq's commands read the symbols to strip, and more, from the generator
        return getattr(self.__dict__["generator"], name)
