"""A question and its reference answer: the unit of training and testing."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its reference answer.

  Attributes:
    uid: unique within its data set, such as `gsm8k_12`.
    task: how its answers are read; a key of `grade.TASKS`.
    question: as published; prompts strip it. Its last line holds the options.
    rationale: the annotated chain of thought, in words or as a whole program;
      None without annotation.
    answer: as published, such as `"203.0"` or `"c"`.
  """

  uid: str
  task: str
  question: str
  rationale: str | None
  answer: str
