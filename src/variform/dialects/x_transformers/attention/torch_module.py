"""Any module of torch as a mixer."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor, nn

from variform.core.part import Can, Facts
from variform.errors import ConfigError, ShapeError
from variform.parts.kinds import Mixer, Output, Streams


class TorchModule(Mixer):
    """A module `f(x) -> y` or `(y, ...)`, of which y is taken; it is copied, so that each place has its own.

    Nothing is known of what it does: it does not decode, and is causal where its maker says so. A description that
    holds a module cannot be written to a file.

    Shapes:
        x: [B, L, dim] -> [B, L, any]

    Args:
        module: the module.
        causal_module: whether what it gives of a token depends on no later one.
        mask_name: the keyword under which it takes `valid`, [B, L] bool, True = a real token; None if it takes none.

    Raises:
        ConfigError: `module` is none.
        ShapeError: there is padding, and it takes no mask.
    """

    name: ClassVar[str] = "torch_module"
    can: ClassVar[Can] = Can(attention_mask=False, packed=False, cross=False, decode=False)
    reads: ClassVar[frozenset[str]] = frozenset({"valid"})

    def __init__(self, module: Any, causal_module: bool = False, mask_name: str | None = None) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise ConfigError(f"a torch.nn.Module is needed, not {type(module).__name__}", path="module")
        self.module = copy.deepcopy(module)
        self.mask_name = mask_name

    @classmethod
    def abilities(cls, args: Facts) -> Can:
        """What its maker says; a causal one cannot see padding on the right, but does not know it on the left."""
        return Can(bool(args.get("causal_module")), args.get("mask_name") is not None, False, False, False, True, False)

    def forward(self, x: Tensor, streams: Streams) -> Output:
        """Call the module."""
        valid = streams.get("valid")
        for name in ("mask", "segments"):
            if streams.get(name) is not None:
                raise ShapeError(f"a module of torch cannot honour the stream {name!r}; leave it out")
        if valid is not None and self.mask_name is None:
            raise ShapeError("this module of torch takes no mask, and there is padding: give mask_name")
        given = {} if self.mask_name is None else {self.mask_name: valid}
        out: Any = self.module(x, **given)
        y = out[0] if isinstance(out, (tuple, list)) else out
        assert isinstance(y, Tensor)
        return y
