"""An adaptive softmax has no logits, in which generators ban ``<mask>``. It is refused by name."""

from fairseq.modules import AdaptiveSoftmax

ADAPTIVE = "models of --adaptive-softmax-cutoff are decoded by fairseq's own --task translation only"


def refuse_adaptive_softmax(model, what: str) -> None:
    """Raise a ValueError for a model with an adaptive softmax.

    Args:
        what: the beginning of the message: what does not work.
    """
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise ValueError(f"{what}: {ADAPTIVE}")


def refuse_other_classes(module: AdaptiveSoftmax, state_dict, prefix, *unused) -> None:
    """A ``load_state_dict`` pre-hook: the last class would need a row for ``<mask>`` too.

    Raises:
        ValueError: the checkpoint's tables have other sizes.
    """
    for name, value in module.state_dict().items():
        stored = state_dict.get(prefix + name)
        if stored is not None and stored.shape != value.shape:
            raise ValueError(
                f"{prefix}{name} is {tuple(stored.shape)} in the checkpoint and {tuple(value.shape)} here: {ADAPTIVE}"
            )
