"""fairseq's flags that a model of this package does not serve.

``TransformerModel.add_args`` puts all of its flags before every model, and the groups of the trainer stand beside them.
One
that nothing here reads is refused by name: an ignored flag misleads.
"""

from typing import Dict, Iterable

# what these change of a model no model here can be made of
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

# what nothing here reads, with fairseq's default; refused in training only, so that what was trained with it still
# decodes
UNREAD = {
    "adaptive_input": False,
    "adaptive_softmax_dropout": 0,
    "adaptive_softmax_factor": 4,
    "base_shuffle": 1,
    "base_sublayers": 1,
    "char_inputs": False,
    "load_alignments": False,
    "quantization_config_path": None,
    "sentence_avg": False,  # every predicted token weighs the same
    "tie_adaptive_proj": False,
    "tie_adaptive_weights": False,
}
UNREAD_IN_PARALLEL = {**UNREAD, "min_params_to_wrap": int(1e8)}  # a decoder asks its layers outside of their forward
UNREAD_WITHOUT_PQ = {**UNREAD_IN_PARALLEL, "quant_noise_pq": 0, "quant_noise_pq_block_size": 8}
UNREAD_BY_BANG = {**UNREAD_WITHOUT_PQ, "no_decoder_final_norm": False}

# with which no model is trained here, fairseq's own included, and what to do
UNTRAINABLE = {
    # the targets would keep the numbers of their own dictionary
    "merge_src_tgt_embed": " merges the dictionaries and not the data: leave it out, and binarise with "
    "fairseq-preprocess --joined-dictionary",
    # it has no logits, in which generators ban <mask>
    "adaptive_softmax_cutoff": ": nothing here decodes such a model; leave it out, or train and decode it under "
    "--task translation",
}


def refuse_unsupported(args, flags: Iterable[str]) -> None:
    """Raise a ValueError that names the first of ``flags`` that is set, or that fairseq's model cannot be built
    with.
    """
    for name in flags:
        if getattr(args, name, None):
            raise ValueError(f"{flag(name)} does not work with --arch {args.arch}: leave it out")
    for side in ("encoder", "decoder"):
        # fairseq's parser makes a list, its models want text
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
    """Raise the ValueError of ``UNTRAINABLE`` where its flag is set, whatever the model is."""
    if getattr(args, name, None):
        raise ValueError(f"{flag(name)}{UNTRAINABLE[name]}")


def refuse_unread(args, flags: Dict[str, object]) -> None:
    """Raise a ValueError that names the first of ``flags`` that has another value than its default."""
    for name, default in flags.items():
        value = getattr(args, name, None)
        if value is not None and value != default:
            raise ValueError(f"{flag(name)} does not work with --arch {args.arch}: leave it out")


def layers(args, side: str) -> int:
    """How many layers the encoder or decoder will have; ``--model-overrides`` may keep some only."""
    kept = getattr(args, f"{side}_layers_to_keep", None)
    return len(kept.split(",")) if kept else getattr(args, f"{side}_layers")


def flag(name: str) -> str:
    """An option as it is typed."""
    return f"--{name.replace('_', '-')}"
