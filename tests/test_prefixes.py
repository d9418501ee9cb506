"""Names of checkpoints as training loops write them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roast_export.errors import LoadError
from roast_export.state_layers import fill


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "ema_model."]
)
def test_a_prefix_of_every_name_is_left_out(prefix, caplog):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    fill(target, {f"{prefix}{key}": value for key, value in source.state_dict().items()})
    assert torch.equal(target.weight, source.weight)
    assert repr(prefix) in caplog.text


def test_control_a_prefix_of_some_names_is_refused_by_name():
    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(LoadError, match=r"module\.weight|weight"):
        fill(nn.Linear(3, 2), {"module.weight": state["weight"], "other": state["bias"]})
