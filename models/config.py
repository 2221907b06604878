"""ModelConfig: every switch of every supported family.

The letters are the same in the whole repository: B sequences, S slots,
V vocabulary, D width, F feed-forward, N query heads, K key-value heads,
H head size, L layers. Parameters alone also have: E width of the embeddings, M
learned positions, R rank of an adapter, C classes of a classifier's head.
"""

import dataclasses
import re

from reft_jax.models import errors

CLASSES = ("incorrect", "correct")
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
NORMS = ("rms", "layer")
NORM_PLACES = ("pre", "post", "both", "sum")
PARALLEL = ("none", "shared_norm", "own_norms")
QK_NORMS = ("none", "head", "whole")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary positions. A field that a kind does not use keeps its default.

  Attributes:
    kind: one of ROPE_KINDS.
    theta: the base of the wavelengths.
    factor: the factor by which the context was extended (linear, dynamic,
      llama3, yarn).
    original_max_positions: the context before it was extended (llama3, yarn,
      longrope).
    attention_factor: multiplies cosine and sine (yarn, longrope).
    low_freq_factor: wavelengths above original_max_positions /
      low_freq_factor are scaled in full (llama3).
    high_freq_factor: those below original_max_positions / high_freq_factor
      are unchanged (llama3).
    beta_fast: frequencies with more turns than this over the original context
      are unchanged (yarn).
    beta_slow: frequencies with fewer turns are scaled in full (yarn).
    truncate: whether the bounds of yarn's ramp are rounded to whole dimensions.
    short_factor: a divisor for each frequency, for rows within the original
      context (longrope).
    long_factor: the same for longer rows.
    size: how many of a head's first coordinates are rotated; None: all.
    interleaved: whether the pairs are coordinates 2r and 2r + 1 (CodeGen)
      instead of r and r + size / 2.
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
  size: int | None = None
  interleaved: bool = False


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
    family: the architecture's `model_type` in config.json.
    max_positions: the length of the model's context.
    init_scale: standard deviation of initial weights.

    embed_size: E, where the embeddings' width is not the stream's and they are
      projected to it and back (OPT-350m); None: D.
    embed_scale: multiplies embeddings, rounded to the compute dtype (Gemma).
    tied_head: whether the LM head is the embedding table.
    head_bias: whether the LM head has a bias.
    logit_cap: c in c tanh(logits / c); None: no cap.

    rope: rotary positions; None: learned ones, added to the embeddings.
    local_rope: rotary positions of layers with a window, where they differ
      (Gemma 3).
    rope_layers: for each layer, whether it rotates (SmolLM3); (): all do.
    position_offset: the row of learned position 0 (OPT: 2).
    windows: for each layer, how many tokens a query attends to, itself
      included; 0 is no limit. (): no layer has a window.

    norm: "rms" or "layer", which also subtracts the mean and has a bias.
    norm_eps: added to the mean square.
    norm_offset: added to stored scales (Gemma: 1).
    norm_affine: whether norms have parameters.
    norm_place: where a block's norms are: "pre", before its layers; "post",
      on their outputs (OLMo 2); "both" (Gemma 2); or "sum", on the stream
      after each addition (OPT-350m).
    final_norm: whether a norm follows the last block.
    parallel: whether attention and the feed-forward layer read the same stream:
      "none", they run in sequence; "shared_norm", with one norm for both
      (CodeGen); "own_norms" (GPT-NeoX).

    qkv_bias: whether the q, k and v projections have biases.
    o_bias: whether the output projection has one.
    qk_norm: norm of queries and keys before rotation: "none", of each "head"
      (Qwen 3) or of all heads' coordinates together, "whole" (OLMo 2).
    score_scale: multiplies attention scores; None: H ** -0.5.
    scale_by_layer: whether the scores of layer l are divided by l, from 1.
    score_cap: c in c tanh(scores / c); None: no cap.

    gated: whether the feed-forward layer is down(act(gate x) * up x) instead of
      down(act(up x)).
    mlp_bias: whether its projections have biases.
    activation: its name in config.json.
  """

  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_size: int
  ffn: int
  family: str = "llama"
  max_positions: int = 2048
  init_scale: float = 0.02

  embed_size: int | None = None
  embed_scale: float = 1.0
  tied_head: bool = False
  head_bias: bool = False
  logit_cap: float | None = None

  rope: RopeConfig | None = RopeConfig()
  local_rope: RopeConfig | None = None
  rope_layers: tuple[bool, ...] = ()
  position_offset: int = 0
  windows: tuple[int, ...] = ()

  norm: str = "rms"
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  norm_affine: bool = True
  norm_place: str = "pre"
  final_norm: bool = True
  parallel: str = "none"

  qkv_bias: bool = False
  o_bias: bool = False
  qk_norm: str = "none"
  score_scale: float | None = None
  scale_by_layer: bool = False
  score_cap: float | None = None

  gated: bool = True
  mlp_bias: bool = False
  activation: str = "silu"

  def __post_init__(self) -> None:
    for letter, size in self.sizes.items():
      if size < 1:
        raise errors.UnsupportedModelError(
          f"the size of {letter} is {size}; every size must be at least 1."
        )
    if self.heads % self.kv_heads:
      raise errors.UnsupportedModelError(
        f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}."
      )
    for name, choices in (
      ("norm", NORMS),
      ("norm_place", NORM_PLACES),
      ("parallel", PARALLEL),
      ("qk_norm", QK_NORMS),
    ):
      if getattr(self, name) not in choices:
        raise errors.UnsupportedModelError(
          f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}."
        )
    if self.parallel != "none" and self.norm_place != "pre":
      raise errors.UnsupportedModelError(
        f"parallel={self.parallel} needs norm_place=pre, not {self.norm_place}."
      )
    for name in ("windows", "rope_layers"):
      count = len(getattr(self, name))
      if count not in (0, self.layers):
        raise errors.UnsupportedModelError(
          f"{name} lists {count} layers, but the model has {self.layers}."
        )
    for rope in (self.rope, self.local_rope):
      if rope is not None:
        self._check_rope(rope)

  def _check_rope(self, rope: RopeConfig) -> None:
    size = self.turning(rope)
    if size % 2 or not 0 < size <= self.head_size:
      raise errors.UnsupportedModelError(
        f"positions rotate {size} of a head's {self.head_size} coordinates; "
        "that number must be even, and above 0."
      )
    if rope.kind == "longrope":
      for name in ("short_factor", "long_factor"):
        count = len(getattr(rope, name))
        if count != size // 2:
          raise errors.UnsupportedModelError(
            f"rope's {name} holds {count} numbers but must hold {size // 2}: "
            f"one for each pair of the {size} rotated coordinates."
          )

  def turning(self, rope: RopeConfig) -> int:
    """How many of a head's coordinates are rotated."""
    return self.head_size if rope.size is None else rope.size

  @property
  def outer(self) -> str:
    """The letter of the embeddings' width: D, or E where they are projected."""
    return "D" if self.embed_size is None else "E"

  @property
  def embed_name(self) -> str:
    """The name of the embedding table, such as embed_VD."""
    return f"embed_V{self.outer}"

  @property
  def head_name(self) -> str:
    """The name of the LM head where it is not the embedding table."""
    return f"lm_{self.outer}V"

  @property
  def sizes(self) -> dict[str, int]:
    """The size of each axis letter that a parameter of this model can have."""
    sizes = {
      "V": self.vocab_size,
      "D": self.width,
      "F": self.ffn,
      "N": self.heads,
      "K": self.kv_heads,
      "H": self.head_size,
      "C": len(CLASSES),
    }
    if self.embed_size is not None:
      sizes["E"] = self.embed_size
    if self.rope is None:
      sizes["M"] = self.max_positions + self.position_offset
    return sizes

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of one layer's parameter, from the letters of its name."""
    return tuple(self.sizes[letter] for letter in letters(name))


def letters(name: str) -> str:
  """The axis letters at the end of a parameter's name; '' if there are none."""
  match = re.search(r"_([VDEFNKHMRC]+)$", name)
  return match.group(1) if match else ""
