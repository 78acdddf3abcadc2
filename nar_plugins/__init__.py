"""nar_plugins: non-autoregressive text generation for fairseq, as one ``--user-dir`` package.

Importing the package registers its tasks, models, criterions and generators with fairseq. Where to read on:

==================  ==========================================================================================
``tasks/``          what a run is: dictionaries, data, noise, which generator, BLEU in validation
``data/``           noise (target -> canvas), canvas (lengths -> blank canvas), source copies, fertilities, spans
``models/``         one file a method, with its architectures
``modules/``        the bricks of the models: attention, layers, heads, CTC, glancing, rows of masks, the fused loss
``criterions/``     the losses; they add the parts that a model's ``forward`` returns, and log each by name
``generators/``     one file a decoding loop, behind one registry
``distill/``        distilled corpora and word alignments
``measure/``        quality and speed, for the recipes and benchmarks
``cli/``            the ``nar-*`` commands
==================  ==========================================================================================
"""

from nar_plugins import compat

compat.apply()

# fairseq imports tasks/ and models/ of a --user-dir by itself, and nothing else; our own commands need all of them.
from nar_plugins import criterions, generators, models, tasks  # noqa: E402,F401

__version__ = "0.1.0"
