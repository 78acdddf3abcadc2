"""nar_plugins: non-autoregressive text generation for fairseq, as one ``--user-dir`` package.

Importing the package registers its tasks, models, criterions and generators with fairseq. Where to read on:

==================  ==========================================================================================
``tasks/``          what a run is: dictionaries, data, noise, which generator, BLEU in validation
``criterions/``     the losses, each part logged by name
``generators/``     the decoding loops, behind one registry: ``canvas/`` all positions at once, ``left_to_right/``
``models/``         one folder or file a method, with its architectures
``checkpoint_io/``  every checkpoint that is read besides fairseq's own: dictionaries compared, the ``<mask>`` row
                    filled, parts copied, teachers loaded, releases converted
``modules/``        what several methods use: attention, layers, caches, CTC, the length head, the fused loss
``data/``           dictionaries, which file a split is, noise (target -> canvas), fertilities, spans, checks
``corpora/``        corpora made by models: distilled targets, word alignments and fertilities
``measure/``        quality and speed, for the recipes and benchmarks
``cli/``            the ``nar-*`` commands
``compat/``         what today's Python and PyTorch need from fairseq
==================  ==========================================================================================
"""

from nar_plugins import compat

compat.apply()

# fairseq imports tasks/ and models/ of a --user-dir by itself, and nothing else; our own commands need all of them.
from nar_plugins import criterions, generators, models, tasks  # noqa: E402,F401

__version__ = "0.1.0"
