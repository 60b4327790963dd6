"""How fast do batches come from tensors in memory, TensorLoader's against DataLoader's?

A call is an epoch: a new iterator, all its batches, nothing done with them. Who yields other
batches than DataLoader, or leaves the generator in another state, is refused.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product, zip_longest

import report
import torch
from harness import Spread, measure, speedup
from shapes import Shape
from suite import add_shapes, common_options, effort
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from fastmlp.data import TensorLoader

Loader = Iterable[list[Tensor]]
Make = Callable[[TensorDataset, int, bool, torch.Generator], Loader]
REFERENCE = "DataLoader"
COLUMNS = (
    f"{'shape':<15} {'features':>8} {'batch':>5} {'order':<8} {'loader':<13} {'median ms':>9} "
    f"{'p10–p90':>13} {'µs a batch':>10} {'× DataLoader':>12} {'p10–p90':>11} {'rounds':>6}"
)


def data_loader(
    data: TensorDataset, size: int, shuffle: bool, generator: torch.Generator
) -> Loader:
    """As anybody writes it: every row is an item, and a batch a stack of items."""
    return DataLoader(data, size, shuffle, generator=generator)


def batch_sampler(
    data: TensorDataset, size: int, shuffle: bool, generator: torch.Generator
) -> Loader:
    """What torch's parts do without a class of one's own: a batch is an item, ``data[rows]``."""
    rows = RandomSampler(data, generator=generator) if shuffle else SequentialSampler(data)
    batches = BatchSampler(rows, size, drop_last=False)
    return DataLoader(data, batch_size=None, sampler=batches, generator=generator)


def tensor_loader(
    data: TensorDataset, size: int, shuffle: bool, generator: torch.Generator
) -> Loader:
    return TensorLoader(data, batch_size=size, shuffle=shuffle, generator=generator)


LOADERS: dict[str, Make] = {
    REFERENCE: data_loader,
    "batch sampler": batch_sampler,
    "TensorLoader": tensor_loader,
}


def fault(make: Make, data: TensorDataset, size: int, shuffle: bool) -> str | None:
    """What is wrong with the batches or with the generator after them; None if nothing is."""
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    pair = (
        data_loader(data, size, shuffle, generators[0]),
        make(data, size, shuffle, generators[1]),
    )
    for number, (expected, batch) in enumerate(zip_longest(*pair)):
        if expected is None or batch is None:
            return f"{'more' if expected is None else 'fewer'} than {number} batches"
        if len(batch) != len(expected) or not all(map(torch.equal, batch, expected)):
            return f"batch {number} differs"
    if not torch.equal(*(generator.get_state() for generator in generators)):
        return "leaves the generator in another state"
    return None


def epoch(loader: Loader) -> None:
    for _ in loader:  # as in a training, a batch is there until the next has come
        pass


def line(shape: Shape, rows: int, times: list[float], reference: list[float]) -> str:
    """What stands under :data:`COLUMNS` after the order and the loader's name."""
    seconds, ratio = Spread.of(times), speedup(reference, times)
    low, median, high = (f"{s * 1e3:.1f}" for s in seconds)
    batches = -(-rows // shape.batch)
    return (
        f"{median:>9} {f'{low}–{high}':>13} {seconds.median / batches * 1e6:10.1f} "
        f"{ratio.median:12.2f} {f'{ratio.low:.2f}–{ratio.high:.2f}':>11} {len(times):6}"
    )


def main() -> int:
    parser = common_options(__doc__)
    add_shapes(parser, "lecture-50")
    parser.add_argument(
        "--rows", type=int, default=60_000, metavar="N", help="of the data (default: %(default)s)"
    )
    options = parser.parse_args()
    rows = min(options.rows, 500) if options.quick else options.rows
    torch.set_num_threads(options.threads)
    print(report.describe_machine())
    print(COLUMNS, flush=True)
    refused = []
    for shape, order in product(options.shapes, ("shuffled", "in order")):
        inputs, labels = torch.randn(rows, shape.sizes[0]), torch.randint(shape.sizes[-1], (rows,))
        data = TensorDataset(inputs, labels)
        calls: dict[str, Callable[[], object]] = {}
        for name, make in LOADERS.items():
            if wrong := fault(make, data, shape.batch, order == "shuffled"):
                refused.append(f"refused {name}, {shape.name} {order}: {wrong}")
                print(refused[-1], flush=True)
            else:
                loader = make(data, shape.batch, order == "shuffled", torch.Generator())
                calls[name] = partial(epoch, loader)
        samples = measure(calls, effort(options))
        for name, times in samples.items():
            what = f"{shape.name:<15} {shape.sizes[0]:>8} {shape.batch:>5} {order:<8} {name:<13}"
            print(what, line(shape, rows, times, samples[REFERENCE]), flush=True)
    for reason in refused:
        print(reason, file=sys.stderr)
    return int(bool(refused))


if __name__ == "__main__":
    raise SystemExit(main())
