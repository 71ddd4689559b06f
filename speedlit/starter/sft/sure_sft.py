"""SFT that also logs how sure the model is: a figure more in metrics.csv and on the screen."""

from __future__ import annotations

import math
from typing import Any

import torch

from speedlit.modules.base import target_logps
from speedlit.modules.sft import SFTModule


class SureSFT(SFTModule):
    """``sure`` is the share of the completions' tokens that the model gives more than half of the probability."""

    def loss(self, batch: dict[str, Any], step: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One micro-batch's share of the step's loss, and of each figure: what is added here sums up to the step's."""
        logps, _ = target_logps(self.model, batch)
        sure = (logps.detach() > math.log(0.5)).sum() / step["targets"]
        return -logps.sum() / step["targets"], {"sure": sure}
