"""CTranslate2, the fast engine for autoregressive Transformers on CPUs, with the weights of one of fairseq's models.

It needs the package ``ctranslate2``: the extra ``ct2`` of this project.
"""

import tempfile
from pathlib import Path
from typing import List

import torch
from torch import Tensor

from nar_plugins.data.dictionary import MASK


class CTranslate2:
    """A fairseq ``transformer``, converted in memory and loaded by CTranslate2 on the CPU.

    Args:
        model: a stock ``TransformerModel``. source, target: its dictionaries.
        compute_type: CTranslate2's: float32, int8, ...
        threads: that a translation uses.

    Raises:
        ValueError: the package is not installed, or another model.
    """

    def __init__(self, model, source, target, compute_type: str, threads: int):
        try:
            import ctranslate2
        except ImportError:
            raise ValueError("CTranslate2 is not installed: pip install 'nar-plugins[ct2]'") from None
        self.source, self.target = symbols(source), symbols(target)
        self.index = {symbol: i for i, symbol in enumerate(self.target)}
        self.pad, self.eos = source.pad(), source.eos()
        self.banned = [[symbol] for symbol in ("<blank>", MASK) if symbol in self.index]  # as by --generator beam
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model"
            path.mkdir()
            converted(model, self.source, self.target).save(str(path))
            self.translator = ctranslate2.Translator(
                str(path), device="cpu", compute_type=compute_type, intra_threads=threads
            )

    def translate(self, sources: Tensor, beam: int = 1, **options) -> List[List[int]]:
        """The best translation's tokens, without ``</s>``, of every source (B, S) int64.

        Args:
            options: of ``ctranslate2.Translator.translate_batch``.
        """
        lines = [[self.source[t] for t in row if t not in (self.pad, self.eos)] for row in sources.tolist()]
        results = self.translator.translate_batch(lines, beam_size=beam, suppress_sequences=self.banned, **options)
        return [[self.index[symbol] for symbol in result.hypotheses[0]] for result in results]


def symbols(dictionary) -> List[str]:
    """A dictionary's symbols, by the names that CTranslate2 gives the special ones."""
    return ["<blank>" if symbol == "<pad>" else symbol for symbol in dictionary.symbols]


def converted(model, source: List[str], target: List[str]):
    """CTranslate2's specification of a model, as its own converter makes it of a fairseq checkpoint.

    Raises:
        ValueError: the model is no stock Transformer.
    """
    from ctranslate2.converters import fairseq
    from ctranslate2.specs import TransformerSpec, common_spec

    args, activations = model.args, {"relu": common_spec.Activation.RELU, "gelu": common_spec.Activation.GELU}
    pre_norm, heads = {args.encoder_normalize_before, args.decoder_normalize_before}, model.encoder.layers[0].self_attn
    if len(pre_norm) > 1 or args.activation_fn not in activations or model.decoder.adaptive_softmax is not None:
        raise ValueError(f"CTranslate2 cannot decode this {type(model).__name__}: only a stock transformer")
    spec = TransformerSpec.from_config(
        (len(model.encoder.layers), len(model.decoder.layers)),
        heads.num_heads,
        pre_norm=pre_norm.pop(),
        activation=activations[args.activation_fn],
        layernorm_embedding=getattr(args, "layernorm_embedding", False),
    )
    fairseq.set_transformer_encoder(spec.encoder, model.encoder)
    fairseq.set_transformer_decoder(spec.decoder, model.decoder)
    spec.register_source_vocabulary(source)
    spec.register_target_vocabulary(target)
    spec.config.decoder_start_token, spec.config.add_source_eos = spec.config.eos_token, True
    spec.validate()
    spec.optimize()
    return spec
