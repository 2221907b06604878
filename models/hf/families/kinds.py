"""The fields of a config.json: the values they may have, and their defaults."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from reft_jax.models import errors

NO_DEFAULT = object()


class Kind(NamedTuple):
  """The values a field may have."""

  text: str  # These values, in words.
  holds: Callable[[Any], bool]  # Whether a value is one of them.
  # Whether null differs from a missing field: null switches something off, and
  # a missing field has a default.
  nullable: bool = False
  error: str = "the field {name!r} is {value!r:.40} but must be {text}."
  default: Any = NO_DEFAULT  # What transformers takes a missing field for.
  ours: str = ""  # The field of ModelConfig with the same value, if any.

  def field(
    self, default: Any = NO_DEFAULT, ours: str = "", *, nullable: bool = False
  ) -> "Kind":
    """The kind of one field."""
    return self._replace(default=default, ours=ours, nullable=nullable)


Fields = Mapping[str, Kind]


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
FLAGS = Kind("a list of 0 and 1", _is_list_of(Kind("", lambda x: x in (0, 1))))
TEXT = Kind("text", lambda x: isinstance(x, str))
TEXTS = Kind("a list of texts", _is_list_of(TEXT))
GROUP = Kind("an object with fields", lambda x: isinstance(x, dict))

# Fields that do not change the logits: records, special ids (the tokenizer has
# them), dropout, which is never applied, heads of other tasks, and hints for
# programs that run the model.
HARMLESS = frozenset(
  (
    # Records and hints.
    *("chunk_size_feed_forward", "gradient_checkpointing", "output_attentions"),
    *("transformers_version", "task_specific_params", "cache_implementation"),
    *("output_hidden_states", "base_model_tp_plan", "base_model_pp_plan"),
    *("tokenizer_class", "unsloth_version", "pretraining_tp", "architectures"),
    *("unsloth_fixed", "name_or_path", "use_bfloat16", "torch_dtype", "dtype"),
    *("torchscript", "return_dict", "model_type", "is_decoder", "use_cache"),
    *("auto_map", "n_ctx"),
    # Scores are computed in fp32 either way.
    "reorder_and_upcast_attn",
    # Classifiers.
    *("summary_proj_to_labels", "summary_first_dropout", "classifier_dropout"),
    *("summary_activation", "summary_use_proj", "finetuning_task", "id2label"),
    *("problem_type", "summary_type", "num_labels", "label2id"),
    # Special ids.
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "prefix"),
    *("cls_token_id", "unk_token_id"),
    # Dropout.
    *("activation_dropout", "attention_dropout", "hidden_dropout", "layerdrop"),
    *("resid_pdrop", "attn_pdrop", "embd_pdrop", "dropout"),
    # Sampling, which old versions kept here.
    *("num_return_sequences", "no_repeat_ngram_size", "repetition_penalty"),
    *("length_penalty", "early_stopping", "temperature", "max_length", "top_k"),
    *("min_length", "do_sample", "num_beams", "top_p"),
  )
)


def only(value: Any) -> Kind:
  """The one implemented value of a setting that would change the logits."""
  return Kind(
    repr(value),
    lambda x: x == value,
    error="the setting {name}={value!r:.40} is not implemented; only {text} "
    "is.",
  )


def check_fields(
  fields: Mapping[str, Any], known: Fields, group: str = ""
) -> dict[str, Any]:
  """Drops null fields, unless they are nullable, and adds defaults.

  Args:
    fields: a config.json, or an object within it.
    known: the fields that matter; the values of others are not checked.
    group: the field that holds the object, for the error.

  Raises:
    UnsupportedModelError: names the first field with another value.
  """
  checked = {
    name: kind.default
    for name, kind in known.items()
    if kind.default is not NO_DEFAULT
  }
  for name, kind in known.items():
    value = fields.get(name)
    if value is not None and not kind.holds(value):
      full_name = f"{group}.{name}" if group else name
      raise errors.UnsupportedModelError(
        kind.error.format(name=full_name, value=value, text=kind.text)
      )
  for name, value in fields.items():
    if value is not None or (name in known and known[name].nullable):
      checked[name] = value
  return checked


def with_defaults(fields: Fields, **defaults: Any) -> dict[str, Kind]:
  """The same fields, some of which have another default."""
  return dict(fields) | {
    name: fields[name]._replace(default=default)
    for name, default in defaults.items()
  }


def read_ours(known: Fields, fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of ModelConfig whose values a config.json has."""
  return {x.ours: fields[name] for name, x in known.items() if x.ours}


def write_ours(known: Fields, config: Any) -> dict[str, Any]:
  """The inverse of `read_ours`."""
  return {name: getattr(config, x.ours) for name, x in known.items() if x.ours}
