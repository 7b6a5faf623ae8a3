"""What heads are trained by, once more in PyTorch: of a twin and the same arguments as the head's own loss."""

import torch
from torch.nn import functional as F

from export.twins import capped, log_size, unit


def trajectory(twin, seen, truth):
    told, entropy = twin(seen), torch.nn.CrossEntropyLoss(reduction="none")
    asked = torch.isfinite(truth.vitality)
    each = F.binary_cross_entropy_with_logits
    whole = entropy(told.route.flatten(0, 1), truth.route.flatten()).view(truth.route.shape)
    whole = whole + each(told.leave, truth.agrees, reduction="none") + each(told.hope, truth.sure, reduction="none")
    earliest = truth.earliest[:, None].expand(truth.route.shape)
    whole = whole + 0.5 * entropy(told.earliest.flatten(0, 1), earliest.flatten()).view(truth.route.shape)
    return whole.sum() + each(told.vitality[asked], truth.vitality[asked], reduction="sum")


def semantic(twin, states, labels, weights):
    code, seen, size = twin(states)
    direction = states / torch.exp(log_size(states))[:, None]
    left = (direction - seen).square().mean(-1) + (log_size(states) - size).square()
    wrong = F.softplus(code.scores) - labels * code.scores
    return (left + twin.config.naming * (weights * wrong).sum(-1) / labels.shape[1]).sum()


def depth(twin, decoder, states, place, shared, rows, taught, chosen):
    """Of the decoder the final norm and the cap are needed."""
    state, _ = twin(states, place, shared)
    config = decoder.config
    normed = unit(state, config.rms_norm_eps) * torch.tensor(decoder.norm.weight.tolist(), dtype=torch.float64)
    said = capped(normed @ rows.T, config.final_logit_softcapping)
    missed = taught.sum(-1) * said.logsumexp(-1) - (taught * said).sum(-1)
    return (missed * chosen).sum()


def transfer(twin, states, told, root):
    size = states.square().mean(-1, keepdim=True).sqrt()
    return ((twin(states, told) - states) / size @ root).square().sum()
