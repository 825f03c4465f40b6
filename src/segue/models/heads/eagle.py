"""A decoder layer that guesses the base model's next states, as others trained it (EAGLE, Li et al. 2024; EAGLE-2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segue.models.heads import jakiro
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.layer import BASE, Attention, SwiGLU


@dataclass(frozen=True)
class Shape(jakiro.Shape):
    """`inner` is the width of the feed-forward network as it is."""

    experts: int = 1
    key_heads: int = 4  # of keys and values; several queries share one where there are fewer
    head_size: int = 8
    enter_bias: bool = False
    attention_bias: bool = False  # of queries, keys and values
    base: float = BASE  # of the rotary angles
    eps: float = 1e-6  # of the norm

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_heads % self.key_heads or self.head_size % 2:
            raise ValueError(
                f"{self.attention_heads} heads of {self.head_size} numbers with {self.key_heads} heads of keys are not "
                "allowed: equally many share one, and numbers turn in pairs"
            )


class EagleNetwork(JakiroNetwork):
    """x_t = P [e(token t+1); h_t] enters a Llama layer without a norm before its attention; its output is the guess of
    h_{t+1}, the state behind the base's last norm, of which the base's own vocabulary projection makes tokens. So it is
    jakiro's layer with one expert, and the same method drafts with it."""

    shape_type = Shape
    shape: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.enter = nn.Linear(2 * shape.width, shape.width, bias=shape.enter_bias)
        self.attention = Attention(
            shape.width,
            shape.attention_heads,
            groups=shape.key_heads,
            size=shape.head_size,
            norm=False,
            bias=shape.attention_bias,
            base=shape.base,
        )
        self.norm = nn.RMSNorm(shape.width, eps=shape.eps)
        self.experts = nn.ModuleList([SwiGLU(shape.width, shape.inner)])
