"""Linear layers in two thin pieces: what compression makes of a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from chamfer.core.errors import Incompatible


class Factored(nn.Module):
    """x -> outer(inner(x)): a linear map of rank `rank` in (n + m) * rank numbers instead of n * m."""

    def __init__(self, width: int, rank: int, out: int, *, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(width, rank, bias=False)
        self.outer = nn.Linear(rank, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(self.inner(x))
        return out


def factor(transformer: nn.Module, ranks: Mapping[str, int]) -> dict[str, Factored]:
    """Puts pieces of these ranks in the places of the named layers, in place; biases stay, the pieces are not set.

    Incompatible where a name is not that of a linear layer.
    """
    modules = dict(transformer.named_modules())
    made = {}
    for name, rank in ranks.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise Incompatible(f"the compressed weights factor {name!r}, which is no linear layer of this backbone")
        made[name] = Factored(linear.in_features, rank, linear.out_features, bias=linear.bias is not None)
        if linear.bias is not None:
            made[name].outer.bias = linear.bias
        parent, _, leaf = name.rpartition(".")
        setattr(modules[parent], leaf, made[name])
    return made
