"""CTranslate2, the fast engine for autoregressive Transformers, with the weights of one of fairseq's models.

It needs the package ``ctranslate2``: the extra ``ct2`` of this project.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import List, Optional

import torch
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_align import TransformerAlignModel
from torch import Tensor

from nar_plugins.data.dictionary import add_mask
from nar_plugins.generators.base import banned_symbols
from nar_plugins.models.flags import flag
from nar_plugins.modules.fast.refusals import BrokenWeights

# fairseq's activation functions, by their names in CTranslate2
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_accurate": "GELUTanh", "gelu_fast": "GELUTanh", "swish": "SWISH"}
# options of fairseq's transformer that change what it computes, and that CTranslate2 lacks
LACKING = (
    "adaptive_softmax_cutoff",
    "adaptive_input",
    "no_token_positional_embeddings",
    "no_cross_attention",
    "cross_self_attention",
    "base_layers",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
)


class CTranslate2:
    """A fairseq ``transformer``, converted in memory and loaded by CTranslate2.

    Args:
        model: a stock ``TransformerModel`` on the CPU, in float32. source, target: its dictionaries, with ``<mask>``.
        compute_type: CTranslate2's: float32, int8, ...
        threads: that a translation uses.
        device: cpu or cuda.

    Attributes:
        weight_bytes: the size of the weights in this type.

    Raises:
        ValueError: the package is not installed, it lacks the type on this machine, or another model.
    """

    def __init__(self, model, source, target, compute_type: str, threads: int, device: str = "cpu"):
        refuse_missing()
        import ctranslate2

        types = ctranslate2.get_supported_compute_types(device)
        if compute_type not in types:
            raise ValueError(
                f"--compute-type {compute_type}: CTranslate2 has {', '.join(sorted(types))} on this {device}"
            )
        self.source, self.target = symbols(source), symbols(target)
        self.index = {symbol: i for i, symbol in enumerate(self.target)}
        self.pad, self.eos = source.pad(), source.eos()
        banned = banned_symbols(target, add_mask(target), [model])  # as by --generator beam
        self.banned = [[self.target[i]] for i in {*banned.unlearnt, *banned.unwanted}]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model"
            path.mkdir()
            spec = converted(model, self.source, self.target)
            spec.optimize(quantization=compute_type)
            spec.save(str(path))
            self.weight_bytes = (path / "model.bin").stat().st_size
            self.translator = ctranslate2.Translator(
                str(path), device=device, compute_type=compute_type, intra_threads=threads
            )

    def translate(self, sources: Tensor, beam: int = 1, **options) -> List[List[int]]:
        """The best translation's tokens, without ``</s>``, of every source (B, S) int64.

        Args:
            options: of ``ctranslate2.Translator.translate_batch``.
        """
        # without the last </s>, which CTranslate2 adds; one inside of a sentence is a word to fairseq
        lines = [[self.source[token] for token in row if token != self.pad][:-1] for row in sources.tolist()]
        results = self.translator.translate_batch(
            lines, beam_size=beam, suppress_sequences=self.banned, max_input_length=0, **options
        )
        return [[self.index[symbol] for symbol in result.hypotheses[0]] for result in results]


def refuse_missing() -> None:
    """Raise where the package is not installed."""
    if find_spec("ctranslate2") is None:
        raise ValueError("CTranslate2 is not installed: pip install 'nar-plugins[ct2]'")


def symbols(dictionary) -> List[str]:
    """Names for a dictionary's symbols: their numbers, and CTranslate2's own names of the special ones.

    The symbols themselves could be one of CTranslate2's names.
    """
    special = {
        dictionary.bos(): "<s>",
        dictionary.pad(): "<blank>",
        dictionary.eos(): "</s>",
        dictionary.unk(): "<unk>",
    }
    return [special.get(i, str(i)) for i in range(len(dictionary))]


def lacks(model) -> Optional[str]:
    """What a model has that CTranslate2 lacks; None: nothing."""
    if type(model) not in (TransformerModel, TransformerAlignModel):
        return f"a {type(model).__name__}: it decodes fairseq's transformer"
    cfg = model.cfg
    for option in LACKING:
        if getattr(cfg, option, None):
            return f"a transformer with {flag(option)}"
    if cfg.quant_noise.pq > 0 or cfg.quant_noise.scalar > 0:
        return "a transformer with --quant-noise-pq or --quant-noise-scalar"
    if any(part.xformers_att_config for part in (cfg.encoder, cfg.decoder)):
        return "a transformer with --encoder-xformers-att-config or --decoder-xformers-att-config"
    if cfg.activation_fn not in ACTIVATIONS:
        return f"a transformer with --activation-fn {cfg.activation_fn}"
    if model.decoder.project_in_dim is not None or model.decoder.project_out_dim is not None:
        return "a transformer with --decoder-output-dim"
    return None


def converted(model, source: List[str], target: List[str]):
    """CTranslate2's specification of a model, with its weights.

    Args:
        source, target: names of the dictionaries' symbols (``symbols``).

    Raises:
        ValueError: CTranslate2 lacks something that the model has; it is named.
    """
    from ctranslate2.converters import fairseq
    from ctranslate2.specs import TransformerSpec, common_spec, transformer_spec

    reason = lacks(model)
    if reason is not None:
        raise ValueError(f"CTranslate2 cannot decode {reason}")
    if not all(bool(weight.isfinite().all()) for weight in model.state_dict().values()):
        raise BrokenWeights(
            "the model's weights are NaN or infinite (a training that diverged): CTranslate2 would output it"
        )
    cfg, decoder = model.cfg, model.decoder
    shared = {
        "activation": getattr(common_spec.Activation, ACTIVATIONS[cfg.activation_fn]),
        "layernorm_embedding": cfg.layernorm_embedding,
    }
    spec = TransformerSpec(
        transformer_spec.TransformerEncoderSpec(
            len(model.encoder.layers), cfg.encoder.attention_heads, pre_norm=cfg.encoder.normalize_before, **shared
        ),
        transformer_spec.TransformerDecoderSpec(
            len(decoder.layers),
            cfg.decoder.attention_heads,
            pre_norm=cfg.decoder.normalize_before,
            no_final_norm=decoder.layer_norm is None,
            **shared,
        ),
    )
    fairseq.set_transformer_encoder(spec.encoder, model.encoder)
    fairseq.set_transformer_decoder(spec.decoder, decoder)
    spec.register_source_vocabulary(source)
    spec.register_target_vocabulary(target)
    spec.config.decoder_start_token, spec.config.add_source_eos = spec.config.eos_token, True
    spec.validate()
    return spec
