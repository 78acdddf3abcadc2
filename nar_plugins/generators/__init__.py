"""The generators, one a file. All return fairseq's hypotheses: a list for every sentence, best first."""

from nar_plugins.generators import beam  # noqa: F401
from nar_plugins.generators.canvas import dag, mask_predict, noisy_parallel, one_pass  # noqa: F401
from nar_plugins.generators.left_to_right import bang, blockwise  # noqa: F401
