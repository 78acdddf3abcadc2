"""Which classes of [MASK] cells the loss of BANG has, how many cells each has, and what each counts.

Cell (s, j) predicts target s + j from the targets before s and j masks before it. It is AR where j = 0, NAR where row s
is that of the start of the target (in pre-training: of its span), and bridge otherwise. The first cell of a NAR row is
AR, too: such cells are a class of their own here, ``both``, so that every cell is in one class. (BANG, Qi et al. 2021.)
"""

from typing import Dict, NamedTuple, Optional

from torch import Tensor

from nar_plugins.models.bang.stream_layout import Cells
from nar_plugins.modules.losses import LossPart

CLASSES = ("ar", "nar", "both", "bridge")


class CellObjective(NamedTuple):
    """What ``bang_loss`` asks of ``forward``.

    Attributes:
        weights: what a cell of each of the ``CLASSES`` counts in the loss; None: 1.
        label_smoothing: of every cell's loss.
        sizes: (B, T) int64, the computed cells of every row, from its first; None: all.
        lone: the first cell of every row is computed besides.
        scale: (B,) float64, how many rows' bridge cells each computed row of a sentence stands for; None: 1.
    """

    weights: Optional[Dict[str, float]] = None
    label_smoothing: float = 0.0
    sizes: Optional[Tensor] = None
    lone: bool = True
    scale: Optional[Tensor] = None


ALL_CELLS = CellObjective()


def classes(cells: Cells, starts: Tensor, sees_bos: bool) -> Dict[str, Tensor]:
    """Which of the cells (C,) are of each class, bool.

    Args:
        starts: (B, T) bool, the starts of the target or its spans.
        sees_bos: ``nar_sees_bos``. If not, row 0 is NAR where it is blind; with the start token it is AR.
    """
    ar = cells.offset.eq(0) & ~cells.blind
    nar = starts[cells.sentence, cells.start]
    if not sees_bos:
        nar = nar & (cells.blind | cells.start.gt(0))
    return {"ar": ar & ~nar, "nar": nar & ~ar, "both": ar & nar, "bridge": ~ar & ~nar}


def count_cells(real: Tensor, full: Tensor, starts: Tensor, sees_bos: bool) -> Dict[str, Tensor]:
    """How many cells each class has, computed or not.

    Args:
        real: (B, T) bool, the targets. full: (B, T) int64, all cells of every row. starts, sees_bos: as ``classes``.
    """
    both = (starts if sees_bos else starts[:, 1:]).sum()
    bridge = (full[real & ~starts] - 1).sum()
    return {"ar": real.sum() - both, "nar": full[starts].sum() - both, "both": both, "bridge": bridge}


def cell_weights(members: Dict[str, Tensor], cells: Cells, objective: CellObjective) -> Dict[str, Tensor]:
    """How many cells of its class each computed cell (C,) stands for, float64; 0: it is of another class."""
    scale = 1.0 if objective.scale is None else objective.scale[cells.sentence]
    return {name: member * scale if name == "bridge" else member.double() for name, member in members.items()}


def class_losses(
    losses: Tensor, nll: Tensor, stands_for: Dict[str, Tensor], counts: Dict[str, Tensor], weights: Dict[str, float]
) -> Dict[str, LossPart]:
    """The parts of the loss from the cells' weighted losses and negative log-likelihoods (C,)."""
    return {
        name: LossPart(
            (losses * stands_for[name].ne(0)).sum(), (nll * stands_for[name].to(nll)).sum(), counts[name], weights[name]
        )
        for name in CLASSES
    }
