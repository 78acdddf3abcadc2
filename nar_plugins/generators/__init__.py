"""The decoding loops, one a file. All return fairseq's hypotheses: for every sentence a list, best first."""

from nar_plugins.generators import bang, blockwise, mask_predict, noisy_parallel, one_pass  # noqa: F401
