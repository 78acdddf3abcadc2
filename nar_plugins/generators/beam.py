"""fairseq's own search for stock autoregressive checkpoints, which do not know ``<mask>``."""

from argparse import Namespace
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Dict, List

from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment

from nar_plugins.data.inference import part_of
from nar_plugins.generators.base import Generator, ban, banned_symbols, check_min_len
from nar_plugins.generators.hypothesis import prefixes
from nar_plugins.generators.options import refuse_in_batch, refuse_options
from nar_plugins.generators.registry import DecodingConfig, register_generator
from nar_plugins.modules.adaptive_softmax import refuse_adaptive_softmax


@dataclass
class BeamConfig(DecodingConfig):
    """fairseq's own options are the others."""


@register_generator("beam", dataclass=BeamConfig)
class BeamGenerator(Generator):
    """fairseq's generator, with ``<mask>`` at -inf before the softmax.

    A checkpoint trained without ``<mask>`` then gives the text that it gives under fairseq's ``translation``.

    Args:
        models: those of ``search``. dictionary: the target's. mask: index of ``<mask>``.
        config: with ``decode_dtype``. options: fairseq's ``GenerationConfig``.
        search: what ``FairseqTask.build_generator`` made.

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
        self.unlearnt = banned_symbols(dictionary, mask, models).unlearnt
        self.projections = [m.decoder.output_projection for m in models if hasattr(m.decoder, "output_projection")]

    def generate(self, models, sample, **kwargs):
        """fairseq's hypotheses, n-best, with what its commands print of them: ``steps``, and perhaps ``history``.

        Raises:
            ValueError: the batch lacks what an option reads.
        """
        given = kwargs.get("prefix_tokens"), kwargs.get("constraints")
        refuse_in_batch("beam", self.options, *given, sample.get("target"))
        self.check_shortest(sample["net_input"]["src_tokens"].size(1))
        device = sample["net_input"]["src_tokens"].device
        with self.decoding(device), self.without_mask(), self.with_attention():
            found = self.search(models, sample, **kwargs)
        for hypo in (hypo for hypos in found for hypo in hypos):
            hypo["steps"] = len(hypo["tokens"])
            if self.options.retain_iter_history:
                hypo["history"] = prefixes(hypo["tokens"], [1] * hypo["steps"])
        return found

    def check_shortest(self, width: int) -> None:
        """Raise where ``--min-len`` is above what a batch ``width`` wide may have: fairseq's own assertion names no
        flag.
        """
        search = self.generator
        if hasattr(search, "max_len_a"):  # not where references are scored
            check_min_len(search.min_len, min(int(search.max_len_a * width + search.max_len_b), search.max_len - 1))

    def search(self, models, sample, prefix_tokens=None, constraints=None, **kwargs) -> List[List[Dict]]:
        """fairseq's search; with a beam of one for sentences whose prefix (B, P) is ``</s>`` and nothing else.

        In the first step fairseq looks at one hypothesis of a sentence's beam. The others of a sentence that ends there
        never end, and its search stops with an AssertionError.
        """

        def decode(sample, prefix, constraints):
            given = {"prefix_tokens": prefix, "constraints": constraints}
            given = {**kwargs, **{name: one for name, one in given.items() if one is not None}}
            if self.aligns():
                return self.aligned(SequenceGenerator.generate(self.generator, models, sample, **given), sample)
            return self.generator.generate(models, sample, **given)

        beam = getattr(self.generator, "beam_size", 1)
        ended = None if prefix_tokens is None or beam == 1 else prefix_tokens[:, 0].eq(self.generator.eos)
        if ended is None or not bool(ended.any()):
            return decode(sample, prefix_tokens, constraints)
        found = [None] * len(ended)
        for rows, size in ((ended.nonzero().squeeze(1), 1), ((~ended).nonzero().squeeze(1), beam)):
            if not len(rows):
                continue
            self.generator.beam_size = size
            try:
                given = (prefix_tokens[rows], None if constraints is None else constraints[rows])
                for row, hypos in zip(rows.tolist(), decode(part_of(sample, rows), *given)):
                    found[row] = hypos
            finally:
                self.generator.beam_size = beam
        return found

    def aligns(self) -> bool:
        """Whether the search's own attention is its alignment, as it is of all models but those of full-context
        alignment.
        """
        full = any(getattr(model, "full_context_alignment", False) for model in self.models)
        return isinstance(self.generator, SequenceGeneratorWithAlignment) and not full

    def aligned(self, found: List[List[Dict]], sample: Dict) -> List[List[Dict]]:
        """The hypotheses with their alignments; fairseq's own way fails where a sentence has fewer of them than the
        beam.
        """
        search = self.generator
        for hypos, source in zip(found, sample["net_input"]["src_tokens"].cpu()):
            for hypo in hypos:
                if hypo["attention"].dim() != 2:
                    raise ValueError("--print-alignment: the model gives no attention to align by; leave it out")
                weights, tokens = hypo["attention"].t().cpu(), hypo["tokens"].cpu()
                hypo["alignment"] = search.extract_alignment(weights, source, tokens, search.pad, search.eos)
        return found

    @contextmanager
    def with_attention(self):
        """While decoding a decoder that must be asked for its attention returns it, if it is to be printed."""
        decoders = [model.decoder for model in self.models if hasattr(model.decoder, "returning_attention")]
        with ExitStack() as asked:
            for decoder in decoders if self.options.print_alignment else ():
                asked.enter_context(decoder.returning_attention())
            yield

    @contextmanager
    def without_mask(self):
        """While decoding, and only then, the models' vocabulary has no ``<mask>``."""

        def without(module, inputs, logits):
            return ban(logits, self.unlearnt)

        handles = [p.register_forward_hook(without) for p in self.projections if self.unlearnt]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __getattr__(self, name):
        # fairseq's commands read the symbols to strip, and more, from the generator
        return getattr(self.__dict__["generator"], name)
