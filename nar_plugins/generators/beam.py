"""fairseq's own search for stock autoregressive checkpoints, which do not know ``<mask>``."""

from argparse import Namespace
from contextlib import ExitStack, contextmanager
from typing import Dict, List, Optional

import torch
from fairseq.sequence_generator import SequenceGenerator, SequenceGeneratorWithAlignment

from nar_plugins.data.inference import select_sentences
from nar_plugins.generators.hypothesis import prefixes
from nar_plugins.generators.left_to_right.greedy_rules import check_min_len
from nar_plugins.generators.registry import generation_options
from nar_plugins.modules.adaptive_softmax import refuse_adaptive_softmax
from nar_plugins.modules.linear import fast_linear


class BeamGenerator:
    """fairseq's generator, with ``<mask>`` at -inf before the softmax.

    A checkpoint trained without ``<mask>`` then gives the text that it gives under fairseq's ``translation``.

    Args:
        generator: what ``FairseqTask.build_generator`` made.
        models: its models.
        mask: index of ``<mask>``; None where it is a word that the models know.
        dtype: ``--decode-dtype``, the type of the autocast.
        options: fairseq's ``GenerationConfig``; None for its defaults.

    Raises:
        ValueError: an option is set that fairseq does not honour itself, or a model has an adaptive softmax, which has
            no logits to ban ``<mask>`` in.
    """

    def __init__(self, generator, models, mask: int, dtype="float32", options: Optional[Namespace] = None):
        for model in models:
            refuse_adaptive_softmax(model, f"--generator beam cannot decode this {type(model).__name__}")
        self.generator, self.mask, self.dtype = generator, mask, getattr(torch, str(dtype))
        self.models = models
        self.options = generation_options(options)
        refuse_unprintable(self.options)
        self.projections = [m.decoder.output_projection for m in models if hasattr(m.decoder, "output_projection")]

    def generate(self, models, sample, **kwargs):
        """fairseq's hypotheses, n-best, with what its commands print of them: ``steps``, and perhaps ``history``.

        Raises:
            ValueError: the batch lacks what an option reads.
        """
        if self.options.score_reference and sample.get("target") is None:
            raise ValueError(
                "--score-reference needs references, and fairseq-interactive has none: use fairseq-generate"
            )
        if self.options.constraints and kwargs.get("constraints") is None:
            raise ValueError(
                "--constraints are read from the lines of fairseq-interactive: leave it out of fairseq-generate"
            )
        self.check_shortest(sample["net_input"]["src_tokens"].size(1))
        device = sample["net_input"]["src_tokens"].device.type
        autocast = torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32)
        with (
            torch.no_grad(),
            self.without_mask(),
            self.with_attention(),
            fast_linear(self.models, self.dtype),
            autocast,
        ):
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
                for row, hypos in zip(rows.tolist(), decode(select_sentences(sample, rows), *given)):
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
        decoders = [model.decoder for model in self.models if hasattr(model.decoder, "attending")]
        with ExitStack() as asked:
            for decoder in decoders if self.options.print_alignment else ():
                asked.enter_context(decoder.attending())
            yield

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


def refuse_unprintable(options: Namespace) -> None:
    """Raise for an option that fairseq accepts and that then ends its commands in an error of Python's.

    fairseq's ``replace_unk`` takes an alignment for a list of source positions, and its search makes pairs of them: the
    first ``<unk>`` that is said is a TypeError, without ``--print-alignment`` an IndexError. Its scorer makes hard
    alignments only.
    """
    if options.replace_unk is not None:
        raise ValueError(
            "--replace-unk cannot be honoured: fairseq fails at the first <unk> that is said; leave it out"
        )
    if options.score_reference and str(options.print_alignment) == "soft":
        raise ValueError("--print-alignment soft: --score-reference has hard alignments only")
