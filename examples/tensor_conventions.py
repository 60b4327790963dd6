"""Batch first, channels second, then rows and columns: what view(-1, 784) does with a batch.

`view` gives the same memory another shape, and `reshape` copies where that cannot be done. Neither
knows what an axis means. A network that was trained on [N, C, H, W], PyTorch's order, is shown
tensors in other orders: where the shapes fit nothing complains, and only the error tells.
"""

import torch
from _common import figure, parse, parser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastmlp import FusedMLP, TrainStep
from fastmlp.data import DigitsDataset, collate

arguments = parse(parser(__doc__))


def digits(train: bool) -> tuple[Tensor, Tensor]:
    """All images [N, 1, 28, 28] and labels [N] of one part."""
    dataset = DigitsDataset(train)
    x, y = next(iter(DataLoader(dataset, batch_size=len(dataset), collate_fn=collate)))
    return x, y


def in_colour(x: Tensor) -> Tensor:
    """[N, 1, H, W] to [N, 3, H, W]: the digit in red, and moved in green and blue."""
    return torch.cat([x, x.roll(4, 3), x.roll(-4, 3)], 1)


def train(x: Tensor, y: Tensor) -> FusedMLP:
    model = FusedMLP([x[0].numel(), 100, 10])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    step.fit((x.flatten(1), y), batch_size=50, epochs=5 if arguments.quick else 20, progress=False)
    return model


def look(title: str, model: FusedMLP, x: Tensor, rows: Tensor) -> None:
    """Prints how x became rows, and how the network fares with them; keeps them for the picture."""
    memory = "same memory" if rows.data_ptr() == x.data_ptr() else "copied"
    with torch.no_grad():
        error = float((model(rows).argmax(1) != labels).double().mean())
    print(f"{title}: {list(x.shape)} → {list(rows.shape)}, {memory}: error {error:.1%}")
    seen[f"{title}\nerror {error:.1%}"] = rows


def attempt(title: str, x: Tensor, shape: tuple[int, int]) -> None:
    try:
        print(f"{title}: {list(x.view(shape).shape)}, without an error")
    except RuntimeError as error:
        print(f"{title}: {list(x.shape)}, strides {x.stride()}: {str(error).split(' (')[0]}")


train_x, train_labels = digits(train=True)
x, labels = digits(train=False)
seen: dict[str, Tensor] = {}

grey = train(train_x, train_labels)
look("view(-1, 784)", grey, x, x.view(-1, 784))
batch_last = x[:, 0].permute(1, 2, 0).contiguous()  # [H, W, N], as MATLAB's files have it
look("batch last: view", grey, batch_last, batch_last.view(-1, 784))
turned = batch_last.permute(2, 0, 1)
look("batch last: permute first", grey, turned, turned.reshape(-1, 784))
transposed = x.transpose(2, 3)  # [N, C, W, H], in the memory of x
attempt("transposed: view", transposed, (-1, 784))
look("transposed: reshape", grey, transposed, transposed.reshape(-1, 784))

colour = train(in_colour(train_x), train_labels)
x = in_colour(x)
look("colour: flatten(1)", colour, x, x.flatten(1))
attempt("colour: view(-1, 784), three rows an image", x, (-1, 784))
channels_last = x.permute(0, 2, 3, 1).contiguous()  # [N, H, W, C], as Pillow and NumPy have it
look("channels last: flatten(1)", colour, channels_last, channels_last.flatten(1))
in_that_memory = x.to(memory_format=torch.channels_last)  # whose shape is [N, C, H, W] all the same
attempt("memory_format=channels_last: view", in_that_memory, (len(x), -1))
look("memory_format=channels_last: flatten(1)", colour, in_that_memory, in_that_memory.flatten(1))

if arguments.plot:
    shown = {title: rows for title, rows in seen.items() if not title.startswith("memory_format")}
    with figure(arguments.plot, 3, len(shown), size=(11, 5.2)) as axes:
        for plots, (title, rows) in zip(axes.T, shown.items(), strict=True):
            plots[0].set_title(title.replace(": ", ":\n"), fontsize="small")
            for plot, row in zip(plots, rows, strict=False):
                picture = row.view(-1, 28, 28).permute(1, 2, 0)
                plot.imshow(picture.numpy(), cmap="gray")
                plot.set(xticks=[], yticks=[])
