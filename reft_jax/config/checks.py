"""Checks of settings: the range of each, and how they fit each other."""

import math
import re
from collections.abc import Iterator

from reft_jax import errors
from reft_jax.config import loading, schema, stages


def validate(config: schema.Config) -> None:
  """Raises UserError, with one line, if settings are out of range or clash."""
  # Sizes are only compared if each of them is in its range.
  problems = list(_out_of_range(config)) or list(_cross_field_errors(config))
  if not re.fullmatch(r"auto|off|\S+:\d+", config.distributed):
    problems.append(
      f"distributed={config.distributed} is none of auto, off and HOST:PORT"
    )
  if problems:
    raise errors.UserError("; ".join(problems))


def _out_of_range(config: schema.Config) -> Iterator[str]:
  """Numbers outside their setting's range."""
  for key, field, value in loading.settings(config):
    allowed = field.metadata["range"]
    for number in value if isinstance(value, tuple) else (value,):
      if type(number) not in (int, float):
        continue
      if not math.isfinite(number):
        yield f"{key}={number} must be finite"
      elif not allowed.holds(number):
        yield f"{key}={number} must be {allowed.text}"


def _cross_field_errors(config: schema.Config) -> Iterator[str]:
  """Settings that do not fit each other."""
  yield from _stage_errors(config)
  yield from _base_errors(config)
  yield from _data_errors(config)
  yield from _start_errors(config)
  yield from _learning_rate_errors(config)
  if config.lora.rank and not config.lora.targets:
    yield "lora.targets=[] must name at least one projection, or all"
  if "reft" in config.stages:
    yield from _reft_errors(config)
  embedded = config.embedded
  if embedded.min_events > embedded.max_events:
    yield (
      f"embedded.min_events={embedded.min_events} must not exceed"
      f" embedded.max_events={embedded.max_events}"
    )
  if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
    yield "mesh: only one axis can be -1, the rest of the devices"
  for key, size, of, part in _sizes(config):
    if part is not None and size % part:
      yield f"{key}={size} must be a multiple of {of}={part}"


def _stage_errors(config: schema.Config) -> Iterator[str]:
  """A run without a name, or with stages that are no sequence."""
  if not config.name or set(config.name) & set("/\\"):
    yield f"name={config.name!r} must be a folder's name"
  if not config.stages:
    yield "stages=[] must name at least one stage"
  if config.stages != tuple(s for s in stages.TABLE if s in config.stages):
    given, order = loading.show(config.stages), loading.show([*stages.TABLE])
    yield f"stages={given} must keep the order {order}"


def _base_errors(config: schema.Config) -> Iterator[str]:
  """A base stage that cannot train, or neither that nor a model."""
  data, model = config.data, config.model
  if "base" not in config.stages:
    if not model.path:
      yield (
        "model.path=null needs the base stage, or set a model: a folder, or"
        " owner/name on the hub"
      )
    return
  if data.train != "embedded":
    yield (
      f"data.train={data.train}: the base stage is for embedded data only;"
      " set model.path and stages=[warmup, sft, reft]"
    )
  if model.path:
    yield (
      f"model.path={model.path}: the base stage would train another"
      " model; set stages=[warmup, sft, reft] or model.path=null"
    )
  if data.reasoning == "python" and not config.embedded.programs:
    yield (
      "embedded.programs=0: the base model would never have seen programs;"
      " set a share, or --config embedded_python"
    )
  if data.task == "embedded-choice" and not config.embedded.choices:
    yield (
      "embedded.choices=0: the base model would never have seen choices;"
      " set a share, or --config embedded_choice"
    )
  if data.chat_template:
    yield (
      "data.chat_template=true: the base stage's model knows no chat; set"
      " model.path to an instruct model"
    )


def _data_errors(config: schema.Config) -> Iterator[str]:
  """Data that contradicts itself."""
  data = config.data
  if data.system_prompt is not None and not data.chat_template:
    yield "data.system_prompt is part of a chat; set data.chat_template=true"
  if data.test == "embedded":
    yield (
      "data.test=embedded: only data.train=embedded tests on generated"
      " questions, and brings its own; set data.test to a file,"
      " hub:owner/name[:split] or null"
    )


def _start_errors(config: schema.Config) -> Iterator[str]:
  """Stages that would start from a model that is not there."""
  if config.warmup.start != "base":
    yield "warmup.start=warmup must be base"
  given = config.model.warmup
  if given and "warmup" in config.stages:
    yield (
      f"model.warmup={given}: the warmup stage would train another; leave it"
      " out of stages, or set model.warmup=null"
    )
  if given and "base" in config.stages:
    yield (
      f"model.warmup={given} did not start from the model of the base stage;"
      " set model.path to the one it started from"
    )
  if stages.warmed(config):
    return
  for name in config.stages:
    if stages.starts_from(config, name) == "warmup":
      yield (
        f"{name}.start=warmup needs the warmup stage or model.warmup, or set"
        f" {name}.start=base"
      )


def _learning_rate_errors(config: schema.Config) -> Iterator[str]:
  """Learning rates that cannot be compared."""
  for name in stages.TABLE:
    rates = getattr(getattr(config, name), "learning_rates", None)
    if rates is None:
      continue
    if not rates:
      yield f"{name}.learning_rates=[] must hold a number, or be null"
    if len(rates) > 1 and name in config.stages and not config.data.dev_size:
      yield (
        f"{name}.learning_rates are chosen on dev: data.dev_size=0 leaves"
        " none; set one of them"
      )
    # A sweep's results are named by their rates in this format.
    if len({f"{rate:g}" for rate in rates}) < len(rates):
      yield (
        f"{name}.learning_rates={loading.show(rates)} must differ in their"
        " first six digits; leave one of two alike out"
      )


def _reft_errors(config: schema.Config) -> Iterator[str]:
  """What PPO cannot do, or would do for nothing."""
  reft = config.reft
  group = f"reft.samples_per_question={reft.samples_per_question}"
  if reft.has_critic:
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
  else:  # Advantages are relative to a group of rollouts.
    given = f"reft.advantages={reft.advantages}"
    if reft.samples_per_question < 2:
      yield (
        f"{given} compares rollouts of one question: {group} must be 2 or more"
      )
    if reft.value_warmup_steps:
      yield f"{given} has no critic to warm up; set reft.value_warmup_steps=0"
    if config.model.value == "separate":
      yield f"{given} has no critic; set model.value=shared"
  if reft.kl_target and not reft.kl_coef:
    yield "reft.kl_target adapts reft.kl_coef, which must start above 0"
  if reft.filter_zero_variance_groups and reft.samples_per_question < 2:
    yield (
      "reft.filter_zero_variance_groups would leave out every question:"
      f" {group} must be 2 or more"
    )


def _sizes(config: schema.Config) -> Iterator[tuple[str, int, str, int | None]]:
  """A size with its key, and another that must divide it with its own."""
  base = config.base
  yield "base.width", base.width, "base.heads", base.heads
  yield "base.heads", base.heads, "base.kv_heads", base.kv_heads
  for name, stage in stages.TABLE.items():
    if name == "base":
      continue
    group = getattr(config, name)
    sizes = [("batch_size", group.batch_size, "micro_batch_size")]
    if stage.samples:
      sizes = [
        ("batch_size", group.batch_size, "samples_per_question"),
        ("batch_size", group.batch_size, "minibatch_size"),
        ("minibatch_size", group.minibatch, "micro_batch_size"),
      ]
    for key, size, of in sizes:
      yield f"{name}.{key}", size, f"{name}.{of}", getattr(group, of)
