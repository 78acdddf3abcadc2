"""The decoding loops, one a file. All return fairseq's hypotheses: for every sentence a list, best first."""

from nar_plugins.generators import beam  # noqa: F401
from nar_plugins.generators.canvas import mask_predict, noisy_parallel, one_pass  # noqa: F401
from nar_plugins.generators.left_to_right import bang, blockwise  # noqa: F401
