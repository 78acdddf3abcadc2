"""Helpers of the architectures: each is a list of numbers with its source."""


def default(args, **values) -> None:
    """Set the arguments that the user did not set."""
    for name, value in values.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


def sizes(args, dim: int, ffn: int, heads: int, layers: int) -> None:
    """The same sizes for encoder and decoder."""
    for side in ("encoder", "decoder"):
        default(
            args,
            **{
                f"{side}_embed_dim": dim,
                f"{side}_ffn_embed_dim": ffn,
                f"{side}_attention_heads": heads,
                f"{side}_layers": layers,
            },
        )


def switch_on(args, *flags: str) -> None:
    """Turn on switches. The command line cannot turn them off: take the plain architecture for that."""
    for flag in flags:
        setattr(args, flag, True)
