"""The recipe's optimisers in PyTorch: its formulas are torch's, and every hyper-parameter is passed."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import nn

from zoo.errors import UnsupportedLayer
from zoo.recipe import SGD, Adam, Optimizer, RMSprop


@singledispatch
def optimizer(recipe: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's own optimiser in the recipe's form, with nothing left to a default."""
    raise UnsupportedLayer(f"the backend 'torch' has no optimizer {type(recipe).__name__}")


@optimizer.register
def sgd(recipe: SGD, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        dampening=0,
        weight_decay=0,
        nesterov=recipe.nesterov,
    )


@optimizer.register
def adam(recipe: Adam, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        weight_decay=0,
        amsgrad=False,
        fused=True,
        capturable=parameters[0].is_cuda,  # a CUDA graph holds the number of the step, too
    )


@optimizer.register
def rmsprop(recipe: RMSprop, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        parameters,
        lr=recipe.learning_rate,
        alpha=recipe.alpha,
        eps=recipe.epsilon,
        weight_decay=0,
        momentum=0,
        centered=False,
        capturable=parameters[0].is_cuda,
    )
