"""What the architectures of all models are made with."""


def default(args, **values) -> None:
    """Set what the user did not."""
    for name, value in values.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


def sizes(args, dim: int, ffn: int, heads: int, layers: int) -> None:
    """The same size on both sides."""
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
    """Turn on switches that cannot be turned off by the command line (use the plain architecture for that)."""
    for flag in flags:
        setattr(args, flag, True)
