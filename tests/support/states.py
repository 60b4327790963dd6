"""What a training saves, compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def assert_same(a: Any, b: Any, at: str = "") -> None:
    """Bit for bit, whatever is in it; only the seconds may differ."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), at
    else:
        assert a == b, at
