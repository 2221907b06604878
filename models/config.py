"""ModelConfig: every switch of every supported family.

The letters are the same in the whole repository: B sequences, S slots,
V vocabulary, D width, F feed-forward, N query heads, K key-value heads,
H head size, L layers; C classes of a classifier's head.
"""

import dataclasses
import re

from reft_jax.models import errors

CLASSES = ("incorrect", "correct")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary positions. A field that a kind does not use keeps its default.

  Attributes:
    kind: one of ROPE_KINDS.
    theta: the base of the wavelengths.
    factor: by how much the context was stretched (linear, dynamic, llama3,
      yarn).
    original_max_positions: context of the first pretraining (llama3, yarn,
      longrope).
    attention_factor: multiplies cosine and sine (yarn, longrope).
    low_freq_factor: wavelengths above original_max_positions /
      low_freq_factor are stretched in full (llama3).
    high_freq_factor: those below original_max_positions / high_freq_factor
      are left alone (llama3).
    beta_fast: frequencies that turn more often than this over the original
      context are left alone (yarn).
    beta_slow: those that turn less often are stretched in full (yarn).
    truncate: whether yarn's range is widened to whole dimensions.
    short_factor: a divisor for each frequency, for rows within the original
      context (longrope).
    long_factor: the same for longer rows.
  """

  kind: str = "default"
  theta: float = 10000.0
  factor: float = 1.0
  original_max_positions: int = 0
  attention_factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  short_factor: tuple[float, ...] = ()
  long_factor: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder's architecture; hashable, so it can be static under jit.

  Attributes:
    vocab_size: V.
    width: D, the size of the residual stream.
    layers: L.
    heads: N, query heads.
    kv_heads: K, key-value heads; each serves N / K query heads.
    head_size: H; need not be width / heads.
    ffn: F, the inner size of the feed-forward layer.
    norm_eps: added to the mean square in RMSNorm.
    rope: rotary positions.
    tied_head: whether the LM head is the embedding table.
    attention_bias: whether the q, k, v and output projections have biases.
    mlp_bias: whether the feed-forward projections have biases.
    activation: of the feed-forward gate, by its name in config.json.
    max_positions: the context the model was made for.
    init_scale: standard deviation of fresh weights.
    family: the architecture's `model_type` in config.json.
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_size: int
  ffn: int
  norm_eps: float = 1e-5
  rope: RopeConfig = RopeConfig()
  tied_head: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  activation: str = "silu"
  max_positions: int = 2048
  init_scale: float = 0.02
  family: str = "llama"

  def __post_init__(self):
    for letter, size in self.sizes.items():
      if size < 1:
        raise errors.UnsupportedModelError(
          f"the size of {letter} is {size}; every size must be at least 1."
        )
    if self.heads % self.kv_heads:
      raise errors.UnsupportedModelError(
        f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}."
      )
    if self.head_size % 2:
      raise errors.UnsupportedModelError(
        f"head_size={self.head_size} must be even: positions rotate pairs."
      )
    if self.rope.kind == "longrope":
      pairs = self.head_size // 2
      for name in ("short_factor", "long_factor"):
        count = len(getattr(self.rope, name))
        if count != pairs:
          raise errors.UnsupportedModelError(
            f"rope's {name} holds {count} numbers but must hold {pairs}: one "
            f"for each pair of head_size={self.head_size}."
          )

  @property
  def sizes(self) -> dict[str, int]:
    """The size of each axis letter that a parameter can have."""
    return {
      "V": self.vocab_size,
      "D": self.width,
      "F": self.ffn,
      "N": self.heads,
      "K": self.kv_heads,
      "H": self.head_size,
      "C": len(CLASSES),
    }

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of one layer's parameter, which its name spells out."""
    return tuple(self.sizes[letter] for letter in letters(name))


def letters(name: str) -> str:
  """The axis letters at the end of a parameter's name; '' if there are none."""
  match = re.search(r"_([VDFNKHC]+)$", name)
  return match.group(1) if match else ""
