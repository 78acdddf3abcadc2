"""fairseq's own search for stock autoregressive checkpoints, which do not know ``<mask>``."""

from argparse import Namespace
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Dict, List

from fairseq.sequence_generator import EnsembleModel, SequenceGenerator, SequenceGeneratorWithAlignment

from nar_plugins.data.inference import select_sentences
from nar_plugins.generators.base import Generator, banned_symbols, check_min_len, longest_output
from nar_plugins.generators.hypothesis import prefixes
from nar_plugins.generators.options import refuse_in_batch, refuse_options
from nar_plugins.generators.registry import DecodingConfig, register_generator
from nar_plugins.modules.adaptive_softmax import refuse_adaptive_softmax
from nar_plugins.modules.best_of_rows import ban


@dataclass
class BeamConfig(DecodingConfig):
    """No option but the shared one; fairseq's own are the others."""


@register_generator("beam", dataclass=BeamConfig)
class BeamGenerator(Generator):
    """fairseq's generator, with ``<mask>`` at -inf before the softmax.

    A checkpoint trained without ``<mask>`` then gives the text that it gives under fairseq's ``translation``.

    Args:
        models: one, or several as an ensemble. dictionary: the target's. mask: index of ``<mask>``.
        config: with ``decode_dtype``. options: fairseq's ``GenerationConfig``.
        search: the result of ``FairseqTask.build_generator``.

    Raises:
        ValueError: an option is set that fairseq does not honour itself, or a model has an adaptive softmax, which has
            no logits to ban ``<mask>`` in.
    """

    def __init__(self, models, dictionary, config, options: Namespace, mask: int, search):
        for model in models:
            refuse_adaptive_softmax(model, f"--generator beam cannot decode this {type(model).__name__}")
        refuse_options("beam", options, config)
        self.generator = search
        super().__init__(models, config, options)
        if isinstance(getattr(search, "model", None), EnsembleModel):  # not where references are scored
            search.model = type(search.model)(self.models)
        self.unlearnt = banned_symbols(dictionary, mask, models).unlearnt
        decoders = [model.decoder for model in self.models]
        self.projections = [decoder.output_projection for decoder in decoders if hasattr(decoder, "output_projection")]

    def generate(self, models, sample, **kwargs):
        """fairseq's hypotheses, n-best, with ``steps``, and with ``history`` for ``--retain-iter-history``.

        Raises:
            ValueError: the batch lacks what an option reads.
        """
        prefix, constraints = kwargs.get("prefix_tokens"), kwargs.get("constraints")
        refuse_in_batch("beam", self.options, prefix, constraints, sample.get("target"))
        self.check_min_length(sample["net_input"]["src_tokens"].size(1))
        with self.decoding(sample["net_input"]["src_tokens"]), self.without_mask(), self.with_attention():
            hypotheses = self.search(self.models, sample, **kwargs)
        for hypothesis in (hypothesis for nbest in hypotheses for hypothesis in nbest):
            hypothesis["steps"] = len(hypothesis["tokens"])
            if self.options.retain_iter_history:
                hypothesis["history"] = prefixes(hypothesis["tokens"], [1] * hypothesis["steps"])
        return hypotheses

    def check_min_length(self, width: int) -> None:
        """Raise where ``--min-len`` is above the limit of a batch ``width`` wide; fairseq's assertion names no flag."""
        search = self.generator
        if hasattr(search, "max_len_a"):  # not where references are scored
            check_min_len(search.min_len, longest_output(search, width, search.max_len - 1))

    def search(self, models, sample, prefix_tokens=None, constraints=None, **kwargs) -> List[List[Dict]]:
        """fairseq's search; with a beam of one for sentences whose prefix (B, P) is ``</s>`` and nothing else.

        fairseq's first step reads one hypothesis of a sentence's beam. Where it ends there, the others never end, and
        the search stops with an AssertionError.
        """

        def decode(sample, prefix, constraints):
            forced = {"prefix_tokens": prefix, "constraints": constraints}
            arguments = {**kwargs, **{name: value for name, value in forced.items() if value is not None}}
            if self.aligns():
                return self.aligned(SequenceGenerator.generate(self.generator, models, sample, **arguments), sample)
            return self.generator.generate(models, sample, **arguments)

        beam = getattr(self.generator, "beam_size", 1)
        ended = None if prefix_tokens is None or beam == 1 else prefix_tokens[:, 0].eq(self.generator.eos)
        if ended is None or not bool(ended.any()):
            return decode(sample, prefix_tokens, constraints)
        hypotheses = [None] * len(ended)
        for part, size in ((ended.nonzero().squeeze(1), 1), ((~ended).nonzero().squeeze(1), beam)):
            if not len(part):
                continue
            self.generator.beam_size = size
            try:
                forced = (prefix_tokens[part], None if constraints is None else constraints[part])
                selected = select_sentences(sample, part, self.generator.pad)
                for sentence, nbest in zip(part.tolist(), decode(selected, *forced)):
                    hypotheses[sentence] = nbest
            finally:
                self.generator.beam_size = beam
        return hypotheses

    def aligns(self) -> bool:
        """Whether the alignment is the attention of the search; not with full-context alignment."""
        full = any(getattr(model, "full_context_alignment", False) for model in self.models)
        return isinstance(self.generator, SequenceGeneratorWithAlignment) and not full

    def aligned(self, hypotheses: List[List[Dict]], sample: Dict) -> List[List[Dict]]:
        """The hypotheses with their alignments.

        fairseq's ``SequenceGeneratorWithAlignment`` fails where a sentence has fewer hypotheses than the beam.
        """
        search = self.generator
        for nbest, source in zip(hypotheses, sample["net_input"]["src_tokens"].cpu()):
            for hypothesis in nbest:
                if hypothesis["attention"].dim() != 2:
                    raise ValueError("--print-alignment: the model gives no attention to align by; leave it out")
                weights, tokens = hypothesis["attention"].t().cpu(), hypothesis["tokens"].cpu()
                hypothesis["alignment"] = search.extract_alignment(weights, source, tokens, search.pad, search.eos)
        return hypotheses

    @contextmanager
    def with_attention(self):
        """For ``--print-alignment``: decoders that return their attention only on request do so."""
        decoders = [model.decoder for model in self.models if hasattr(model.decoder, "returning_attention")]
        with ExitStack() as stack:
            for decoder in decoders if self.options.print_alignment else ():
                stack.enter_context(decoder.returning_attention())
            yield

    @contextmanager
    def without_mask(self):
        """The models' logits of ``<mask>`` are -inf in this context."""

        def ban_unlearnt(module, inputs, logits):
            return ban(logits, self.unlearnt)

        handles = [p.register_forward_hook(ban_unlearnt) for p in self.projections if self.unlearnt]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __getattr__(self, name):
        # fairseq's commands read the symbols to strip, and more, from the generator
        return getattr(self.__dict__["generator"], name)
