"""Solutions as rows with a label."""

import tiny

from reft_jax.algorithms import reward_model
from reft_jax.data import batches
from reft_jax.sampling import grading
from reft_jax.tasks import embedded, prompts
from reft_jax.tasks.answers import grade


def answer(example, text):
  return grading.Answer(example, text, grade.grade(text, example.problem), True)


def test_alike_solutions_of_a_question_are_one_row():
  run = tiny.run(embedded.problems(5, seed=1))
  texts = [prompts.target(example.problem) for example in run.test]
  groups = [
    [answer(example, text) for text in (*texts, f"{texts[0]}\n")]
    for example in run.test
  ]
  rows, labels = reward_model.labelled_rows(run, groups)
  assert len(rows) == len(labels) == 25
  first = run.test[0]
  # Without EOS, as the released reward model reads them.
  assert rows[0] == [*first.prompt, *run.engine.tokenizer.encode(texts[0])]
  assert labels[0] == 1
  assert 0 < sum(labels) < len(labels)


def test_rows_of_a_classifier_are_cut_and_padded():
  batch = batches.labelled(
    [[5, 6, 7, 8], [9]], [1, 0], batch=3, slots=3, pad_id=2
  )
  assert batch.tokens_BS.tolist() == [[5, 6, 7], [9, 2, 2], [2, 2, 2]]
  assert batch.lengths_B.tolist() == [3, 1, 1]
  assert batch.labels_B.tolist() == [1, 0, 0]
  assert batch.real_B.tolist() == [True, True, False]
