"""What a run will do, and whether it can, before any weights are needed."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from reft_jax import files
from reft_jax.config import schema
from reft_jax.config import stages as table
from reft_jax.data import batches, encode
from reft_jax.data import splits as splits_lib
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.huggingface import hub
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks
from reft_jax.run import preflight, reference_check, setup
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.tasks import embedded, sources
from reft_jax.tasks import grader as grader_lib

# Where the packaged experiments' data are from, by their names.
_DATA = "the folder data of github.com/lqtrung1998/mwp_ReFT"
_PUBLISHED = ("gsm8k", "svamp", "mathqa")


@dataclasses.dataclass(frozen=True)
class Counts:
  """What there is to learn from.

  Attributes:
    questions: training problems.
    annotated: those with a chain of thought.
    exact: False where a tokenizer may yet leave out what is too long.
  """

  questions: int
  annotated: int
  exact: bool


def show(config: schema.Config, screen: console_lib.Console) -> None:
  """Checks what can be checked, and tells the stages and what is missing.

  Raises:
    UserError: the run would not start, even if nothing were missing.
  """
  lacking = dict(missing(config))
  with contextlib.ExitStack() as exits:
    # First: its processes are started before jax has threads and devices.
    grader = setup.open_grader(config, exits)
    tokenizer = network = counts = None
    if "model.path" not in lacking:
      tokenizer, network = setup.open_model(config)
    laid_out = setup.lay_out(config, network)
    meshes = mesh_lib.make_meshes(laid_out)
    facts = [describe_devices(laid_out), *describe_padding(config, *meshes)]
    if tokenizer is not None and network is not None:
      preflight.check_lengths(config, network)
      preflight.check_lora(config, network)
      for mesh in dict.fromkeys(meshes):  # Says what does not divide.
        mesh_lib.shardings(
          mesh, jax.eval_shape(network.init, jax.random.key(0))
        )
      if "model.warmup" not in lacking:
        preflight.check_warmup(config, tokenizer, network)
      facts.append(_describe_model(network))
      if config.lora.rank:
        facts.append(_describe_lora(config.lora, network))
    if not {"data.train", "data.test"} & lacking.keys():
      counts, told = _read_problems(config, tokenizer, grader)
      facts += told

  screen.line(f"{config.name}, seed {config.seed}: a dry run", style="bold")
  for fact in facts:
    screen.line(fact)
  rows = [stage_row(config, stage, counts) for stage in config.stages]
  screen.table(
    f"Stages, to be kept in {schema.run_directory(config)}",
    list(rows[0]),
    [list(row.values()) for row in rows],
  )
  if table.collected_splits(config):
    screen.line(_describe_collecting(config.collect))
  for setting, origin in lacking.items():
    screen.line(f"missing: {setting}={_value(config, setting)}, {origin}")
  screen.line(
    "the settings fit; what is missing was not checked"
    if lacking
    else "all that can be known without weights fits"
  )


def _read_problems(
  config: schema.Config,
  tokenizer: tokenizer_lib.Tokenizer | None,
  grader: grader_lib.Grader,
) -> tuple[Counts, list[str]]:
  """Counts, and what to tell; more is checked where there is a tokenizer."""
  if tokenizer is None:
    splits = splits_lib.problems(config)
    train = splits["train"].problems[: config.data.train_limit]
    annotated = sum(each.rationale is not None for each in train)
    sizes = {name: len(split.problems) for name, split in splits.items()}
    sizes["train"] = len(train)
    told = ", ".join(f"{size} {name}" for name, size in sizes.items())
    return Counts(len(train), annotated, exact=False), [f"problems: {told}"]
  encoded = splits_lib.encoded(config, tokenizer)
  preflight.check_rationales(config, encoded["train"])
  failures = reference_check.check_reference_answers(
    grader, tokenizer, encoded, config.reft
  )
  targets = [each.target for each in encoded["train"].examples]
  total = sum(len(split.examples) for split in encoded.values())
  return Counts(len(targets), sum(map(bool, targets)), exact=True), [
    describe_problems(encoded),
    f"reference answers: {total - len(failures)} of {total} earn 1",
  ]


def missing(config: schema.Config) -> Iterator[tuple[str, str]]:
  """Settings that name what is not here, and where it is from."""
  for setting in ("data.train", "data.test"):
    source = _value(config, setting)
    if source is None or source == embedded.NAME:
      continue
    file = files.expand_user(source)
    if source.startswith(sources.HUB):
      yield setting, "to be read from the hub"
    elif not file.is_file():
      published = file.name.startswith(_PUBLISHED)
      yield setting, f"from {_DATA}" if published else "a file of problems"
  for setting in ("model.path", "model.warmup"):
    name = _value(config, setting)
    if name and hub.is_id(name) and hub.find(name) is None:
      yield setting, f"to be downloaded from {hub.page(name)}"
    elif name and hub.find(name) is None:
      yield setting, "a Hugging Face folder"


def _value(config: schema.Config, setting: str) -> str | None:
  group, name = setting.split(".")
  return getattr(getattr(config, group), name)


def stage_row(
  config: schema.Config, stage: str, counts: Counts | None
) -> dict[str, Any]:
  """What a stage will do, by the title of its column.

  Steps are those of one learning rate. Some are only bounded: what is drawn
  and what is too long is not known yet.
  """
  settings = getattr(config, stage)
  steps, bounded = _steps(config, stage, counts)
  rates = getattr(settings, "learning_rates", None)
  rates = rates or (settings.optimizer.learning_rate,)
  samples = steps and table.TABLE[stage].samples
  return {
    "stage": stage,
    "from": table.starts_from(config, stage),
    "steps": f"{settings.epochs} epochs"
    if steps is None
    else f"{'≤ ' * bounded}{steps:,}",
    "batch": settings.batch_size,
    "learning rate": ", ".join(f"{rate:g}" for rate in rates),
    "schedule": settings.optimizer.schedule,
    "rollouts": steps * settings.batch_size if samples else None,
  }


def _steps(
  config: schema.Config, stage: str, counts: Counts | None
) -> tuple[int | None, bool]:
  """A stage's optimizer or sampling steps, and if this only bounds them.

  None where that follows from data that are not here.
  """
  settings, draws = getattr(config, stage), config.collect.per_question
  if stage == "base" or getattr(settings, "steps", None):
    return settings.steps, False
  if counts is None:
    return None, False
  match stage:
    case "warmup" | "sft":
      rows, batch = counts.annotated, settings.batch_size
    case "offline_st":
      again = settings.choose == "official"  # The annotation counts twice.
      kept = counts.questions * min(settings.keep, draws)
      rows = counts.annotated * (1 + again) + kept
      batch = settings.batch_size
    case "reward_model":
      rows, batch = counts.questions * draws, settings.batch_size
    case "online_st" | "reft":
      rows = counts.questions
      batch = settings.batch_size // settings.samples_per_question
  collects = bool(table.TABLE[stage].collects)
  return settings.epochs * -(-rows // batch), collects or not counts.exact


def describe_problems(splits: Mapping[str, encode.Encoded]) -> str:
  """The splits' sizes, and what of them is not used."""
  return "problems: " + ", ".join(
    _describe(name, split) for name, split in splits.items()
  )


def _describe(name: str, split: encode.Encoded) -> str:
  text = f"{len(split.examples)} {name}"
  left_out = [
    f"{count} {what}"
    for count, what in (
      (split.left_out, "left out, their answers are not of this task"),
      (split.long_prompts, "left out, their prompts are too long"),
      (split.long_targets, "with an annotation too long to be learnt"),
      (len(split.unusable_targets), "with an annotation of another kind"),
    )
    if count
  ]
  return f"{text} ({'; '.join(left_out)})" if left_out else text


def describe_devices(laid_out: layout.Layout) -> str:
  """The devices and how they are laid out."""
  axes = (f"{axis}={getattr(laid_out, axis)}" for axis in layout.AXES)
  text = (
    f"devices: {jax.device_count()} {jax.devices()[0].platform}, mesh"
    f" {' x '.join(axes)}"
  )
  if laid_out.gather == "step":
    text += ", weights gathered once a step"
  if laid_out.sampler_tensor != laid_out.tensor:
    text += f", sampling with tensor={laid_out.sampler_tensor}"
  return text


def _describe_model(network: networks.Networks) -> str:
  context = network.config.max_positions
  return (
    f"model: {network.parameters:,} parameters, context of {context:,} tokens"
  )


def _describe_lora(lora: schema.LoraConfig, network: networks.Networks) -> str:
  init = functools.partial(
    lora_lib.init, network.config, rank=lora.rank, targets=lora.targets
  )
  adapter = jax.eval_shape(init, jax.random.key(0))
  size = sum(leaf.size for leaf in jax.tree.leaves(adapter))
  targets = ", ".join(lora_lib.selected_targets(network.config, lora.targets))
  return f"lora: {size:,} parameters of rank {lora.rank} beside {targets}"


def _describe_collecting(settings: schema.CollectConfig) -> str:
  likeliest = (
    f" from the {settings.top_k} likeliest tokens" if settings.top_k else ""
  )
  return (
    f"draws: {settings.per_question} solutions to each training question, at"
    f" temperature {settings.temperature:g}{likeliest}"
  )


def describe_padding(
  config: schema.Config,
  mesh: jax.sharding.Mesh,
  sampling_mesh: jax.sharding.Mesh,
) -> list[str]:
  """Batches that the devices cannot share alike, and what that costs.

  One line, or none where all divide.
  """
  found = []
  ways = mesh_lib.num_batch_shards(mesh)
  for name in config.stages:
    stage = getattr(config, name)
    filled = {}
    learnt = "batch_size"
    if table.TABLE[name].samples:
      # A rollout is filled up with questions, where it samples.
      learnt, samples = "minibatch_size", stage.samples_per_question
      filled["batch_size"] = samples * mesh_lib.pad_to_shards(
        sampling_mesh, stage.batch_size // samples, samples
      )
    rows = getattr(stage, learnt) or stage.batch_size
    micro = getattr(stage, "micro_batch_size", None) or rows
    filled["micro_batch_size"], filled[learnt] = batches.micro_batches(
      rows, micro, ways
    )
    for size, most in filled.items():
      if getattr(stage, size, None) not in (None, most):
        rows = getattr(stage, size)
        found.append(f"{name}.{size}={rows} is padded to {most} rows")
  if not found:
    return []
  return [f"{', '.join(found)} for {ways} devices; results stay the same"]
