"""The loops of `fastmlp train`: three ways to learn the same from the same batches."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fastmlp import FusedMLP, TrainStep
from fastmlp._epochs import Scores
from fastmlp._fit import TableSteps, as_table
from fastmlp._progress import Score
from fastmlp.data import ImageDataset, collate

from ._options import PLAIN, STEP

_TEST_BATCH = 1000


class EpochSampler(Sampler[Any]):
    """Batches of rows, int64 [n]: every row once an epoch, in an order that seed and epoch decide.

    Nothing else does: a training goes on in the middle of an epoch without a generator's history.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.seek(0)

    def seek(self, epoch: int, first: int = 0) -> None:
        """The next iteration is of this epoch, from batch `first` on."""
        self.epoch, self.first = epoch, first

    def order(self) -> Tensor:
        """All rows in this epoch's order, int64 [rows]."""
        # A text as seed is hashed: neighbouring seeds and epochs have nothing in common.
        seed = random.Random(f"{self.seed} {self.epoch}").getrandbits(32)
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order().split(self.batch_size)[self.first :])

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size) - self.first


class ListSampler(Sampler[list[int]]):
    """The same batches as lists, as torch's own samplers give them."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class SingleItems(Dataset[tuple[Any, int]]):
    """A data set as one usually writes it: items one by one, no way to fetch a batch at once."""

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.data[row]

    def __len__(self) -> int:
        return len(self.data)


class Task(NamedTuple):
    """What all networks of a training learn."""

    data: ImageDataset
    test_data: ImageDataset
    sampler: EpochSampler  # whoever seeks in it calls start() of each network then
    lr: float  # learning rate of SGD


class Trainee(ABC):
    """A network in training by one of the loops, and what it has shown so far.

    Args:
        name: of the loop.
        model: the network, on its device.
        task: what it learns.
    """

    def __init__(self, name: str, model: nn.Sequential, task: Task) -> None:
        self.name = name
        self.model = model
        self.task = task
        self.device = next(model.parameters()).device
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=task.lr)
        self.test_loader = self.loader(task.test_data, batch_size=_TEST_BATCH)
        self.scores = Scores(task.sampler.batch_size)  # the window: since the last line
        self.curve: list[tuple[float, float, float]] = []  # epochs, loss, error in %: the lines
        self.test_errors: list[float] = []  # in %, one an epoch
        self.loss_difference = 0.0  # greatest so far from the plain network's, of one batch
        self.step_seconds = array("d")  # of each batch since the program's start
        self.whole_seconds = array("d")  # with fetching the batch and counting its errors

    def loader(self, data: ImageDataset, **batches: Any) -> DataLoader[Any]:
        # A generator of its own, or each epoch would draw from the global one.
        generator = torch.Generator()
        if self.name == PLAIN:
            return DataLoader(SingleItems(data), generator=generator, **batches)
        return DataLoader(data, collate_fn=collate, generator=generator, **batches)

    @abstractmethod
    def start(self) -> None:
        """The next batches are those of the sampler from now on."""

    @abstractmethod
    def learn(self, batches: int) -> list[float]:
        """Trains on the next batches and returns the loss of each."""

    def test(self) -> None:
        """Adds the present test error to test_errors."""
        wrong = 0
        self.model.eval()
        with torch.no_grad():
            for images, labels in self.test_loader:
                predicted = self.model(images.to(self.device).flatten(1)).argmax(1)
                wrong += int((predicted != labels.to(self.device)).sum())
        self.model.train()
        self.test_errors.append(100 * wrong / len(self.task.test_data))

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window": _sums(self.scores.window),
            "tally": _sums(self.scores.epoch),
            "curve": self.curve,
            "test_errors": self.test_errors,
            "loss_difference": self.loss_difference,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state() that check_progress() of _saved.py has found to be one.

        The optimizer is left: SGD has its options alone, and these are the same.
        """
        self.model.load_state_dict(state["model"])
        self.scores.window, self.scores.epoch = Score(*state["window"]), Score(*state["tally"])
        self.curve, self.test_errors = state["curve"], state["test_errors"]
        # Before there were three loops, only the first network's state had it.
        self.loss_difference = state.get("loss_difference", 0.0)


class LoopTrainee(Trainee):
    """Learns as the lecture has it: a loader, the network, torch's loss and optimizer."""

    def __init__(self, name: str, model: nn.Sequential, task: Task) -> None:
        super().__init__(name, model, task)
        sampler = ListSampler(task.sampler) if name == PLAIN else task.sampler
        self.train_loader = self.loader(task.data, batch_sampler=sampler)

    def start(self) -> None:
        self.batches = iter(self.train_loader)

    def learn(self, batches: int) -> list[float]:
        losses, correct, rows = [], [], 0
        for _ in range(batches):
            start = perf_counter()
            images, labels = next(self.batches)
            images, labels = images.to(self.device).flatten(1), labels.to(self.device)
            fetched = perf_counter()
            logits = self.model(images)
            loss = self.criterion(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # before the clock is read
            stepped = perf_counter()
            losses.append(loss.item())
            correct.append(int((logits.detach().argmax(1) == labels).sum()))
            rows += len(labels)
            self.step_seconds.append(stepped - fetched)
            self.whole_seconds.append(perf_counter() - start)
        self.scores.count(losses, correct, rows)
        return losses


class StepTrainee(Trainee):
    """Learns by TrainStep: all the batches in one call, straight from the data set's bytes."""

    def __init__(self, name: str, model: nn.Sequential, task: Task) -> None:
        super().__init__(name, model, task)
        table = as_table(task.data, None)
        rows, features = table.inputs.shape
        buffer = torch.empty(min(task.sampler.batch_size, rows), features)
        self.steps = TableSteps(TrainStep(model, self.criterion, self.optimizer), table, buffer)

    def start(self) -> None:
        sampler = self.task.sampler
        self.steps.start(sampler.order()[sampler.first * sampler.batch_size :])

    def learn(self, batches: int) -> list[float]:
        start = perf_counter()
        losses, correct, rows = self.steps.learn(batches)
        self.scores.count(losses, correct, len(rows))
        seconds = array("d", [(perf_counter() - start) / batches]) * batches
        self.step_seconds += seconds
        self.whole_seconds += seconds
        return losses


def _sums(score: Score) -> tuple[float, int, int]:
    """What a checkpoint keeps; no class is ignored here."""
    return score.losses, score.wrong, score.rows


def make_trainee(name: str, model: FusedMLP, task: Task) -> Trainee:
    """A network that learns by the loop of this name."""
    if name == STEP:
        return StepTrainee(name, model, task)
    return LoopTrainee(name, model.as_sequential() if name == PLAIN else model, task)
