"""Workarounds that fairseq needs on current Python and PyTorch: one function each, with its upstream issue.

No other part of this package depends on versions or platforms. ``apply`` runs once, when the package is imported;
calling a function again changes nothing.
"""

import logging
from importlib.util import find_spec

if find_spec("fairseq") is None:  # no requirement of this package: pip would compile it over another fairseq
    raise ModuleNotFoundError(
        "nar_plugins needs fairseq, and none is installed: pip install 'nar-plugins[fairseq]', or use a checkout's "
        "scripts/setup.sh"
    )


def leave_out_advice_on_speech() -> None:
    """Suppress "Please install tensorboardX", which fairseq's text-to-speech logs when it is imported.

    fairseq's own commands import it before they read ``--user-dir``; there the line cannot be suppressed. (No upstream
    issue.)
    """
    logging.getLogger("fairseq.tasks.text_to_speech").addFilter(no_tensorboard)  # adding a filter twice has no effect


def no_tensorboard(record: logging.LogRecord) -> bool:
    return "tensorboardX" not in record.getMessage()


leave_out_advice_on_speech()  # before the first import of fairseq

from nar_plugins.compat import checkpoints, commands, data, help_pages, models, parallel, registration  # noqa: E402
from nar_plugins.compat.checkpoints import CheckpointError, checked  # noqa: E402,F401


def apply() -> None:
    """Apply every workaround. fairseq's files stay as they are."""
    checkpoints.allow_namespace_in_checkpoints()
    checkpoints.read_checkpoints_safely()
    checkpoints.explain_unreadable_checkpoints()
    checkpoints.explain_foreign_optimizer_states()
    checkpoints.name_checkpoints_that_cannot_be_written()
    checkpoints.keep_the_tasks_state()
    commands.keep_results_of_a_run_before()
    commands.generate_the_shard_that_is_asked_for()
    data.bucket_lengths()
    data.read_older_data()
    help_pages.show_all_flags_in_help()
    commands.refuse_workers_without_gpu()
    data.keep_no_frames_of_missing_options()
    data.stop_loader_threads_at_exit()
    models.encode_by_plain_layers()
    parallel.name_no_device_on_cpus()
    registration.offer_sub_words_without_options()
