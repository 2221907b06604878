"""What every stage trains on and is tested with: one question, one answer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its known answer.

  Attributes:
    uid: unique within its data set, such as `gsm8k_12`.
    task: says how its answers are read; a key of `answers.TASKS`.
    question: as published; prompts strip it. Options stand on its last line.
    rationale: the annotated chain of thought, in words or a whole program;
      None for test questions.
    answer: as published, such as `"203.0"` or `"c"`.
  """

  uid: str
  task: str
  question: str
  rationale: str | None
  answer: str
