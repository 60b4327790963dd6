"""The lecture's program: handwritten digits, a network, and gradient descent.

python examples/mnist.py                    scikit-learn's digits, offline
python examples/mnist.py --data-dir mnist   MNIST, as PNG tree or IDX files
"""

import argparse

import torch
from torch.utils.data import DataLoader

from fastmlp import FusedMLP
from fastmlp.data import (
    Compose,
    DigitsDataset,
    ImageDataset,
    MNISTDataset,
    Normalize,
    ToTensor,
    collate,
)

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--epochs", type=int, default=10)
arguments = parser.parse_args()

transform = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
if arguments.data_dir:
    train_set: ImageDataset = MNISTDataset(arguments.data_dir, train=True, transform=transform)
    test_set: ImageDataset = MNISTDataset(arguments.data_dir, train=False, transform=transform)
else:
    train_set = DigitsDataset(train=True, transform=transform)
    test_set = DigitsDataset(train=False, transform=transform)
train_loader = DataLoader(train_set, batch_size=50, shuffle=True, collate_fn=collate)
test_loader = DataLoader(test_set, batch_size=1000, collate_fn=collate)

torch.manual_seed(0)
model = FusedMLP([784, 300, 10])
criterion = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

for epoch in range(1, arguments.epochs + 1):
    wrong = 0
    for batch, (images, labels) in enumerate(train_loader, start=1):
        outputs = model(images.flatten(1))
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wrong += int((outputs.argmax(1) != labels).sum())
        if batch % 100 == 0:
            print(f"epoch {epoch}  batch {batch}  train loss {loss.item():.4f}")
    with torch.no_grad():
        missed = sum(int((model(x.flatten(1)).argmax(1) != y).sum()) for x, y in test_loader)
    train_error, test_error = 100 * wrong / len(train_set), 100 * missed / len(test_set)
    print(f"epoch {epoch}  train error {train_error:.2f} %  test error {test_error:.2f} %")
