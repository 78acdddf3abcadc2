"""Where the proposals of blockwise decoding come from. Whatever they are, in exact mode the output is the same."""

from typing import List, Optional, Sequence

from nar_plugins.generators.left_to_right.drafters.base import Drafter
from nar_plugins.generators.left_to_right.drafters.heads import HeadsDrafter, SequentialDrafter
from nar_plugins.generators.left_to_right.drafters.jacobi import JacobiDrafter
from nar_plugins.generators.left_to_right.drafters.masks import RowDrafter
from nar_plugins.generators.left_to_right.drafters.text import CopyDrafter, ModelDrafter

HEADS = {"heads": HeadsDrafter, "sequential heads": SequentialDrafter}  # by what a ``block_decoder`` proposes with


def own_drafter(decoders: Sequence, never: Sequence[int], draft_vocab_size: Optional[int] = None) -> Optional[Drafter]:
    """What the models propose themselves: the masks of the first one, or the heads of the first that has some; None
    where there are neither.

    Args:
        decoders: every model's ``block_decoder``. never: indices that are never proposed.
        draft_vocab_size: ``--draft-vocab-size``.
    """
    if decoders[0].proposes == "masks":
        return RowDrafter(decoders, never)
    for number, decoder in enumerate(decoders):
        if decoder.proposes in HEADS:
            return HEADS[decoder.proposes](decoder.decoder, number, never, draft_vocab_size)
    return None


def choose_drafter(config, models: Sequence, decoders: List, dictionary, mask: int, model=None) -> Drafter:
    """``--drafter``.

    Args:
        config: the options of ``blockwise``. decoders: every model's ``block_decoder``. dictionary: the target's.
        model: that of ``--drafter-path``, or None.

    Raises:
        ValueError: the models or the options do not fit it.
    """
    name, own = str(config.drafter), own_drafter(decoders, (mask, dictionary.pad()), config.draft_vocab_size)
    if (name == "model" and model is None) or (name not in ("auto", "model") and model is not None):
        raise ValueError(f"--drafter {name}: --drafter model and --drafter-path CKPT go together")
    if model is not None:
        return ModelDrafter(model, dictionary, mask, config)
    if config.drafter_iterations != 1:
        raise ValueError("--drafter-iterations needs --drafter-path CKPT, a cmlm")
    if name == "heads" and own is None:
        raise ValueError("--drafter heads: the checkpoint has no proposal heads; use --drafter jacobi or copy")
    if name == "copy":
        return CopyDrafter(models, dictionary)
    return JacobiDrafter() if own is None or name == "jacobi" else own
