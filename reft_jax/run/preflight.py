"""Checks of what a run is given, before anything is compiled."""

import dataclasses
from collections.abc import Mapping

from reft_jax.config import schema
from reft_jax.config import stages as table
from reft_jax.data import encode
from reft_jax.data import splits as splits_lib
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.huggingface import hub
from reft_jax.models import config as configs
from reft_jax.models import lora as lora_lib
from reft_jax.models import networks
from reft_jax.models.errors import UnsupportedModelError
from reft_jax.models.hf import read as reader
from reft_jax.sampling import grading
from reft_jax.tasks import grader as grader_lib
from reft_jax.tasks import prompts
from reft_jax.tasks.answers.grade import Grade, Verdict
from reft_jax.tasks.problem import Problem


@dataclasses.dataclass(frozen=True)
class Failure:
  """A reference answer that is not graded as right."""

  split: str
  problem: Problem
  completion: str
  grade: Grade

  def __str__(self) -> str:
    """The failure in a few words."""
    value = self.grade.value
    read = "no answer was found" if value is None else f"{value!r} was found"
    if self.grade.verdict is Verdict.CORRECT:
      read += f", but the value reached is {self.grade.reached}"
    problem = self.problem
    return f"{problem.uid} ({read}, the reference is {problem.answer!r})"

  def row(self) -> dict[str, object]:
    """As a file holds it."""
    return {
      "split": self.split,
      "uid": self.problem.uid,
      "question": self.problem.question,
      "completion": self.completion,
      "answer": self.problem.answer,
      "verdict": self.grade.verdict.value,
      "value": self.grade.value,
    }


def check_lengths(config: schema.Config, network: networks.Networks) -> None:
  """Raises UserError if prompt and response exceed the model's context."""
  data, most = config.data, network.config.max_positions
  if data.max_prompt_tokens + data.max_response_tokens > most:
    raise UserError(
      f"data.max_prompt_tokens={data.max_prompt_tokens} and "
      f"data.max_response_tokens={data.max_response_tokens} exceed the model's "
      f"context of {most} tokens together; lower one of them."
    )


def check_lora(config: schema.Config, network: networks.Networks) -> None:
  """Raises UserError if adapters do not fit the architecture."""
  lora = config.lora
  if not lora.rank:
    return
  targets = f"lora.targets=[{', '.join(lora.targets)}]"
  try:
    most = lora_lib.largest_rank(network.config, lora.targets)
  except UnsupportedModelError as error:
    raise UserError(f"{targets}: {error}") from None
  if lora.rank > most:
    raise UserError(
      f"lora.rank={lora.rank} is above {most}, the rank of a weight of"
      f" {targets}; lower it, or train the weights themselves with lora.rank=0."
    )


def check_warmup(
  config: schema.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  network: networks.Networks,
) -> None:
  """Raises UserError if a warmed-up model is not only the model, trained on."""
  name = config.model.warmup
  if name is None:
    return
  folder = hub.folder(name, "model.warmup")
  if reader.is_classifier(folder):
    raise UserError(
      f"model.warmup={name} holds a reward model; give a language model."
    )
  shape = with_room_for(config, reader.read_config(folder), tokenizer)
  ours = vars(network.config)
  different = [
    f"{name} {value!r}, not {ours[name]!r}"
    for name, value in vars(shape).items()
    if value != ours[name]
  ]
  theirs = tokenizer_lib.for_run(config, folder)
  if theirs.fingerprint != tokenizer.fingerprint:
    different.append("another tokenizer")
  if different:
    raise UserError(
      f"model.warmup={name} did not start from model.path={config.model.path}:"
      f" it has {', '.join(different)}; set model.path to the model it started"
      " from."
    )


def check_rationales(config: schema.Config, train_set: encode.Encoded) -> None:
  """Raises UserError if a stage would imitate, and there is no annotation."""
  imitating = [name for name, stage in table.TABLE.items() if stage.supervised]
  if config.online_st.gold_share:
    imitating.append("online_st")
  stages = [name for name in imitating if name in config.stages]
  if not stages or any(each.target for each in train_set.examples):
    return
  if train_set.unusable_targets:
    reason = train_set.unusable_targets[0]
  elif train_set.long_targets:
    most = f"data.max_response_tokens={config.data.max_response_tokens}"
    reason = f"every chain of thought is longer than {most}; raise it."
  else:
    reason = (
      "no problem has a chain of thought (answer_cot) for"
      f" {' and '.join(stages)} to learn from; choose data that has them, or"
      " set stages=[reft]."
    )
  raise UserError(f"data.train={config.data.train}: {reason}")


def check_problems(
  config: schema.Config,
  tokenizer: tokenizer_lib.Tokenizer,
  grader: grader_lib.Grader,
) -> tuple[dict[str, encode.Encoded], list[Failure]]:
  """The problems as ids, and failures of their reference answers.

  Raises UserError if the problems do not fit the settings.
  """
  splits = splits_lib.encoded(config, tokenizer)
  check_rationales(config, splits["train"])
  failures = check_reference_answers(grader, tokenizer, splits, config.reft)
  return splits, failures


def with_room_for(
  config: schema.Config,
  shape: configs.ModelConfig,
  tokenizer: tokenizer_lib.Tokenizer,
) -> configs.ModelConfig:
  """The architecture with a row for each id, where rows may be added."""
  if not config.model.resize_vocab:
    return shape
  size = max(shape.vocab_size, tokenizer.vocab_size)
  return dataclasses.replace(shape, vocab_size=size)


def check_reference_answers(
  grader: grader_lib.Grader,
  tokenizer: tokenizer_lib.Tokenizer,
  splits: Mapping[str, encode.Encoded],
  config: schema.ReftConfig,
) -> list[Failure]:
  """Grades every reference answer as if the policy had written it.

  An annotated solution goes through the tokenizer and back, its program is
  run, and it must earn 1. Where there is none, a completion of the bare answer
  is graded, which must be right; it cannot show a reasoning.

  Raises:
    UserError: no answer of a split is graded as right.
  """
  failures = []
  for name, split in splits.items():
    started = [
      grader.start(
        each.problem,
        prompts.bare(each.problem, grader.reasoning)
        if each.target is None
        else tokenizer.decode(each.target),
      )
      for each in split.examples
    ]
    wrong = []
    for example, each in zip(split.examples, started, strict=True):
      grade = each.grade()
      right = grade.verdict is Verdict.CORRECT
      if example.target is not None:
        right = grading.reward(each.problem, grade, config) == 1
      if not right:
        wrong.append(Failure(name, each.problem, each.completion, grade))
    if wrong and len(wrong) == len(started):
      raise UserError(
        f"no reference answer of the {name} split is graded as right: "
        f"{wrong[0]}; are data.task and data.reasoning those of the data?"
      )
    failures += wrong
  return failures
