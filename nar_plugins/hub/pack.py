"""``nar-pack``: a checkpoint becomes a folder that translates without the data and without unpickling."""

from pathlib import Path
from typing import Any, Dict, Optional

from fairseq import utils

from nar_plugins.checkpoint_io.read import read_upgraded
from nar_plugins.data.splits import folder_of
from nar_plugins.data.whole_file import check_new_folder, folder_written_whole
from nar_plugins.hub import folder
from nar_plugins.hub.options import LANGUAGES
from nar_plugins.hub.translator import from_pretrained


def pack(
    path: str, data: str, out: Path, options: Dict[str, Any], bleu: Optional[str] = None, command: Optional[str] = None
) -> None:
    """Write the folder ``out``; it is complete or not there.

    Args:
        path: one checkpoint. data: the folder with its dictionaries.
        options: of sub-words and languages, keywords of ``from_pretrained``.
        bleu, command: for the card: the model's BLEU, and the command that measured it.

    Raises:
        ValueError: the checkpoint, the data or an option cannot be used.
        OSError: the folder cannot be written.
    """
    if len(utils.split_paths(path)) > 1:
        raise ValueError(f"{path} is an ensemble: a folder holds one model; nar-average makes one of several")
    check_new_folder(out, "--out")
    translator = from_pretrained(path, data, cpu=True, **options)  # everything is checked before anything is written
    model, task = translator.decoder.models[0], translator.task
    state = read_upgraded(path)
    given = state["model"]
    weights = {  # a file in half precision stays one
        name: tensor.to(given[name].dtype) if name in given else tensor for name, tensor in model.state_dict().items()
    }
    languages = (task.cfg.source_lang, task.cfg.target_lang)
    contents = folder.Contents(
        folder.plain_arguments(state["cfg"].model, path),
        weights,
        {language: Path(folder_of(data), f"dict.{language}.txt") for language in languages},
        {name: value for name, value in options.items() if name not in LANGUAGES},
    )
    with folder_written_whole(out) as temporary:
        folder.write(temporary, contents)
        text = folder.card(out.name, contents, translator.decoder.name, bleu, command)
        (temporary / folder.CARD).write_text(text, encoding="utf-8")
        from_pretrained(temporary, cpu=True)  # what is kept can be read
