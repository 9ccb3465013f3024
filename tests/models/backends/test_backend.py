"""Which backend is chosen, and that a converted network needs no cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chamfer.core.errors import InvalidInput
from chamfer.models.backends.backend import load_backbone
from chamfer.models.backends.config import DeviceConfig, decide


def test_an_unwritable_cache_does_not_prevent_the_start(tmp_path: Path) -> None:
    import torch

    class Doubler(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (ids * mask).float().unsqueeze(-1) * 2.0

    blocked = tmp_path / "file"
    blocked.write_text("")
    backbone = load_backbone(Doubler, "f" * 64, DeviceConfig(cache_dir=blocked / "below", precision="fp32"))
    doubled = backbone(np.array([[1, 2]]), np.array([[1, 0]]))
    np.testing.assert_array_equal(doubled[..., 0], [[2.0, 0.0]])


def test_contradictory_device_settings_are_refused() -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="sees no CUDA device"):
            decide(DeviceConfig(device="cuda"))
    assert decide(DeviceConfig(device="cpu", backend="torch")).precision == "fp32"
    assert decide(DeviceConfig(device="cpu")).backend == "openvino"
