"""What a run will do, and whether it can, before any weights are needed."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
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
from reft_jax.run import files_check, preflight, setup
from reft_jax.runtime import console as console_lib
from reft_jax.runtime import layout
from reft_jax.runtime import mesh as mesh_lib
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks import sources


@dataclasses.dataclass(frozen=True)
class Counts:
  """The training problems, and those of them with a chain of thought.

  Not `exact` where a tokenizer may yet leave out what is too long.
  """

  questions: int
  annotated: int
  exact: bool


def show(config: schema.Config, screen: console_lib.Console) -> None:
  """Checks what can be checked, and tells the stages and what is missing.

  Raises UserError if the run would not start, were nothing missing.
  """
  lacking = files_check.missing(config)
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
      shapes = jax.eval_shape(network.init, jax.random.key(0))
      for mesh in dict.fromkeys(meshes):  # Says what does not divide.
        mesh_lib.shardings(mesh, shapes)
      if "model.warmup" not in lacking:
        preflight.check_warmup(config, tokenizer, network)
      facts.append(
        f"model: {network.parameters:,} parameters, context of"
        f" {network.config.max_positions:,} tokens"
      )
      if config.lora.rank:
        facts.append(_describe_lora(config.lora, network))
    if not {"data.train", "data.test"} & lacking.keys():
      counts, told = _read_problems(config, tokenizer, grader)
      facts += told

  screen.line(f"{config.name}, seed {config.seed}: a dry run", style="bold")
  for fact in facts:
    screen.line(fact)
  rows = [stage_row(config, stage, counts) for stage in config.stages]
  title = f"Stages, to be kept in {schema.run_directory(config)}"
  screen.table(title, list(rows[0]), [list(row.values()) for row in rows])
  if table.collected_splits(config):
    settings = config.collect
    likeliest = f" from the {settings.top_k} likeliest tokens"
    screen.line(
      f"draws: {settings.per_question} solutions to each training question, at"
      f" temperature {settings.temperature:g}{likeliest * bool(settings.top_k)}"
    )
  for setting, name in lacking.items():
    screen.line(f"missing: {setting}={name}, {_origin(setting, name)}")
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
  encoded, failures = preflight.check_problems(config, tokenizer, grader)
  targets = [each.target for each in encoded["train"].examples]
  total = sum(len(split.examples) for split in encoded.values())
  return Counts(len(targets), sum(map(bool, targets)), exact=True), [
    describe_problems(encoded),
    f"reference answers: {total - len(failures)} of {total} earn 1",
  ]


def _origin(setting: str, name: str) -> str:
  """Where the problems or the model that a setting names are from."""
  if setting.startswith("model."):
    if hub.is_id(name):
      return f"to be downloaded from {hub.page(name)}"
    return "a Hugging Face folder"
  if name.startswith(sources.HUB):
    return "to be read from the hub"
  # The data of the packaged experiments.
  if files.expand_user(name).name.startswith(("gsm8k", "svamp", "mathqa")):
    return "from the folder data of github.com/lqtrung1998/mwp_ReFT"
  return "a file of problems"


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
  batch = settings.batch_size
  match stage:
    case "warmup" | "sft":
      rows = counts.annotated
    case "offline_st":
      again = settings.choose == "official"  # The annotation counts twice.
      kept = counts.questions * min(settings.keep, draws)
      rows = counts.annotated * (1 + again) + kept
    case "reward_model":
      rows = counts.questions * draws
    case "online_st" | "reft":
      rows = counts.questions
      batch //= settings.samples_per_question
  collects = bool(table.TABLE[stage].collects)
  return settings.epochs * -(-rows // batch), collects or not counts.exact


def describe_problems(splits: Mapping[str, encode.Encoded]) -> str:
  """The splits' sizes, and what of them is not used."""
  texts = []
  for name, split in splits.items():
    unused = {
      "left out, their answers are not of this task": split.left_out,
      "left out, their prompts are too long": split.long_prompts,
      "with an annotation too long to be learnt": split.long_targets,
      "with an annotation of another kind": len(split.unusable_targets),
    }
    told = "; ".join(f"{count} {why}" for why, count in unused.items() if count)
    texts.append(f"{len(split.examples)} {name}" + (f" ({told})" * bool(told)))
  return f"problems: {', '.join(texts)}"


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


def _describe_lora(lora: schema.LoraConfig, network: networks.Networks) -> str:
  shape, rank, targets = network.config, lora.rank, lora.targets
  init = functools.partial(lora_lib.init, shape, rank=rank, targets=targets)
  adapter = jax.eval_shape(init, jax.random.key(0))
  size = sum(leaf.size for leaf in jax.tree.leaves(adapter))
  beside = ", ".join(lora_lib.selected_targets(shape, targets))
  return f"lora: {size:,} parameters of rank {rank} beside {beside}"


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
