"""What a field of a config.json may hold."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from reft_jax.models import errors


class Kind(NamedTuple):
  """The values a field may have, in words and as a test."""

  text: str
  holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
  # Not by isinstance: to Python true is an int.
  return type(value) in (int, float) and abs(value) < math.inf


def _is_list_of(kind: Kind) -> Callable[[Any], bool]:
  return lambda x: isinstance(x, list) and all(map(kind.holds, x))


SIZE = Kind("a whole number above 0", lambda x: type(x) is int and x > 0)
COUNT = Kind("a whole number, 0 or more", lambda x: type(x) is int and x >= 0)
NUMBER = Kind("a number, 0 or more", lambda x: _is_number(x) and x >= 0)
POSITIVE = Kind("a number above 0", lambda x: _is_number(x) and x > 0)
NUMBERS = Kind("a list of numbers above 0", _is_list_of(POSITIVE))
FLAG = Kind("true or false", lambda x: isinstance(x, bool))
FLAGS = Kind(
  "a list of 0 and 1",
  _is_list_of(Kind("", lambda x: x in (0, 1))),
)
TEXT = Kind("text", lambda x: isinstance(x, str))
TEXTS = Kind("a list of texts", _is_list_of(TEXT))
GROUP = Kind("an object with fields", lambda x: isinstance(x, dict))

# Fields that say nothing of what is computed here: records, ids (the tokenizer
# is asked for them), training noise that is never applied, heads of other
# tasks, and hints for programs that run the model.
HARMLESS = frozenset(
  (
    # Records and hints.
    *("architectures", "auto_map", "dtype", "torch_dtype", "model_type"),
    *("name_or_path", "transformers_version", "use_cache", "torchscript"),
    *("task_specific_params", "tokenizer_class", "use_bfloat16", "n_ctx"),
    *("gradient_checkpointing", "cache_implementation", "pretraining_tp"),
    *("output_attentions", "output_hidden_states", "return_dict"),
    *("unsloth_fixed", "unsloth_version", "base_model_tp_plan"),
    *("base_model_pp_plan", "chunk_size_feed_forward", "is_decoder"),
    # More precise here, whatever it says.
    "reorder_and_upcast_attn",
    # Classifiers.
    *("id2label", "label2id", "num_labels", "problem_type"),
    *("classifier_dropout", "finetuning_task", "summary_activation"),
    *("summary_first_dropout", "summary_proj_to_labels", "summary_type"),
    "summary_use_proj",
    # Special ids.
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
    *("cls_token_id", "unk_token_id", "decoder_start_token_id", "prefix"),
    *("forced_bos_token_id", "forced_eos_token_id"),
    # Noise of training.
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    *("dropout", "hidden_dropout", "layerdrop", "activation_dropout"),
    # How old versions sampled.
    *("do_sample", "temperature", "top_k", "top_p", "max_length"),
    *("min_length", "num_beams", "repetition_penalty", "length_penalty"),
    *("num_return_sequences", "early_stopping", "no_repeat_ngram_size"),
  )
)


def checked(
  fields: Mapping[str, Any], kinds: Mapping[str, Kind], group: str = ""
) -> dict[str, Any]:
  """The fields that are not null, which says as much as leaving them out.

  Args:
    fields: a config.json, or an object within it.
    kinds: what the fields that matter may hold; others are not looked at.
    group: the field that holds the object, for the error.

  Raises:
    UnsupportedModelError: names a field that holds something else.
  """
  present = {name: x for name, x in fields.items() if x is not None}
  for name, kind in kinds.items():
    if name in present and not kind.holds(present[name]):
      full_name = f"{group}.{name}" if group else name
      raise errors.UnsupportedModelError(
        f"the field {full_name!r} is {present[name]!r:.40} but must be "
        f"{kind.text}."
      )
  return present


def demand(fields: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
  """Refuses settings that would change what is computed, were they followed.

  Args:
    fields: a config.json.
    fixed: the one value that is implemented of each such setting; null and a
      missing field count as that value.

  Raises:
    UnsupportedModelError: names the first that is set otherwise.
  """
  for name, value in fixed.items():
    if fields.get(name) is not None and fields[name] != value:
      raise errors.UnsupportedModelError(
        f"the setting {name}={fields[name]!r:.40} is not implemented; only "
        f"{value!r} is."
      )


def or_null(fields: Mapping[str, Any], name: str, default: Any) -> Any:
  """A field that null switches off, and that has a default where missing."""
  return fields.get(name, default)


def unknown(fields: Mapping[str, Any], known: Iterable[str]) -> list[str]:
  """The fields that are set and that nothing here knows."""
  known = HARMLESS | set(known)
  return sorted(
    name
    for name, value in fields.items()
    if value not in (None, False)
    and name not in known
    and not name.startswith("_")
  )
