"""Programs as chains of thought: their source and their results."""

import itertools

from reft_jax.tasks import prompts
from reft_jax.tasks.answers import quantities
from reft_jax.tasks.problem import Problem
from reft_jax.tasks.sandbox import results

_NUMBERS = ("int", "float", "exact")


def source(completion: str, problem: Problem, *, mode: str) -> str:
  """The program of a completion, with or without the prompt in front of it.

  In both modes it ends before the first blank line (the released code's rule).
  `official` is all that follows the last trigger, docstring included, with
  `sys.exit` replaced by `print`. Import lines are not needed: the executor
  offers math and sympy. Deviation, `strict`: the docstring is left out, because
  quotes or blank lines of the question would break the program.
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
  """The completion with its first line indented like the prompt's docstring.

  SentencePiece tokenizers add a space in front of a text and remove it in
  decoding. A model that was not trained for this writes the four spaces of its
  prompt, and decoding leaves three. They become four again, unless another line
  of the program is indented by less than four.
  """
  lines = itertools.takewhile(str.strip, completion.split("\n"))
  first, *margins = [len(line) - len(line.lstrip(" ")) for line in lines] or [0]
  intended = min(margins, default=4) < 4
  return completion if first != 3 or intended else f" {completion}"


def number(result: results.Result) -> float | None:
  """The number that a program returned; None if it failed or returned none.

  Bools, texts, nan, infinities and numbers above `quantities.LARGEST` do not
  count.
  """
  if result.kind not in _NUMBERS or result.number is None:
    return None
  return quantities.sane(result.number)
