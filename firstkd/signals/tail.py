"""Tempering over the whole vocabulary from what a record keeps of its tail.

At temperature T = 1/β a token of probability p gets p^β / (Σ_head p^β + R(β)), where R(β) is the
sum of p^β over the tail. Two values of log R are known anyway: log R(0), the logarithm of the
number of tokens in the tail, and log R(1), that of its mass. What is stored is its *bends*: how
far it lies from the straight line through those two, at each of NODES. log R is convex and smooth,
so the bends are small and lose little as float16; a spline of degree 4 in log(β + 0.3) interpolates
them. Nodes, degree and offset were chosen for the smallest error on a model's peaked (fine-tuned)
and flat (open text) distributions: python -m benchmarks.tempering.
"""

import math

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from firstkd.signals.knowledge import Knowledge

CHAINS = ((0.25, 4), (0.4, 3), (0.58, 2))
"""Inverse temperatures β, and how many values each yields by doubling: p^2β = (p^β)² is a cheap
square in place of an exponential."""
NODES = tuple(sorted({first * 2**step for first, count in CHAINS for step in range(count)} - {1.0}))
"""The eight inverse temperatures at which bends are stored; at 1 the mass is known."""
TEMPERATURES = (0.5, 5.0)
"""Range in which head and tail are exact to 2·10⁻³ of probability."""
DEGREE, OFFSET = 4, 0.3


def bends(tail_logprobs_RV: Tensor, log_mass_R: Tensor, top_k: int, count: int) -> Tensor:
    """Return the bends [R, count]; `count` is 0 or the number of nodes.

    `tail_logprobs_RV` contains every token's log-probability, −inf for those in the head.
    """
    if not count:
        return tail_logprobs_RV.new_empty(len(tail_logprobs_RV), 0)
    log_sums = {}
    for first, doublings in CHAINS:
        powers = (tail_logprobs_RV * first).exp_()
        for step in range(doublings):
            if step:
                powers.square_()
            log_sums[first * 2**step] = powers.sum(-1).log_()
    beta = log_mass_R.new_tensor(NODES)
    found = torch.stack([log_sums[node] for node in NODES], dim=-1)
    return found - _line(log_mass_R, tail_logprobs_RV.shape[1] - top_k, beta)


def temper(knowledge: Knowledge, temperature: float) -> Tensor:
    """Return the candidates' probabilities [R, K] at this temperature over the whole vocabulary.

    `knowledge` must have its bends, and `temperature` must lie within TEMPERATURES.
    """
    log_partition = log_sum_of_powers(knowledge, temperature)
    return (knowledge.top_logprobs / temperature - log_partition[:, None]).exp()


def log_sum_of_powers(knowledge: Knowledge, temperature: float) -> Tensor:
    """Return [R], the logarithm of the sum of p^(1/T) over the whole vocabulary."""
    beta = 1 / temperature
    tail_size = knowledge.vocabulary_size - knowledge.top_ids.shape[1]
    beta_J = knowledge.log_tail_mass.new_tensor([beta])
    line = _line(knowledge.log_tail_mass, tail_size, beta_J)[:, 0]
    log_tail = line + knowledge.tail_bends @ _weights(beta).to(line)
    return torch.logaddexp((knowledge.top_logprobs * beta).logsumexp(-1), log_tail)


def _line(log_mass_R: Tensor, tail_size: int, beta_J: Tensor) -> Tensor:
    """[R, J]: the straight line through log R(0) and log R(1)."""
    return (1 - beta_J) * math.log(tail_size) + log_mass_R[:, None] * beta_J


def _weights(beta: float) -> Tensor:
    """[J]: weights that turn the bends at NODES into that at `beta`; a spline is linear in them."""
    nodes = np.array(sorted((0.0, *NODES, 1.0)))
    spline = make_interp_spline(np.log(nodes + OFFSET), np.eye(len(nodes)), k=DEGREE)
    weights = spline(math.log(beta + OFFSET))
    return torch.from_numpy(weights[np.isin(nodes, NODES)])
