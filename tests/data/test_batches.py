"""Problems as ids, ids as padded batches, and the order they come in."""

import dataclasses
import itertools

import chex
import hypothesis
import numpy as np
import pytest
import subwords
from hypothesis import strategies as st

from reft_jax.data import batches
from reft_jax.data import encode as encode_lib
from reft_jax.data import tokenizer as tokenizer_lib
from reft_jax.errors import UserError
from reft_jax.tasks import embedded, programs, prompts
from reft_jax.tasks.answers import grade
from reft_jax.tasks.problem import Problem

PAD = 9
IDS = st.lists(st.integers(0, 20), min_size=1, max_size=6)
SIZES = st.integers(1, 40)
BATCHES = st.integers(1, 12)


@pytest.fixture(scope="module")
def tokenizer() -> tokenizer_lib.Tokenizer:
  return tokenizer_lib.wrap(embedded.tokenizer())


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
  return embedded.problems(6, seed=0)


def encode(problems, tokenizer, **changes):
  settings = {
    "reasoning": "nl",
    "add_bos": False,
    "max_prompt_tokens": 1000,
    "max_response_tokens": 1000,
  }
  return encode_lib.encode(problems, tokenizer, **(settings | changes))


def test_prompts_and_targets_are_encoded_apart(tokenizer, problems):
  encoded = encode(problems, tokenizer)
  assert encoded.long_prompts == encoded.long_targets == 0
  assert [each.problem for each in encoded.examples] == problems
  for example, problem in zip(encoded.examples, problems, strict=True):
    assert list(example.prompt) == tokenizer.encode(prompts.prompt(problem))
    *target, end = example.target
    assert target == tokenizer.encode(prompts.target(problem))
    assert end == tokenizer.eos_ids[0]


def test_targets_end_in_the_first_eos(tokenizer, problems):
  several = dataclasses.replace(tokenizer, eos_ids=(5, *tokenizer.eos_ids))
  examples = encode(problems, several).examples
  assert {each.target[-1] for each in examples} == {5}


def test_only_prompts_begin_with_bos_and_only_on_request(tokenizer, problems):
  with_bos = dataclasses.replace(tokenizer, bos_id=7)
  plain = encode(problems, with_bos).examples
  asked = encode(problems, with_bos, add_bos=True).examples
  for one, other in zip(plain, asked, strict=True):
    assert other.prompt == (7, *one.prompt)
    assert other.target == one.target


def test_bos_cannot_be_asked_of_a_tokenizer_without(tokenizer, problems):
  with pytest.raises(UserError, match=r"add_bos=true.*set data.add_bos=false"):
    encode(problems, tokenizer, add_bos=True)


PROGRAM = 'def solution():\n    """How many?"""\n    a = 3\n    return a + 4'
SPOKEN = Problem("gsm8k_0", "gsm8k", " How many?\n", "3 + 4 = 7", "7")
WRITTEN = dataclasses.replace(SPOKEN, rationale=PROGRAM)
BOTH = pytest.mark.parametrize(
  ("problem", "reasoning"), [(SPOKEN, "nl"), (WRITTEN, "python")]
)


def subword(kind, **options):
  names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
  hf = subwords.train(kind, chat_template=subwords.TEMPLATE, **names)
  return tokenizer_lib.wrap(hf, **options)


@BOTH
@pytest.mark.parametrize("kind", subwords.KINDS)
@pytest.mark.parametrize("chat", [False, True])
def test_training_prompts_and_rollouts_have_the_same_ids(
  problem, reasoning, kind, chat
):
  """Whatever spaces a tokenizer adds where two texts meet."""
  tokenizer = subword(kind, chat=chat)
  (example,) = encode(
    [problem], tokenizer, reasoning=reasoning, chat_template=chat
  ).examples
  bare = dataclasses.replace(problem, rationale=None)
  (asked,) = encode(
    [bare], tokenizer, reasoning=reasoning, chat_template=chat
  ).examples
  assert asked.prompt == example.prompt
  rows = [(example.prompt, example.target)]
  trained = batches.supervised(rows, batch=1, slots=400, pad_id=PAD)
  rolled = batches.prompts([asked.prompt], [0], batch=1, slots=300, pad_id=PAD)
  length = int(rolled.lengths_B[0])
  tokens_S = trained.tokens_BS[0, : trained.lengths_B[0]]
  assert tokens_S[:length].tolist() == rolled.tokens_BP[0, :length].tolist()
  assert tokens_S[length:].tolist() == list(example.target)
  assert trained.targets_BS[0].sum() == len(example.target)

  text = tokenizer.decode(tokens_S[length:])
  assert text == prompts.target(problem, reasoning)
  if reasoning == "nl":
    verdict = grade.grade(text, problem).verdict
    assert verdict is grade.Verdict.CORRECT
  else:
    body = PROGRAM.split('"""\n')[1]
    source = programs.source(text, problem, mode="strict")
    assert source == f"def solution():\n{body}"


@pytest.mark.parametrize("kind", subwords.KINDS)
def test_a_program_that_goes_on_without_the_space(kind):
  """As a model writes that was not trained with `encode`."""
  tokenizer = subword(kind)
  body = PROGRAM.split('"""\n')[1]
  ids = tokenizer.encode("\n" + body)
  newline = tokenizer.encode("\n")
  assert ids[: len(newline)] == newline
  text = tokenizer.decode(ids[len(newline) :])
  for mode in grade.MODES:
    source = programs.source(text, WRITTEN, mode=mode)
    scope = {}
    exec(source, scope)
    assert scope["solution"]() == 7


def test_chats_are_asked_with_the_answer_begun():
  tokenizer = subword("bytes", chat=True)
  (words,) = encode([SPOKEN], tokenizer, chat_template=True).examples
  message = "Question:\nHow many?\nAnswer reasoning:\n"
  assert words.prompt == tuple(tokenizer.chat(message))
  (program,) = encode(
    [WRITTEN],
    tokenizer,
    reasoning="python",
    chat_template=True,
    system_prompt="Be brief.",
  ).examples
  assert program.prompt == tuple(
    tokenizer.chat(message, "Be brief.", start=prompts.head("How many?"))
  )
  assert tokenizer.hf.decode(program.prompt).endswith(
    '<|assistant|>\ndef solution():\n    """How many?"""\n'
  )
  end = tokenizer.hf.get_vocab()["<|end|>"]
  assert words.target[-1] == program.target[-1] == end == tokenizer.eos_ids[0]


def test_a_chat_begins_with_one_bos():
  bos = subwords.SPECIAL.index("<s>")
  with_bos, without = (
    tokenizer_lib.wrap(
      subwords.train(
        "llama", chat_template=template, bos_token="<s>", eos_token="</s>"
      )
    )
    for template in (subwords.STRICT_TEMPLATE, subwords.TEMPLATE)
  )
  for tokenizer, plain in ((with_bos, 1), (without, 0)):
    for add_bos in (False, True):
      (example,) = encode(
        [SPOKEN], tokenizer, add_bos=add_bos, chat_template=True
      ).examples
      assert example.prompt.count(bos) == (plain or add_bos)
      assert bos not in example.target
  ids = without.encode("<s>")  # Prefixed, the tokenizer's own way.
  assert ids[-1] == bos


def test_a_chat_needs_a_template(tokenizer, problems):
  with pytest.raises(UserError, match="the tokenizer has no chat template"):
    encode(problems, tokenizer, chat_template=True)


def test_a_chain_of_thought_of_another_kind_is_no_target(tokenizer, problems):
  encoded = encode(problems, tokenizer, reasoning="python")
  assert all(each.target is None for each in encoded.examples)
  assert len(encoded.unusable_targets) == len(problems)
  assert problems[0].uid in encoded.unusable_targets[0]


def test_without_a_rationale_there_is_no_target(tokenizer, problems):
  test_set = [dataclasses.replace(each, rationale=None) for each in problems]
  encoded = encode(test_set, tokenizer, max_response_tokens=1)
  assert encoded.long_targets == 0
  assert len(encoded.examples) == len(problems)
  assert all(example.target is None for example in encoded.examples)


def test_long_prompts_are_left_out_whole_and_counted(tokenizer, problems):
  examples = encode(problems, tokenizer).examples
  lengths = sorted({len(each.prompt) for each in examples})
  assert len(lengths) > 1
  for most in (lengths[0] - 1, *lengths):
    encoded = encode(problems, tokenizer, max_prompt_tokens=most)
    fit = [each for each in examples if len(each.prompt) <= most]
    assert encoded.examples == fit
    assert encoded.long_prompts == len(problems) - len(fit)


def test_long_annotations_cost_a_question_its_target_alone(tokenizer, problems):
  examples = encode(problems, tokenizer).examples
  lengths = sorted({len(each.target) for each in examples})
  assert len(lengths) > 1
  for most in (lengths[0] - 1, *lengths):
    encoded = encode(problems, tokenizer, max_response_tokens=most)
    kept = [each for each in examples if len(each.target) <= most]
    assert [each for each in encoded.examples if each.target] == kept
    assert len(encoded.examples) == len(problems)
    assert encoded.long_targets == len(problems) - len(kept)


def test_the_fingerprint_covers_problems_and_answers(tokenizer, problems):
  def of(some, **changes):
    return encode_lib.fingerprint({"train": encode(some, tokenizer, **changes)})

  assert of(problems) == of(list(problems))
  assert of(problems) != of(problems[:-1])
  other = dataclasses.replace(problems[0], answer="1")
  assert of(problems) != of([other, *problems[1:]])


@hypothesis.given(st.lists(st.tuples(IDS, IDS), max_size=4), st.integers(0, 3))
def test_supervised_rows_are_prompt_target_padding(rows, fillers):
  batch = len(rows) + fillers
  built = batches.supervised(rows, batch=batch, slots=12, pad_id=PAD)
  chex.assert_shape([built.tokens_BS, built.targets_BS], (batch, 12))
  assert built.tokens_BS.dtype == built.lengths_B.dtype == np.int32
  assert built.targets_BS.dtype == bool
  for index, (prompt, target) in enumerate(rows):
    end = len(prompt) + len(target)
    assert built.lengths_B[index] == end
    tokens_S, targets_S = built.tokens_BS[index], built.targets_BS[index]
    assert tokens_S.tolist() == [*prompt, *target, *[PAD] * (12 - end)]
    assert tokens_S[targets_S].tolist() == target
    assert not targets_S[: len(prompt)].any()


@hypothesis.given(IDS)
def test_a_document_predicts_all_but_its_first_token(document):
  built = batches.supervised([((), document)], batch=1, slots=8, pad_id=PAD)
  targets = np.flatnonzero(built.targets_BS[0]).tolist()
  assert targets == list(range(1, len(document)))


@hypothesis.given(st.integers(0, 3), st.integers(1, 3))
def test_filler_rows_have_no_targets(rows, fillers):
  batch = rows + fillers
  pairs = [((1, 2), (3, 4))] * rows
  built = batches.supervised(pairs, batch=batch, slots=8, pad_id=PAD)
  assert built.targets_BS.sum() == 2 * rows
  assert (built.tokens_BS[rows:] == PAD).all()
  # One token: no row is empty, whatever reads its last.
  assert (built.lengths_B[rows:] == 1).all()


@hypothesis.given(st.lists(IDS, max_size=4), st.integers(0, 3))
def test_prompt_rows_keep_their_request_numbers(rows, fillers):
  requests = [2**32 - 1 - index for index in range(len(rows))]
  batch = len(rows) + fillers
  built = batches.prompts(rows, requests, batch=batch, slots=6, pad_id=PAD)
  chex.assert_shape(built.tokens_BP, (batch, 6))
  assert built.requests_B.dtype == np.uint32
  for index, row in enumerate(rows):
    assert built.lengths_B[index] == len(row)
    assert built.requests_B[index] == requests[index]
    padded = [*row, *[PAD] * (6 - len(row))]
    assert built.tokens_BP[index].tolist() == padded
  assert (built.tokens_BP[len(rows) :] == PAD).all()
  assert (built.lengths_B[len(rows) :] == 1).all()


@hypothesis.given(SIZES, BATCHES, st.integers(0, 3), st.integers(0, 9))
def test_an_epoch_visits_every_row_once(size, batch, epoch, seed):
  steps = -(-size // batch)
  visited = [
    batches.epoch_rows(size, seed=seed, step=epoch * steps + step, batch=batch)
    for step in range(steps)
  ]
  assert sorted(itertools.chain(*visited)) == list(range(size))
  assert all(len(rows) == batch for rows in visited[:-1])
  assert len(visited[-1]) == (size - 1) % batch + 1


@hypothesis.given(SIZES, BATCHES, st.integers(0, 9))
def test_a_stream_is_permutations_end_to_end(size, batch, seed):
  steps = -(-3 * size // batch)
  visited = [
    batches.stream_requests(size, seed=seed, step=step, batch=batch)
    for step in range(steps)
  ]
  assert all(len(rows) == batch for rows in visited)
  stream = [*itertools.chain(*visited)]
  for start in range(0, 3 * size, size):
    # A row's request differs from epoch to epoch: so do its samples.
    assert sorted(stream[start : start + size]) == [*range(start, start + size)]


@pytest.mark.parametrize("order", [batches.epoch_rows, batches.stream_requests])
def test_the_order_follows_from_seed_and_step_alone(order):
  def rows(step, seed=3):
    return order(50, seed=seed, step=step, batch=8)

  forward = [rows(step) for step in range(20)]
  batches._permutation.cache_clear()  # As in a process that starts again.
  assert [rows(step) for step in reversed(range(20))] == forward[::-1]
  assert all(type(row) is int for row in forward[0])
  assert rows(0, seed=4) != forward[0]
  assert rows(0) != rows(7), "epochs are shuffled anew"


@hypothesis.given(st.integers(0, 10_000), st.integers(1, 64))
def test_round_up_is_the_next_multiple(size, multiple):
  rounded = batches.round_up(size, multiple)
  assert rounded % multiple == 0
  assert size <= rounded < size + multiple


@hypothesis.given(
  lengths=st.lists(st.integers(1, 90), min_size=1, max_size=8),
  bucket=st.integers(1, 50),
  most=st.integers(90, 100),
)
def test_a_batch_is_as_wide_as_it_must_be(lengths, bucket, most):
  width = batches.width(lengths, bucket=bucket, most=most)
  assert max(lengths) <= width <= most
  assert width < max(lengths) + bucket
  assert width % bucket == 0 or width == most


@hypothesis.given(
  rows=st.integers(1, 40),
  micro=st.integers(1, 48),
  shards=st.sampled_from([1, 2, 4, 8]),
)
def test_padded_rows_are_whole_micro_batches(rows, micro, shards):
  size, padded = batches.micro_batches(rows, micro, shards)
  # No more than needed, and the same number in every shard.
  assert size % shards == 0
  assert min(rows, micro) <= size < min(rows, micro) + shards
  assert padded % size == 0
  assert rows <= padded < rows + size
  if rows % shards == micro % shards == rows % min(rows, micro) == 0:
    assert (padded, size) == (rows, min(rows, micro))
