"""Linear layers factored into two of low rank, as compression leaves them in a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from chamfer.core.errors import Incompatible


class Factored(nn.Module):
    """x -> outer(inner(x)): a linear map of rank r with (n + m) r parameters instead of n m."""

    def __init__(self, n_inputs: int, rank: int, n_outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(n_inputs, rank, bias=False)
        self.outer = nn.Linear(rank, n_outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.outer(self.inner(x))
        return outputs


def factor(transformer: nn.Module, ranks: Mapping[str, int]) -> dict[str, Factored]:
    """Replaces the named linear layers, in place, by factored ones of these ranks, and returns those by name.

    Biases are kept; the factors themselves are for the caller to fill. Incompatible for a name that is not that of a
    linear layer.
    """
    modules = dict(transformer.named_modules())
    factored = {}
    for name, rank in ranks.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise Incompatible(f"the compressed weights factor {name!r}, which is not a linear layer of this backbone")
        factored[name] = Factored(linear.in_features, rank, linear.out_features, bias=linear.bias is not None)
        if linear.bias is not None:
            factored[name].outer.bias = linear.bias
        parent, _, leaf = name.rpartition(".")
        setattr(modules[parent], leaf, factored[name])
    return factored
