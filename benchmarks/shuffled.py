"""The control of `learning.py`: GRPO as it is, on the rewards of the step dealt out anew among its episodes.

verl loads this file as the replay buffer's (`trainer.v1.sampler.custom_sampler.path`), and with it the estimator.
"""

from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

from skyrl_stack.trainer.groups import GroupBuffer

__all__ = ["GroupBuffer"]


@register_adv_est("shuffled_grpo")
def shuffled_grpo(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """See verl's `compute_grpo_outcome_advantage`: rewards are (episodes, tokens), and a reward is a row's sum."""
    rewards = torch.zeros_like(token_level_rewards)
    rewards[:, 0] = token_level_rewards.sum(-1)[torch.randperm(len(rewards))]
    return compute_grpo_outcome_advantage(rewards, response_mask, index, **options)
