"""nar_plugins: non-autoregressive text generation for fairseq, as one ``--user-dir`` package.

Importing the package registers its tasks, models, criterions and generators with fairseq. Where to read on (in a
checkout, docs/start_here.md says which file answers which question):

==================  ==========================================================================================
``tasks/``          what a run is: dictionaries, data, batches, noise, precision, generator, BLEU in validation
``criterions/``     weigh, sum and log by name the parts of the loss that a model's ``forward`` computes
``generators/``     the decoding loops, behind one registry: ``canvas/`` predicts all positions in each pass,
                    ``left_to_right/`` appends several tokens per pass, ``beam.py`` wraps fairseq's search
``models/``         the methods and their architectures: ``cmlm.py``, ``nat/``, ``dag/``, ``blockwise/``, ``bang/``;
                    ``base.py`` is what the parallel ones share
``modules/``        what several methods use: attention, layers, caches, length head, CTC, the fused loss
``checkpoint_io/``  checkpoints beside fairseq's own resume: the ``<mask>`` row, teachers, drafters, published formats
``data/``           dictionaries, checks, noise, fertilities, span masking, BLEU's tokenisers
``hub/``            models from Python and in packed folders; the one loader for decoding
``corpora/``        distilled corpora and word alignments
``export/``         models as ONNX graphs, and their run without PyTorch
``measure/``        quality and speed, for the recipes and benchmarks
``cli/``            the ``nar-*`` commands
``compat/``         what today's Python and PyTorch need from fairseq, one function per upstream issue
==================  ==========================================================================================
"""

from nar_plugins import compat

compat.apply()

# fairseq imports tasks/ and models/ of a --user-dir by itself, and nothing else; our own commands need all of them.
from nar_plugins import criterions, generators, models, tasks  # noqa: E402,F401

__version__ = "0.1.0"
