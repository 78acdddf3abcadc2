"""What today's Python and PyTorch need from fairseq: one function a workaround, each with the upstream issue it
answers.

Nothing else in this package mentions versions or fairseq's defects of platform. ``apply`` is called once, when the
package is imported; every function can be called again without harm.
"""

import logging


def leave_out_advice_on_speech() -> None:
    """Let no command begin with "Please install tensorboardX", which fairseq's text-to-speech says when it is imported.

    fairseq's commands import it before they read ``--user-dir``: there the line cannot be stopped. (No upstream issue.)
    """
    logging.getLogger("fairseq.tasks.text_to_speech").addFilter(no_tensorboard)  # the same one is added once only


def no_tensorboard(record: logging.LogRecord) -> bool:
    return "tensorboardX" not in record.getMessage()


leave_out_advice_on_speech()  # before the first import of fairseq

from nar_plugins.compat import checkpoints, commands, data, parallel  # noqa: E402
from nar_plugins.compat.checkpoints import CheckpointError, checked  # noqa: E402,F401


def apply() -> None:
    """Apply every workaround. fairseq's files stay as they are."""
    checkpoints.allow_namespace_in_checkpoints()
    checkpoints.read_checkpoints_safely()
    checkpoints.explain_unreadable_checkpoints()
    checkpoints.explain_foreign_optimizer_states()
    commands.keep_results_of_a_run_before()
    data.bucket_lengths()
    data.read_older_data()
    commands.show_all_flags_in_help()
    commands.refuse_workers_without_gpu()
    data.stop_loader_threads_at_exit()
    parallel.name_no_device_on_cpus()
