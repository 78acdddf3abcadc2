"""fairseq's flags that the models of this package do not support.

``TransformerModel.add_args`` gives every model all of its flags, beside those of the trainer. A flag that nothing reads
is refused by name, because an ignored flag misleads.
"""

from typing import Dict, Iterable

# no model here has the parts that these flags change
UNSUPPORTED = (
    "adaptive_softmax_cutoff",
    "base_layers",
    "cross_self_attention",
    "decoder_xformers_att_config",
    "encoder_xformers_att_config",
    "no_cross_attention",
    "quant_noise_scalar",
)
UNSUPPORTED_IN_PARALLEL = (*UNSUPPORTED, "adaptive_input", "decoder_layerdrop")
UNSUPPORTED_BY_BANG = (
    *UNSUPPORTED_IN_PARALLEL,
    "decoder_embed_path",
    "decoder_normalize_before",
    "encoder_embed_path",
    "encoder_normalize_before",
    "no_token_positional_embeddings",
    "quant_noise_pq",
)

# flags that nothing here reads, with fairseq's defaults; refused in training only, so that old checkpoints still decode
UNREAD = {
    "adaptive_input": False,
    "adaptive_softmax_dropout": 0,
    "adaptive_softmax_factor": 4,
    "base_shuffle": 1,
    "base_sublayers": 1,
    "char_inputs": False,
    "load_alignments": False,
    "quantization_config_path": None,
    "sentence_avg": False,  # every predicted token has the same weight
    "tie_adaptive_proj": False,
    "tie_adaptive_weights": False,
}
UNREAD_IN_PARALLEL = {**UNREAD, "min_params_to_wrap": int(1e8)}  # a decoder calls its layers outside of their forward
UNREAD_WITHOUT_PQ = {**UNREAD_IN_PARALLEL, "quant_noise_pq": 0, "quant_noise_pq_block_size": 8}
UNREAD_BY_BANG = {**UNREAD_WITHOUT_PQ, "no_decoder_final_norm": False}

# flags that no model is trained with here, fairseq's own included, and what to do instead
UNTRAINABLE = {
    # the targets would keep the indices of their separate dictionary
    "merge_src_tgt_embed": " merges the dictionaries and not the data: leave it out, and binarise with "
    "fairseq-preprocess --joined-dictionary",
    # it has no logits, and generators ban <mask> in the logits
    "adaptive_softmax_cutoff": ": nothing here decodes such a model; leave it out, or train and decode it under "
    "--task translation",
}


def refuse_unsupported(args, flags: Iterable[str]) -> None:
    """Raise a ValueError for the first of ``flags`` that is set, and for values that fairseq cannot build."""
    for name in flags:
        if getattr(args, name, None):
            raise ValueError(f"{flag(name)} does not work with --arch {args.arch}: leave it out")
    for side in ("encoder", "decoder"):
        # fairseq's parser makes a list, but its models expect a string
        if isinstance(getattr(args, f"{side}_layers_to_keep", None), list):
            raise ValueError(
                f"--{side}-layers-to-keep prunes a trained model when it is loaded: give --{side}-layers here, and "
                "fairseq-generate --model-overrides "
                "\"{'encoder_layers_to_keep': '0,1', 'decoder_layers_to_keep': '0,1'}\""
            )
    shared = getattr(args, "share_decoder_input_output_embed", False) or getattr(args, "share_all_embeddings", False)
    output, width = getattr(args, "decoder_output_dim", None), getattr(args, "decoder_embed_dim", None)
    if shared and output is not None and width is not None and int(output) != width:
        raise ValueError(
            f"--decoder-output-dim {output}: the output shares the decoder's embeddings, which are {width} wide: leave "
            "it out"
        )


def refuse_untrainable(args, name: str) -> None:
    """Raise the ValueError of ``UNTRAINABLE`` where the flag is set, for every model."""
    if getattr(args, name, None):
        raise ValueError(f"{flag(name)}{UNTRAINABLE[name]}")


def refuse_unread(args, flags: Dict[str, object]) -> None:
    """Raise a ValueError that names the first of ``flags`` that has another value than its default."""
    for name, default in flags.items():
        value = getattr(args, name, None)
        if value is not None and value != default:
            raise ValueError(f"{flag(name)} does not work with --arch {args.arch}: leave it out")


def layers(args, side: str) -> int:
    """The number of layers of the encoder or decoder; ``--model-overrides`` may keep only some of them."""
    kept = getattr(args, f"{side}_layers_to_keep", None)
    return len(kept.split(",")) if kept else getattr(args, f"{side}_layers")


def flag(name: str) -> str:
    """The name of an option on the command line."""
    return f"--{name.replace('_', '-')}"
