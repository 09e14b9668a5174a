"""A network as a list of its layers: the shapes of its tensors, and the work of one pass of one state.

A multiplication and an addition are two operations. Convolutions, linear layers and attention's products are counted;
normalisation and activations, some 1 % of the work, are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Inputs:
    """What a network is called with. height, width: of the VAE's latents; text: tokens of the prompt."""

    height: int
    width: int
    text: int = 0


class Counted:
    """Grows by a layer at a time. rows, area: how often a layer's weights are used in one pass; 0: not at all.

    shapes: of the tensors by name, as in the network's state_dict; flops: operations; put: elements that layers put
    out, up to now; largest: the most that one layer does; blocks: what the layers of each block put out, which
    checkpointing computes again; kept: elements that go into these blocks; whole: what those blocks put out that are
    not computed again.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.flops = self.put = self.largest = self.kept = self.whole = 0.0
        self.blocks: list[float] = []
        self._begun = 0.0

    @property
    def elements(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())

    def begin(self) -> None:
        """A block of layers begins."""
        self._begun = self.put

    def end(self, entered: float) -> None:
        """The block ends. entered: elements that went into it; 0: checkpointing leaves this block as it is."""
        if entered:
            self.kept += entered
            self.blocks.append(self.put - self._begun)
        else:
            self.whole += self.put - self._begun

    def tensor(self, name: str, *shape: int) -> None:
        self.shapes[name] = shape

    def norm(self, name: str, width: int, *, bias: bool = True) -> None:
        self.tensor(f"{name}.weight", width)
        if bias:
            self.tensor(f"{name}.bias", width)

    def linear(self, name: str, before: int, after: int, rows: float = 1, *, bias: bool = True) -> None:
        self._weights(name, (after, before), rows, bias)

    def conv(
        self,
        name: str,
        before: int,
        after: int,
        area: float,
        kernel: tuple[int, ...] = (3, 3),
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        """area: of what comes out, in pixels."""
        self._weights(name, (after, before // groups, *kernel), area, bias)

    def attention(self, queries: float, keys: float, width: int) -> None:
        """Products of queries and keys, and of weights and values."""
        self.flops += 4.0 * queries * keys * width

    def _weights(self, name: str, shape: tuple[int, ...], rows: float, bias: bool) -> None:
        self.tensor(f"{name}.weight", *shape)
        if bias:
            self.tensor(f"{name}.bias", shape[0])
        self.flops += 2.0 * prod(shape) * rows
        self.put += shape[0] * rows
        self.largest = max(self.largest, shape[0] * rows)
