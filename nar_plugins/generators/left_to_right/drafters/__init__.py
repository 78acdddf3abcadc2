"""The drafters of blockwise decoding. With ``--accept exact`` the output does not depend on the drafter."""

from typing import List, Optional, Sequence

from nar_plugins.generators.left_to_right.drafters.base import Drafter
from nar_plugins.generators.left_to_right.drafters.heads import HeadsDrafter, SequentialDrafter
from nar_plugins.generators.left_to_right.drafters.jacobi import JacobiDrafter
from nar_plugins.generators.left_to_right.drafters.masks import MaskDrafter
from nar_plugins.generators.left_to_right.drafters.text import CopyDrafter, ModelDrafter

HEADS = {"heads": HeadsDrafter, "sequential heads": SequentialDrafter}  # by the ``proposes`` of a ``block_decoder``


def self_drafter(
    decoders: Sequence, banned: Sequence[int], draft_vocab_size: Optional[int] = None, rough: bool = False
) -> Optional[Drafter]:
    """The drafter that is part of the models: the masks of the first, or the heads of the first that has some; None
    where there is neither.

    Args:
        decoders: every model's ``block_decoder``. banned: indices that are never proposed.
        draft_vocab_size: ``--draft-vocab-size``. rough: the output does not depend on the drafts (``HeadsDrafter``).
    """
    if decoders[0].proposes == "masks":
        return MaskDrafter(decoders, banned)
    for number, decoder in enumerate(decoders):
        if decoder.proposes in HEADS:
            return HEADS[decoder.proposes](decoder.decoder, number, banned, draft_vocab_size, rough)
    return None


def choose_drafter(
    config, models: Sequence, decoders: List, dictionary, mask: int, model=None, rough: bool = False
) -> Drafter:
    """The drafter that ``--drafter`` names.

    Args:
        config: the options of ``blockwise``. decoders: every model's ``block_decoder``. dictionary: the target's.
        model: that of ``--drafter-path``, or None. rough: as in ``self_drafter``.

    Raises:
        ValueError: the models or the options do not fit the drafter.
    """
    name = str(config.drafter)
    built_in = self_drafter(decoders, (mask, dictionary.pad()), config.draft_vocab_size, rough)
    if (name == "model" and model is None) or (name not in ("auto", "model") and model is not None):
        raise ValueError(f"--drafter {name}: --drafter model and --drafter-path CKPT go together")
    if model is not None:
        return ModelDrafter(model, dictionary, mask, config, models[0])
    if config.drafter_iterations != 1:
        raise ValueError("--drafter-iterations needs --drafter-path CKPT, a cmlm")
    if name == "heads" and built_in is None:
        raise ValueError("--drafter heads: the checkpoint has no proposal heads; use --drafter jacobi or copy")
    if name == "copy":
        return CopyDrafter(models, dictionary)
    return JacobiDrafter() if built_in is None or name == "jacobi" else built_in
