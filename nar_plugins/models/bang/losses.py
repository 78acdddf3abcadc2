"""The classes of BANG's masks, their sizes and their losses.

Mask (s, j) predicts target s + j from the targets before s and j masks before it. It is AR where j = 0, NAR where row s
is that of the start of the target (in pre-training: of its span), and bridge otherwise. The first mask of a NAR row is
AR, too. Such masks are a class ``both``, so that every mask is in one class. (BANG, Qi et al. 2021.)
"""

from typing import Dict, NamedTuple, Optional

from torch import Tensor

from nar_plugins.models.bang.stream_layout import MaskPositions
from nar_plugins.modules.losses import LossPart

CLASSES = ("ar", "nar", "both", "bridge")


class BangObjective(NamedTuple):
    """What ``bang_loss`` asks of ``forward``.

    Attributes:
        weights: the weight of a mask of each of the ``CLASSES`` in the loss; None: 1.
        label_smoothing: of the loss of every mask.
        counts: (B, T) int64, how many masks of every row are computed, from its first; None: all.
        with_ar: the AR mask of every row is computed besides.
        bridge_scale: (B,) float64, how many rows' bridge masks each computed row of a sentence stands for; None: 1.
    """

    weights: Optional[Dict[str, float]] = None
    label_smoothing: float = 0.0
    counts: Optional[Tensor] = None
    with_ar: bool = True
    bridge_scale: Optional[Tensor] = None


ALL_MASKS = BangObjective()


def class_members(masks: MaskPositions, starts: Tensor, nar_sees_bos: bool) -> Dict[str, Tensor]:
    """Which of the masks (C,) are in each class, bool.

    Args:
        starts: (B, T) bool, the starts of the target or its spans.
        nar_sees_bos: False: the masks of row 0 that do not see the start token are NAR; the one that sees it is AR.
    """
    ar = masks.offset.eq(0) & ~masks.sees_no_bos
    nar = starts[masks.sentence, masks.start]
    if not nar_sees_bos:
        nar = nar & (masks.sees_no_bos | masks.start.gt(0))
    return {"ar": ar & ~nar, "nar": nar & ~ar, "both": ar & nar, "bridge": ~ar & ~nar}


def class_counts(real: Tensor, counts: Tensor, starts: Tensor, nar_sees_bos: bool) -> Dict[str, Tensor]:
    """The number of masks of each class, computed or not.

    Args:
        real: (B, T) bool, the targets. counts: (B, T) int64, all masks of every row.
        starts, nar_sees_bos: as in ``class_members``.
    """
    both = (starts if nar_sees_bos else starts[:, 1:]).sum()
    bridge = (counts[real & ~starts] - 1).sum()
    return {"ar": real.sum() - both, "nar": counts[starts].sum() - both, "both": both, "bridge": bridge}


def class_shares(members: Dict[str, Tensor], masks: MaskPositions, objective: BangObjective) -> Dict[str, Tensor]:
    """How many masks of a class each computed mask (C,) stands for, float64; 0 for masks of other classes."""
    scale = 1.0 if objective.bridge_scale is None else objective.bridge_scale[masks.sentence]
    return {name: member * scale if name == "bridge" else member.double() for name, member in members.items()}


def class_losses(
    losses: Tensor, nll: Tensor, shares: Dict[str, Tensor], counts: Dict[str, Tensor], weights: Dict[str, float]
) -> Dict[str, LossPart]:
    """The parts of the loss, from the weighted losses and negative log-likelihoods (C,) of the masks."""
    return {
        name: LossPart(
            (losses * shares[name].ne(0)).sum(), (nll * shares[name].to(nll)).sum(), counts[name], weights[name]
        )
        for name in CLASSES
    }
