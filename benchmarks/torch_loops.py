"""How one trains in PyTorch without the zoo: the documents' loop, and one over tensors in memory.

Both train the network of the zoo's printed program as a plain nn.Sequential, in torch's default layout, with
torch's own optimisers as a user writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import transforms

import zoo
from backends import programs
from benchmarks.process import Pace
from zoo import data
from zoo.layers import Normalize
from zoo.model import Model
from zoo.recipe import Recipe


def documented(pace: Pace, model: str, folder: str) -> None:
    """The loop of the five documents: torchvision's MNIST, ToTensor, a DataLoader.

    Where the model normalises, so does the transform, as documented. No worker processes: four of the five
    documents have none, and they would work on in other competitors' blocks. folder: torchvision's root.
    """
    spec = zoo.get(model)
    recipe = spec.recipe
    steps: list[Any] = [transforms.ToTensor()]
    network = plain(spec)
    if isinstance(first := spec.layers[0], Normalize):
        steps.append(transforms.Normalize(first.mean, tuple(1 / scale for scale in first.scale)))
        network = network[1:]
    dataset: Any = torchvision.datasets.MNIST(folder, train=True, transform=transforms.Compose(steps))
    if recipe.split:
        dataset, _ = torch.utils.data.random_split(dataset, recipe.split)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=recipe.batch_size, shuffle=recipe.shuffle, drop_last=recipe.drop_last
    )
    criterion, optimizer = nn.CrossEntropyLoss(), torch_optimizer(recipe, network)
    losses = []
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(network(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            pace()


def in_memory(pace: Pace, model: str, folder: str) -> None:
    """A loop over all images as one tensor in memory. folder: of the IDX files."""
    spec = zoo.get(model)
    recipe, network = spec.recipe, plain(spec)
    dataset = data.read_folder(Path(folder), "mnist")
    images, labels = torch.tensor(data.to_float(dataset.train_images)), torch.tensor(dataset.train_labels)
    size, count = recipe.batch_size, len(labels)
    last = count - size + 1 if recipe.drop_last else count
    criterion, optimizer = nn.CrossEntropyLoss(), torch_optimizer(recipe, network)
    losses = []
    while True:
        order = torch.randperm(count) if recipe.shuffle else torch.arange(count)
        for start in range(0, last, size):
            batch = order[start : start + size]
            optimizer.zero_grad()
            loss = criterion(network(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            pace()


def plain(model: Model) -> nn.Sequential:
    """The layers of the printed program, one after the other, in training mode."""
    names: dict[str, Any] = {"__name__": "net"}
    exec(programs.program(model, "torch"), names)
    return nn.Sequential(*names["Net"]().children()).train()


def torch_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """torch's own class of the optimiser's name, with its learning rate."""
    kind = getattr(torch.optim, type(recipe.optimizer).__name__)
    return kind(network.parameters(), lr=recipe.optimizer.learning_rate)
