"""Offline self-training (paper section 4.2): imitate one's own right answers.

Solutions are sampled once, from the warmed-up model. Those whose answer is
right join the annotations, and a model is fine-tuned on both.
"""

import functools
import random
from collections.abc import Sequence

from reft_jax.algorithms import sft
from reft_jax.config import schema
from reft_jax.run import context
from reft_jax.tasks import prompts


def train(run: context.Run, stage: context.StageRun) -> context.Trained:
  """Fine-tunes a policy on annotations and right samples."""
  collected = stage.collected["train"]
  rows = training_rows(run, stage.config, collected)
  run.console.line(
    f"{stage.name}: {len(rows)} solutions of {len(collected)} questions, "
    f"{len(sft.annotated(run.train))} of them annotated"
  )
  return sft.train_on(run, stage, rows)


def training_rows(
  run: context.Run, config: schema.OfflineConfig, collected: context.Groups
) -> list[sft.Row]:
  """For each question its annotation and right samples."""
  tokenizer = run.engine.tokenizer
  tidy = functools.partial(prompts.tidy, reasoning=run.config.data.reasoning)
  eos = tokenizer.eos_ids[0]
  rows: list[sft.Row] = []
  for example, group in zip(run.train, collected, strict=True):
    annotation = None
    if example.target is not None:
      annotation = tidy(tokenizer.decode(example.target))
      rows.append((example.prompt, example.target))
    right = [tidy(each.completion) for each in group if each.correct]
    texts = selected(
      right, annotation, config, f"{run.config.seed} {example.problem.uid}"
    )
    rows += [(example.prompt, (*tokenizer.encode(text), eos)) for text in texts]
  return rows


def selected(
  right: Sequence[str],
  annotation: str | None,
  config: schema.OfflineConfig,
  seed: str,
) -> list[str]:
  """The texts that join a question's annotation, at most `config.keep`.

  Random ones that differ from it and from each other (paper section 4.2).
  Deviation: the released code keeps the first ones sampled, and adds the
  annotation, which stands in its other file already, if it is not among them;
  `choose=official` does so.
  """
  distinct = list(dict.fromkeys(right))
  if config.choose == "official":
    first = distinct[: config.keep]
    if annotation is None or annotation in first:
      return first
    return [*first, annotation]
  new = [text for text in distinct if text != annotation]
  if len(new) <= config.keep:
    return new
  return random.Random(seed).sample(new, config.keep)
