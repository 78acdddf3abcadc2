"""The task of parallel text, for every model of this package and for fairseq's own ``transformer``."""

import json
import logging
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.dataclass.configs import GenerationConfig
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from nar_plugins.checkpoint_io.roles import check_teacher
from nar_plugins.checkpoint_io.teachers import load_drafter, load_teacher
from nar_plugins.compat.commands import at_end_of_command, output_of_generation
from nar_plugins.data import bleu, checks, reserved, splits
from nar_plugins.data.dictionary import add_mask, unreadable_symbols
from nar_plugins.data.fertility import FertilityDataset, fertility_path
from nar_plugins.data.inference import InferenceDataset, select_sentences
from nar_plugins.data.shards import Shard
from nar_plugins.generators import registry
from nar_plugins.generators.hypothesis import empty_hypothesis
from nar_plugins.generators.option_values import check_json, check_values, with_new_names
from nar_plugins.generators.options import INTERACTIVE, generation_options, refuse, refuse_foreign, refuse_options
from nar_plugins.models.flags import flag
from nar_plugins.modules.fast.refusals import refuse_device
from nar_plugins.tasks.base import NarTask, NarTaskConfig
from nar_plugins.tasks.validation import log_bleu, validation_bleu

logger = logging.getLogger(__name__)

BOUNDS = {"max_len_a": 2, "max_len_b": 20}  # output lengths in validation


@dataclass
class NarTranslationBase(NarTaskConfig, TranslationConfig):
    generator: str = field(
        default="auto",
        metadata={"help": "the generator; auto: the first that the checkpoint's model names; beam: fairseq's search"},
    )
    eval_bleu_tokenize: Optional[ChoiceEnum(bleu.TOKENIZERS)] = field(
        default=None,
        metadata={
            "help": "sacreBLEU's tokeniser for --eval-bleu; unset: zh, ja-mecab, ko-mecab or char where the target "
            "language needs it, else 13a, which needs blanks between words"
        },
    )


# every generator's options become flags of fairseq-train, -generate and -interactive
NarTranslationConfig = registry.with_generator_options(NarTranslationBase)


@register_task("nar_translation", dataclass=NarTranslationConfig)
class NarTranslationTask(NarTask, TranslationTask):
    """Translation with fairseq's data, under these conventions.

    Both sides are ``w .. </s>``, always padded on the right. ``<mask>`` is the last symbol of both dictionaries.
    Validation, generation and interactive translation keep every sentence. Noise is a function of (seed, update,
    sentence) and batches of (seed, epoch), so a resumed run continues exactly like an uninterrupted one.
    """

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        checks.check_dictionaries(src_dict, tgt_dict)
        add_mask(src_dict)
        self.mask_index = add_mask(tgt_dict)
        self.needs_fertilities = False  # the model's, set when it is built
        self.bleu = validation_bleu(cfg, tgt_dict)
        self.parallel = False  # whether a model is parallel, set when it is built
        self.for_validation = False  # whether build_generator is called for --eval-bleu
        self.source_readers = []  # models besides the decoding ones that read the source: rescorer, drafter
        self.lines_read = 0  # by fairseq-interactive

    @classmethod
    def add_args(cls, parser):
        """The flags of the task and of all generators registered so far."""
        registry.extend_tasks()
        super().add_args(parser)

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        """Load the dictionaries; languages are found as fairseq finds them."""
        cfg.left_pad_source = cfg.left_pad_target = False
        folder = splits.folder_of(cfg.data)
        cfg.source_lang, cfg.target_lang = splits.find_languages(folder, cfg.source_lang, cfg.target_lang)
        return super().setup_task(cfg, **kwargs)

    # -- data ----------------------------------------------------------------------------------------------------------

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Load a split; raise for missing files or wrong tokens."""
        source, target = self.cfg.source_lang, self.cfg.target_lang
        folder = splits.folder_of(self.cfg.data, epoch if split == self.cfg.train_subset else 1)
        checks.check_files(folder, split, source, target, self.cfg.dataset_impl)
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        dataset = self.datasets[split]
        training = "task_cfg" not in kwargs  # fairseq-generate and -validate pass the checkpoint's
        min_tokens = checks.min_tokens_to_refuse(split == self.cfg.train_subset, training)
        sides = {"src": (self.src_dict, source), "tgt": (self.tgt_dict, target)}
        for side, (dictionary, language) in sides.items():
            checks.check_tokens(getattr(dataset, side), dictionary, f"{split} ({language})", min_tokens)
        blank = int(((dataset.src_sizes <= 1) | (dataset.tgt_sizes <= 1)).sum())
        if blank:
            logger.warning(f"{split}: {blank} of {len(dataset)} pairs have an empty side; they are kept")
        if self.cfg.truncate_source:
            longest = self.cfg.max_source_positions
            logger.warning(
                f"{split}: {checks.cut_sources(dataset.src)} of {len(dataset)} sources are cut to {longest} tokens"
            )
        for side, (dictionary, language) in sides.items():
            text = reserved.replace_reserved(getattr(dataset, side), dictionary, f"{split} ({language})", self.parallel)
            setattr(dataset, side, text)
        files = self.fertility_files(folder, split, combine)
        if self.needs_fertilities and (training or all(file.exists() for file in files)):
            if self.cfg.truncate_source:
                raise ValueError("--truncate-source cuts what the fertilities count: leave it out")
            try:
                self.datasets[split] = FertilityDataset(dataset, *files)
            except ValueError as error:
                if training:
                    raise
                logger.warning(f"{error}; only a loss needs them")  # generation does not

    def fertility_files(self, folder: str, split: str, combine: bool) -> List[Path]:
        """The fertility files of a split and of those that fairseq combines with it (split1 ...), in its order."""
        source, target = self.cfg.source_lang, self.cfg.target_lang
        names = [split]
        if combine:
            names = splits.combined_splits(folder, split, source, target, self.cfg.dataset_impl)
        upsampled = names[:1] * (self.cfg.upsample_primary if len(names) > 1 else 1)
        return [fertility_path(folder, name, source, target) for name in upsampled + names[1:]]

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        """The lines given to ``fairseq-interactive``, padded on the right and read as in training."""
        return InferenceDataset(
            [self.as_read(tokens) for tokens in src_tokens],
            src_lengths,
            self.source_dictionary,
            tgt_dict=self.target_dictionary,
            left_pad_source=False,
            constraints=constraints,
        )

    def as_read(self, tokens: Tensor) -> Tensor:
        """Source tokens (S,) as the model reads them: a parallel one has no padding and no mask as words."""
        if not self.parallel:
            return tokens
        return reserved.as_unknown(tokens, unreadable_symbols(self.source_dictionary), self.source_dictionary.unk())

    def get_batch_iterator(self, dataset, *args, **kwargs):
        """fairseq's batches; an ``InferenceDataset`` cuts or marks sources that are too long.

        The output of ``fairseq-generate`` begins with the shard, where it is asked for one.

        Raises:
            ValueError: a sentence of a data set is longer than ``--max-tokens``, or there are more shards than batches.
        """
        positions, max_tokens = kwargs.get("max_positions"), kwargs.get("max_tokens")
        skip = kwargs.get("ignore_invalid_inputs", False)
        if isinstance(dataset, InferenceDataset):
            hub = kwargs.get("disable_iterator_cache", False)  # whose lines are a list; interactive's are one stream
            first_line = 0 if hub else self.lines_read
            limit = self.max_source_tokens(positions)
            dataset.bound(limit, max_tokens, self.cfg.truncate_source, skip, first_line)
            self.lines_read += len(dataset)
        try:
            iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        except (AssertionError, IndexError) as error:
            # in training --max-tokens limits fairseq's positions: an IndexError where no sentence is left
            if max_tokens is not None:
                checks.check_batch_size(
                    dataset, max_tokens, positions if skip and isinstance(error, AssertionError) else None
                )
            raise
        # fairseq 0.12.2 has no IndexError, and later only "The dataset is empty"
        if max_tokens is not None and positions is not None and not iterator.frozen_batches:
            if all(limit is not None and limit <= max_tokens for limit in positions):  # in training
                checks.check_batch_size(dataset, max_tokens)
        output, shards = output_of_generation(), kwargs.get("num_shards", 1)
        if output is not None and shards > 1:
            if shards > len(iterator.frozen_batches):  # fairseq divides by the time of the empty shard's decoding
                raise ValueError(
                    f"--num-shards {shards}: there are {len(iterator.frozen_batches)} batches: give fewer shards or a "
                    "smaller --batch-size"
                )
            print(self.shard(dataset, kwargs["shard_id"], shards).line(), file=output)
        return iterator

    def max_source_tokens(self, positions: Optional[Tuple[int, int]]) -> Optional[int]:
        """The most tokens of a source that every model can read; None: no limit.

        Args:
            positions: of the task and the decoding models, source and target; the rescorer and the drafter have theirs.
        """
        limits = [model.max_positions()[0] for model in self.source_readers]
        return min(limits + [positions[0]] * (positions is not None), default=None)

    def shard(self, dataset, number: int, shards: int) -> Shard:
        """What ``nar-merge`` has to know of a shard of a split."""
        split = next(name for name, other in self.datasets.items() if other is dataset)
        languages = f"{self.cfg.source_lang}-{self.cfg.target_lang}"
        tokens = (int(sizes.sum()) for sizes in (dataset.src_sizes, dataset.tgt_sizes))
        return Shard(number, shards, f"{split} {languages}", len(dataset), *tokens)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        """fairseq's hypotheses; empty ones for sources that ``InferenceDataset`` marks as too long."""
        if "id" not in sample:  # only fairseq-interactive's batches have none
            refuse(INTERACTIVE, "any", generator.options)
        readable = sample["net_input"]["src_lengths"].gt(0)
        if bool(readable.all()):
            return super().inference_step(generator, models, sample, prefix_tokens, constraints)
        sentences, hypotheses = readable.nonzero().squeeze(1), iter(())
        pad, eos = self.source_dictionary.pad(), self.target_dictionary.eos()
        if len(sentences):
            forced = (None if tensor is None else tensor[sentences] for tensor in (prefix_tokens, constraints))
            hypotheses = iter(
                super().inference_step(generator, models, select_sentences(sample, sentences, pad), *forced)
            )
        return [next(hypotheses) if decoded else [empty_hypothesis(eos)] for decoded in readable.tolist()]

    # -- models and generators -----------------------------------------------------------------------------------------

    def build_model(self, cfg, from_checkpoint=False):
        """The model; it sets ``needs_fertilities`` and ``parallel`` of the task."""
        if self.cfg.eval_bleu:
            for name in ("eval_bleu_args", "eval_bleu_detok_args"):
                check_json(name, getattr(self.cfg, name))
        self.for_validation = True  # fairseq builds no other generator here
        model = super().build_model(cfg, from_checkpoint)
        self.for_validation = False
        self.needs_fertilities = getattr(model, "needs_fertilities", False)
        self.parallel = self.parallel or registry.is_parallel(model)
        return model

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None):
        """The generator of ``--generator``; for ``auto``, the default of these models.

        Args:
            models: one or an ensemble.
            args: fairseq's generation options; for ``--eval-bleu-args`` also this package's, which then override the
                flags.

        Raises:
            ValueError: an option is unknown or cannot be honoured, or the generator cannot decode these models.
        """
        config = self.generator_config(args)
        models, rescorer = self.rescorer(list(models), config, args)
        name = registry.resolve(config.generator, models, getattr(args, "beam", 5))
        refuse_foreign(config, name)
        if self.for_validation:
            if str(config.decode_dtype) == "int8" and not self.cfg.cpu and torch.cuda.is_available():
                refuse_device(torch.device("cuda"))  # where the model will be
            config, args = self.validation_defaults(name, models, config, args)
        name, config = registry.GENERATORS[name].served_by(config)
        options, extra = generation_options(args), {}
        if name == "beam":
            refuse_options(name, options, config)  # before fairseq's assertions
            extra["search"] = super().build_generator(
                models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn
            )
        else:
            if prefix_allowed_tokens_fn is not None:
                raise ValueError(f"prefix_allowed_tokens_fn cannot be honoured by --generator {name}: leave it out")
            extra["rescorer"] = rescorer
            if config.drafter_path:
                extra["drafter"] = load_drafter(config.drafter_path, self)
            self.source_readers = [model for model in extra.values() if model is not None]
        cls = registry.GENERATORS[name]
        generator = cls(models, self.target_dictionary, config, options, self.mask_index, **extra)
        at_end_of_command(generator.report)
        if output_of_generation() is not None:  # fairseq-generate: nothing else reads its models
            generator.give_weights_back()
        return generator

    def rescorer(self, models: list, config: Namespace, args) -> tuple:
        """The models that decode, and the AR model that rescores, or None: ``--rescorer``'s, or the last of
        ``--path a.pt:ar.pt`` with fairseq's ``--iter-decode-with-external-reranker``."""
        if getattr(args, "iter_decode_with_external_reranker", False):
            if len(models) < 2 or config.rescorer:
                raise ValueError(
                    "--iter-decode-with-external-reranker takes the last of several --path checkpoints, "
                    "and no --rescorer besides"
                )
            check_teacher(models[-1], "the last checkpoint of --path", "rescorer")
            return models[:-1], models[-1]
        return models, load_teacher(config.rescorer, self, "rescorer") if config.rescorer else None

    def validation_defaults(self, name: str, models: list, config: Namespace, args: Namespace) -> tuple:
        """The options of ``--eval-bleu``'s generator, with cheaper defaults for those that the user did not give.

        An untrained length head predicts any length, and an untrained left-to-right model does not stop, so outputs are
        bounded by the source's length. Options that have their default value count as not given.
        """
        given = vars(args)
        quick = {
            option: value
            for option, value in getattr(registry.GENERATORS.get(name), "in_validation", {}).items()
            if option not in given and getattr(config, option) == registry.default_of(option)
        }
        bounds = (
            {}
            if {"max_len_a", "max_len_b"} & given.keys() or any(getattr(m, "predicts", "") is None for m in models)
            else BOUNDS
        )
        if quick or bounds:
            chosen = json.dumps({**quick, **bounds})
            logger.info(
                f"--eval-bleu decodes by {name} with {chosen}: --eval-bleu-args changes it, "
                "fairseq-generate does without"
            )
        return Namespace(**{**vars(config), **quick}), Namespace(**{**bounds, **given})

    def generator_config(self, args) -> Namespace:
        """This package's generator options: the task's flags, overridden by those in ``args``.

        Raises:
            ValueError: no generator has an option of that name, its value has a wrong type, or it is given by its old
                and by its new name.
        """
        where = "--eval-bleu-args: " if isinstance(args, Namespace) else ""
        given = with_new_names(dict(args.items()) if hasattr(args, "items") else vars(args), where)
        defaults = {name: registry.default_of(name) for name in registry.option_names()}
        unknown = given.keys() - defaults.keys() - {"generator"} - set(GenerationConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(f"{where}no generator has an option '{sorted(unknown)[0]}'")
        check_values(given, where)
        flags = {name: getattr(self.cfg, name) for name in defaults}
        flags = with_new_names({name: value for name, value in flags.items() if value != defaults[name]})
        config = {"generator": self.cfg.generator, **defaults, **flags}
        config = Namespace(**{name: given.get(name, value) for name, value in config.items()})
        for name, value in vars(config).items():
            if isinstance(value, float) and value != value:  # NaN passes every bound
                raise ValueError(f"{flag(name)} {value}: give a number")
        return config

    # -- validation ----------------------------------------------------------------------------------------------------

    def _inference_with_bleu(self, generator, sample, model):
        """BLEU's counts of a batch; fairseq's method of this name has only the tokenisers 13a and none."""
        nbest_lists = self.inference_step(generator, [model], sample, prefix_tokens=None)
        return self.bleu.counts([nbest[0]["tokens"] for nbest in nbest_lists], sample["target"], self.tokenizer)

    def reduce_metrics(self, logging_outputs, criterion):
        """fairseq's metrics, and BLEU."""
        FairseqTask.reduce_metrics(self, logging_outputs, criterion)
        if self.cfg.eval_bleu:
            log_bleu(logging_outputs)
