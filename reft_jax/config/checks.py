"""What settings must hold: each on its own, and with each other."""

import math
import pathlib
import re
from collections.abc import Iterator

from reft_jax import errors, files
from reft_jax.config import loading, schema
from reft_jax.huggingface import hub


def validate(config: schema.Config) -> None:
  """Checks that the settings fit each other.

  Raises:
    UserError: One line that holds every problem found.
  """
  # Sizes are compared only once each is known to be a sensible number.
  problems = list(_out_of_range(config)) or list(cross_field_errors(config))
  if not re.fullmatch(r"auto|off|\S+:\d+", config.distributed):
    problems.append(
      f"distributed={config.distributed} is none of auto, off and HOST:PORT"
    )
  if problems:
    raise errors.UserError("; ".join(problems))


def check_files(config: schema.Config) -> None:
  """Checks that the files and folders a run starts from exist.

  What is on the hub is not asked for.

  Raises:
    UserError: One line that holds everything that is missing.
  """
  problems = [
    f"{key}={source}: no such file in {pathlib.Path.cwd()}"
    for key, source in (
      ("data.train", config.data.train),
      ("data.test", config.data.test),
    )
    if _is_file(source) and not files.expand_user(source).is_file()
  ]
  problems += [
    f"{key}={path}: no Hugging Face model there (a folder with config.json,"
    " *.safetensors and tokenizer.json), nor a name on the hub"
    " (owner/name[@revision])"
    for key, path in (
      ("model.path", config.model.path),
      ("model.warmup", config.model.warmup),
    )
    if path and not hub.is_id(path) and hub.find(path) is None
  ]
  if problems:
    raise errors.UserError("; ".join(problems))


def _is_file(source: str | None) -> bool:
  """Whether a data source is a file, not generated or on the hub."""
  return bool(source) and source != "embedded" and source[:4] != "hub:"


def _out_of_range(config: schema.Config) -> Iterator[str]:
  """Numbers outside their setting's range."""
  for key, field, value in loading.settings(config):
    allowed = field.metadata["range"]
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
      if isinstance(number, float) and not math.isfinite(number):
        yield f"{key}={number} must be finite"
      elif allowed and number is not None and not allowed.holds(number):
        yield f"{key}={loading.show(number)} must be {allowed.text}"


def cross_field_errors(config: schema.Config) -> Iterator[str]:
  """Settings that do not fit each other."""
  data, embedded = config.data, config.embedded
  if not config.name or set(config.name) & set("/\\"):
    yield f"name={config.name!r} must be a folder's name"

  if not config.stages:
    yield "stages=[] must name at least one stage"
  if config.stages != tuple(s for s in schema.STAGES if s in config.stages):
    yield (
      f"stages={loading.show(config.stages)} must keep the order"
      f" {loading.show(schema.STAGES)}"
    )
  if "base" in config.stages:
    if data.train != "embedded":
      yield (
        f"data.train={data.train}: the base stage is for embedded data only;"
        " set model.path and stages=[warmup, sft, reft]"
      )
    if config.model.path:
      yield (
        f"model.path={config.model.path}: the base stage would train another"
        " model; set stages=[warmup, sft, reft] or model.path=null"
      )
    for setting, share, wanted in (
      ("programs", embedded.programs, data.reasoning == "python"),
      ("choices", embedded.choices, data.task == "embedded-choice"),
    ):
      if wanted and not share:
        yield (
          f"embedded.{setting}=0: the base model would never have seen"
          f" {setting}; set a share, or --config embedded_"
          f"{'python' if setting == 'programs' else 'choice'}"
        )
    if data.chat_template:
      yield (
        "data.chat_template=true: the base stage's model knows no chat; set"
        " model.path to an instruct model"
      )
  elif not config.model.path:
    yield (
      "model.path=null needs the base stage, or set a model: a folder, or"
      " owner/name on the hub"
    )
  if data.system_prompt is not None and not data.chat_template:
    yield "data.system_prompt is part of a chat; set data.chat_template=true"
  if data.test == "embedded":
    yield (
      "data.test=embedded: only data.train=embedded tests on generated"
      " questions, and brings its own; set data.test to a file,"
      " hub:owner/name[:split] or null"
    )
  if config.warmup.start != "base":
    yield "warmup.start=warmup must be base"
  if config.model.warmup and "warmup" in config.stages:
    yield (
      f"model.warmup={config.model.warmup}: the warmup stage would train"
      " another; leave it out of stages, or set model.warmup=null"
    )
  if config.model.warmup and "base" in config.stages:
    yield (
      f"model.warmup={config.model.warmup} did not start from the model of the"
      " base stage; set model.path to the one it started from"
    )
  for stage in ("sft", "offline_st", "reward_model"):
    start = getattr(config, stage).start
    if (
      stage in config.stages and start == "warmup" and not schema.warmed(config)
    ):
      yield (
        f"{stage}.start=warmup needs the warmup stage or model.warmup, or set"
        f" {stage}.start=base"
      )
  for stage in schema.STAGES[1:]:
    yield from _learning_rate_errors(config, stage)
  if config.lora.rank and not config.lora.targets:
    yield "lora.targets=[] must name at least one projection, or all"
  if "reft" in config.stages:
    yield from _reft_errors(config)

  if embedded.min_events > embedded.max_events:
    yield (
      f"embedded.min_events={embedded.min_events} must not exceed"
      f" embedded.max_events={embedded.max_events}"
    )
  if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
    yield "mesh: only one axis can be -1, the rest of the devices"

  sizes = {key: value for key, _, value in loading.settings(config)}
  for stage in schema.REINFORCED:
    if sizes[f"{stage}.minibatch_size"] is None:
      sizes[f"{stage}.minibatch_size"] = sizes[f"{stage}.batch_size"]
  for whole, part in (
    ("base.width", "base.heads"),
    ("base.heads", "base.kv_heads"),
    ("warmup.batch_size", "warmup.micro_batch_size"),
    ("sft.batch_size", "sft.micro_batch_size"),
    ("offline_st.batch_size", "offline_st.micro_batch_size"),
    ("reward_model.batch_size", "reward_model.micro_batch_size"),
    ("online_st.batch_size", "online_st.samples_per_question"),
    ("online_st.batch_size", "online_st.minibatch_size"),
    ("online_st.minibatch_size", "online_st.micro_batch_size"),
    ("reft.batch_size", "reft.samples_per_question"),
    ("reft.batch_size", "reft.minibatch_size"),
    ("reft.minibatch_size", "reft.micro_batch_size"),
  ):
    if sizes[part] is not None and sizes[whole] % sizes[part]:
      yield (
        f"{whole}={sizes[whole]} must be a multiple of {part}={sizes[part]}"
      )


def _reft_errors(config: schema.Config) -> Iterator[str]:
  """What PPO cannot do, or would do for nothing."""
  reft = config.reft
  alone = reft.samples_per_question < 2
  if reft.advantages == "gae":
    if reft.value_warmup_steps and not reft.vf_coef:
      yield (
        "reft.vf_coef=0: the critic would learn nothing in"
        f" reft.value_warmup_steps={reft.value_warmup_steps}; set one of them"
      )
    if reft.steps is not None and 0 < reft.steps <= reft.value_warmup_steps:
      yield (
        f"reft.value_warmup_steps={reft.value_warmup_steps} would leave the"
        f" policy none of reft.steps={reft.steps}"
      )
  else:
    if alone:
      yield (
        f"reft.advantages={reft.advantages} compares rollouts of one question:"
        f" reft.samples_per_question={reft.samples_per_question} must be 2 or"
        " more"
      )
    if reft.value_warmup_steps:
      yield (
        f"reft.advantages={reft.advantages} has no critic to warm up; set"
        " reft.value_warmup_steps=0"
      )
    if config.model.value == "separate":
      yield (
        f"reft.advantages={reft.advantages} has no critic; set"
        " model.value=shared"
      )
  if reft.kl_target and not reft.kl_coef:
    yield "reft.kl_target adapts reft.kl_coef, which must start above 0"
  if reft.filter_zero_variance_groups and alone:
    yield (
      "reft.filter_zero_variance_groups would leave out every question:"
      f" reft.samples_per_question={reft.samples_per_question} must be 2 or"
      " more"
    )


def _learning_rate_errors(config: schema.Config, stage: str) -> Iterator[str]:
  """Learning rates that cannot be compared."""
  rates = getattr(config, stage).learning_rates
  if rates == ():
    yield f"{stage}.learning_rates=[] must hold a number, or be null"
  elif (
    stage in config.stages
    and rates
    and len(rates) > 1
    and not config.data.dev_size
  ):
    yield (
      f"{stage}.learning_rates are chosen on dev: data.dev_size=0 leaves"
      " none; set one of them"
    )
  # As they name a sweep's results.
  if rates and len({f"{rate:g}" for rate in rates}) < len(rates):
    yield (
      f"{stage}.learning_rates={loading.show(rates)} must differ in their first"
      " six digits; leave one of two alike out"
    )
