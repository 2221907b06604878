"""Program chains of thought: from a completion to what is run, and back."""

import itertools
from typing import Literal

from reft_jax.tasks import problem as problem_lib
from reft_jax.tasks import prompts
from reft_jax.tasks.answers import quantities
from reft_jax.tasks.sandbox import results

_NUMBERS = ("int", "float", "exact")


def source(
  completion: str,
  problem: problem_lib.Problem,
  *,
  mode: Literal["strict", "official"],
) -> str:
  """The program of a completion, with or without the prompt in front of it.

  In both modes it ends before the first blank line (the released code's rule).
  `official` runs all that follows the last trigger, docstring included, with
  `sys.exit` printed instead. It has no import lines: the executor offers math
  and sympy. Deviation, `strict`: the function's body is run without the
  docstring, where a question's quotes or blank lines would break the program.
  """
  prompt = prompts.prompt(problem, "python")
  completion = _aligned(completion)
  if mode == "strict":
    program = prompts.DEFINITION + completion.removeprefix(prompt)
  else:
    bare = prompts.COT_TRIGGER not in completion
    text = prompt + completion if bare else completion
    program = prompts.continuation(text).replace("sys.exit", "print")
  return "\n".join(itertools.takewhile(str.strip, program.split("\n")))


def _aligned(completion: str) -> str:
  """The completion, its first line under the docstring that it follows.

  Tokenizers of the SentencePiece kind put a space in front of a text and take
  it off when its ids are decoded. A model that was not taught this goes on with
  the four spaces of its prompt, and three are left: they become four again,
  unless the program means them.
  """
  lines = itertools.takewhile(str.strip, completion.split("\n"))
  first, *margins = [len(line) - len(line.lstrip(" ")) for line in lines] or [0]
  meant = min(margins, default=4) < 4
  return completion if first != 3 or meant else f" {completion}"


def number(result: results.Result) -> float | None:
  """The number a program returned; None for all else and where it failed.

  Bools, texts, nan, infinities and absurdly large numbers are no numbers.
  """
  if result.status is not results.Status.RETURNED:
    return None
  if result.kind not in _NUMBERS or result.number is None:
    return None
  return quantities.sane(result.number)


def text(result: results.Result) -> str | None:
  """The text a program returned; None for all else and where it failed."""
  returned = result.status is results.Status.RETURNED
  return result.text if returned and result.kind == "text" else None
