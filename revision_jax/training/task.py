"""The curriculum as a task for the loop: tokenizer, first state, and each stage's loss and examples."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from revision_jax import checkpoint, paths
from revision_jax.config import ConfigError, ExperimentConfig, StageConfig
from revision_jax.data import prompts
from revision_jax.data.chat_template import specials
from revision_jax.data.corpus import Corpus
from revision_jax.data.curriculum import Curriculum
from revision_jax.data.pipeline import Examples
from revision_jax.data.pretraining import PretrainSource
from revision_jax.data.synthetic.language import vocabulary_sentences
from revision_jax.data.text_features import TextFeatureStore
from revision_jax.data.tokenizer import Tokenizer, build_word_tokenizer
from revision_jax.errors import UserError
from revision_jax.models.quantize import quantized_leaf
from revision_jax.models.revision import abstract_state, first_state
from revision_jax.sharding.distributed import everywhere, in_turn
from revision_jax.training.conversation_loss import conversation_loss
from revision_jax.training.conversations import conversation_source, mixture
from revision_jax.training.corpus import Report, prepare, query_store, stage_corpus
from revision_jax.training.flops import model_flops
from revision_jax.training.loop import Task
from revision_jax.training.losses import stage_loss
from revision_jax.training.step import Loss

SENTENCES = 20_000  # of the world's language, which the vocabulary is made of


def make_tokenizer(config: ExperimentConfig, workdir: str | Path) -> Tokenizer:
    """The work directory's tokenizer; built from the world's language where there is none yet. Raises UserError where conversations want a model's own."""
    file = Path(workdir) / "tokenizer.json"
    if not file.exists():
        conversing = [stage.name for stage in config.train.stages if stage.task == "conversation"]
        if conversing:
            raise UserError(f"stages.{conversing[0]}: conversations want the model's own tokenizer; begin from a checkpoint that has it (--init DIR)")
        Path(workdir).mkdir(parents=True, exist_ok=True)
        build_word_tokenizer([*vocabulary_sentences(0, SENTENCES), *_prompt_texts(config)], numbers=256, vocab_size=config.decoder.vocab).save(workdir)
    return Tokenizer.load(workdir)


def _prompt_texts(config: ExperimentConfig) -> list[str]:
    """Everything the levels say themselves: their words must be in the vocabulary, or "from" and "not" would be the same unknown one."""
    prompts_of_levels = [level.prompt for level in config.grounding.levels]
    texts = [text for p in prompts_of_levels for text in (p.before, p.after, p.answer, p.absent, p.yes, p.no, p.presence)]
    return [text.replace("{query}", "").replace("{start}", "").replace("{end}", "") for text in texts]


def constants(config: ExperimentConfig, tokenizer: Tokenizer, level: str, stage: StageConfig | None = None) -> dict:
    """What a level's programs need of the tokenizer: number_ids Int[M] (the id of each number it can name), before_ids Int[A], caption_id.

    stage: whose windows and prompt count, where they are not the level's. Raises ConfigError where `decoder.time="token"` meets a tokenizer without one token
    for each number.
    """
    chosen = config.grounding.level(level)
    count = max(chosen.tokens, stage.examples.frames if stage else 0)
    prompt = chosen.prompt if stage is None or stage.prompt is None else stage.prompt
    numbers = []
    for number in range(count):
        ids = tokenizer.encode(str(number))
        if len(ids) != 1 and config.decoder.time == "token":
            raise ConfigError(f"decoder.time: 'token' needs every number up to {count - 1} to be one token; {number} is {len(ids)}; use 'sinusoidal'")
        numbers.append(ids[0])
    start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    return {
        "number_ids": jnp.asarray(numbers, jnp.int32),
        "before_ids": jnp.asarray(prompts.before_ids(tokenizer, prompt), jnp.int32),
        "caption_id": start,
    }


def loss_of(config: ExperimentConfig, stage: StageConfig, tokenizer: Tokenizer) -> Loss:
    """What a stage minimises."""
    if stage.task == "conversation":
        return lambda state, batch, key: conversation_loss(config, stage, state, batch)
    dense = next((level.name for level in config.grounding.levels if level.kind == "dense"), config.grounding.levels[0].name)
    return stage_loss(config, stage, constants(config, tokenizer, stage.level or dense, stage))


def begin_from(config: ExperimentConfig, directory: str | Path, workdir: str | Path, parts: Sequence[str] = ()) -> Callable[[Mapping], dict]:
    """`Task.load_state` that starts from the weights of an exported checkpoint: what it does not have is freshly initialised.

    parts: path prefixes of what is taken ("params/vision", "lora/dense"); none = all. The checkpoint's tokenizer becomes the work directory's. Weights go
    from the file to their devices: no process holds more than its own part. Raises UserError for tensors of another shape, all of them listed, for a
    checkpoint that has nothing in common with the config, and for a work directory that has another tokenizer.
    """
    directory = Path(directory)
    checkpoint.load_config(directory)
    source, wanted = checkpoint.open_weights(directory), paths.flatten(abstract_state(config))
    common = [name for name in source.tensors if name in wanted and (not parts or any(paths.under(name, part) for part in parts))]
    wrong = checkpoint.mismatches({name: source.tensors[name].shape for name in common}, {name: wanted[name].shape for name in common})
    if wrong or not common:
        raise UserError(f"{directory}: {'; '.join(wrong) or 'no tensor of it is part of the model'}; begin from a checkpoint of this config")
    for name, theirs in checkpoint.tokenizer_files(directory).items():
        ours = Path(workdir) / name
        if not ours.exists():
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(theirs, ours)
        elif ours.read_bytes() != theirs.read_bytes():
            raise UserError(f"{ours}: is not the tokenizer of {directory}; use another work directory")

    def load_state(shardings: Mapping) -> dict:
        where = paths.flatten(shardings)
        leaves = {}
        for name in common:  # quantised one by one, where that is asked for: the float model is never there as a whole
            leaves |= quantized_leaf(name, checkpoint.placed(source, name, wanted[name].dtype, where[name]), where)
        rest = {name: sharding for name, sharding in where.items() if name not in leaves}
        fresh = lambda: {name: leaf for name, leaf in paths.flatten(first_state(config, jax.random.key(config.train.seed))).items() if name in rest}
        return paths.unflatten(dict(sorted({**leaves, **jax.jit(fresh, out_shardings=rest)()}.items())))

    return load_state


def make_task(
    config: ExperimentConfig, workdir: str | Path, report: Report | None = None, begin: str | Path | None = None, parts: Sequence[str] = ()
) -> Task:
    """Everything the loop needs to run `config.train.stages`. The corpus is prepared when the first stage that reads features begins.

    begin: an exported checkpoint whose weights (those under `parts`; none = all) the run begins with.
    """
    load_state = None if begin is None else in_turn(lambda: begin_from(config, begin, workdir, parts), "begun from")
    tokenizer = in_turn(lambda: make_tokenizer(config, workdir), "tokenizer")
    text = Path(workdir) / checkpoint.TEXT_TOKENIZER
    text_tokenizer = Tokenizer.load(text) if text.is_dir() else tokenizer
    if tokenizer.vocab_size > config.decoder.vocab:
        raise ConfigError(f"decoder.vocab: {config.decoder.vocab} is smaller than the tokenizer's {tokenizer.vocab_size} tokens")
    if config.text is not None and text_tokenizer.vocab_size > config.text.vocab:
        raise ConfigError(f"text.vocab: {config.text.vocab} is smaller than the {text_tokenizer.vocab_size} tokens of the text tower's tokenizer")
    read: dict[str, tuple[Corpus, TextFeatureStore | None]] = {}  # by stage

    def check(stage: StageConfig) -> None:
        if stage.task == "conversation":
            mixture(config, stage)
            specials(tokenizer)

    def before_stage(stage: StageConfig, state: dict) -> None:
        if stage.task not in ("pretrain", "language", "conversation"):
            encoders = everywhere({name: tree for name, tree in state["params"].items() if name != "decoder"})  # each process encodes films of its own
            read[stage.name] = prepare(stage_corpus(config, stage), encoders, workdir, report), query_store(config, encoders)

    def make_examples(stage: StageConfig) -> Examples:
        if stage.task == "conversation":
            return conversation_source(config, stage, tokenizer, report)
        if stage.task in ("pretrain", "language"):
            return PretrainSource(config, stage, tokenizer, config.train.seed)
        corpus, queries = read.pop(stage.name)
        return Curriculum(config, stage, corpus, tokenizer, config.train.seed, text_tokenizer, queries)

    def make_loss(stage: StageConfig) -> Loss:
        return loss_of(config, stage, tokenizer)

    def flops(stage: StageConfig, trainable: dict, frozen: dict, batch: dict) -> int:
        return model_flops(config, lambda config: loss_of(config, stage, tokenizer), trainable, frozen, batch)

    first: Callable[[], dict] = lambda: first_state(config, jax.random.key(config.train.seed))
    made = {"make_loss": make_loss, "make_examples": make_examples, "before_stage": before_stage, "load_state": load_state, "check": check, "flops": flops}
    return Task(init_state=first, **made)
