"""Offline self-training (paper section 4.2): imitate one's own right answers.

Solutions are drawn once, from the warmed-up model; those whose answer is right
join the annotations, and a model is fine-tuned on both.
"""

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

from reft_jax.algorithms import sft
from reft_jax.config import schema
from reft_jax.run import loop as loop_lib
from reft_jax.run.context import Run
from reft_jax.sampling.grading import Answer
from reft_jax.tasks import prompts


def train(
  run: Run,
  name: str,
  policy: Callable[[], Any],
  config: schema.OfflineConfig,
  evaluate_fn: loop_lib.EvaluateFn | None,
  draws: Sequence[Sequence[Answer]],
) -> loop_lib.Trained:
  """Fine-tunes a policy on annotations and right draws.

  `draws` are graded solutions of the training questions, a group for each.
  """
  found = rows(run, config, draws)
  run.console.line(
    f"{name}: {len(found)} solutions of {len(draws)} questions, "
    f"{len(sft.annotated(run.train))} of them annotated"
  )
  return sft.train(run, name, policy, config, evaluate_fn, rows=found)


def rows(
  run: Run,
  config: schema.OfflineConfig,
  draws: Sequence[Sequence[Answer]],
) -> list[sft.Row]:
  """What is learnt: for each question its annotation and right draws."""
  tidy = functools.partial(prompts.tidy, reasoning=run.config.data.reasoning)
  end = run.tokenizer.eos_ids[0]
  learnt: list[sft.Row] = []
  for example, group in zip(run.train, draws, strict=True):
    annotation = None
    if example.target is not None:
      annotation = tidy(run.tokenizer.decode(example.target))
      learnt.append((example.prompt, example.target))
    right = [tidy(each.completion) for each in group if each.correct]
    texts = chosen(
      right, annotation, config, f"{run.config.seed} {example.problem.uid}"
    )
    learnt += [
      (example.prompt, (*run.tokenizer.encode(text), end)) for text in texts
    ]
  return learnt


def chosen(
  right: Sequence[str],
  annotation: str | None,
  config: schema.OfflineConfig,
  seed: str,
) -> list[str]:
  """The texts that join a question's annotation, at most `config.keep`.

  Random ones that differ from it and from each other (paper section 4.2).
  Deviation: the released code keeps the first ones drawn, and adds the
  annotation, which stands in its other file already, if it is not among them;
  `choose=official` does so.
  """
  distinct = list(dict.fromkeys(right))
  if config.choose == "official":
    first = distinct[: config.keep]
    again = annotation is not None and annotation not in first
    return [*first, annotation] if again else first
  new = [text for text in distinct if text != annotation]
  if len(new) <= config.keep:
    return new
  return random.Random(seed).sample(new, config.keep)
