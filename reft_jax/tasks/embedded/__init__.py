"""The embedded task: generated word problems, solutions and pretraining text.

A question is a story about how many things somebody has: a start, a few events
and sometimes an irrelevant sentence.

  Anna has 12 apples. She buys 5. Tom sees 3 birds. She doubles them. How many
  apples does Anna have?

A solution has one equation per event, or merges some of them:

  We get 12 + 5 = 17, then 17 * 2 = 34.
  We get ( 12 + 5 ) * 2 = 34.

A program has one line per equation, after a docstring with the question:

  def solution():
      result = 12 + 5
      result = result * 2
      return result

A multiple-choice question ends with a line of options in MathQA's format, and
its answer is a letter:

  a ) 17 , b ) 34 , c ) 35 , d ) 24 , e ) 19

Every quantity is a whole number from 0 to 99 with a space in front of it, so it
is one token of `tokenizer`. All texts are functions of a seed and are the same
in every process.
"""

from reft_jax.tasks.embedded import generate, stories, vocabulary

NAME, CHOICE, TASKS = generate.NAME, generate.CHOICE, generate.TASKS
problems, corpus = generate.problems, generate.corpus
signature, signatures = stories.signature, stories.signatures
tokenizer = vocabulary.tokenizer
