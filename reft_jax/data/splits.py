"""The problems of a run: to train on, to choose models on, to test on."""

import dataclasses
import functools

from reft_jax import errors
from reft_jax.config import schema
from reft_jax.data import encode
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.tasks import embedded, sources
from reft_jax.tasks.problem import Problem

# Generated test problems come from a random stream of their own.
_TEST_SEED = 1_000_003


def problems(config: schema.Config) -> dict[str, sources.Loaded]:
  """The splits `train`, `dev` and `test` as problems.

  Raises:
    UserError: they cannot be read, or the task is not known.
  """
  data = config.data
  if data.train == embedded.NAME:
    train, test = map(sources.Loaded, _generated(config))
  else:
    train, test = _load(data.train, data), sources.Loaded([])
  if data.test:
    test = _load(data.test, data)
  rest, dev = sources.carve_dev(train.problems, data.dev_size, config.seed)
  return {
    "train": dataclasses.replace(train, problems=rest),
    "dev": sources.Loaded(dev),
    "test": test,
  }


def encoded(
  config: schema.Config, tokenizer: tokenizer_lib.Tokenizer
) -> dict[str, encode.Encoded]:
  """The same as ids, as many as the settings ask for.

  Raises:
    UserError: as `problems`; or all prompts of a split are too long.
  """
  data = config.data
  limits = {"train": data.train_limit, "dev": None, "test": data.test_limit}
  splits = {}
  for name, split in problems(config).items():
    examples = encode.encode(
      split.problems[: limits[name]],
      tokenizer,
      reasoning=data.reasoning,
      add_bos=data.add_bos,
      max_prompt_tokens=data.max_prompt_tokens,
      max_response_tokens=data.max_response_tokens,
      chat_template=data.chat_template,
      system_prompt=data.system_prompt,
    )
    splits[name] = dataclasses.replace(examples, left_out=split.left_out)
    if split.problems and not splits[name].examples:
      raise errors.UserError(
        f"every prompt of the {name} split is longer than "
        f"data.max_prompt_tokens={data.max_prompt_tokens}; raise it."
      )
  return splits


def _load(source: str, data: schema.DataConfig) -> sources.Loaded:
  return sources.load(source, data.task, calculator_marks=data.calculator_marks)


def _generated(config: schema.Config) -> tuple[list[Problem], list[Problem]]:
  """Embedded problems to train on, dev's included, and to test on."""
  data, settings, seed = config.data, config.embedded, config.seed
  task = data.task or embedded.NAME
  if task not in embedded.TASKS:
    raise errors.UserError(
      f"data.task={task}: data.train=embedded has the tasks "
      f"{', '.join(embedded.TASKS)}; choose one of them, or other data."
    )
  problems = functools.partial(
    embedded.problems,
    choice=task == embedded.CHOICE,
    reasoning=data.reasoning,
    min_events=settings.min_events,
    max_events=settings.max_events,
  )
  test = problems(settings.test, seed + _TEST_SEED)
  train = problems(
    settings.questions + data.dev_size,
    seed,
    merge=settings.merge,
    exclude=embedded.signatures(test),
  )
  return train, test
