"""How many bytes does a forward keep for its backward, ours against eager's?

Two counts. "saved": the storages that autograd's nodes hold (seen by ``saved_tensors_hooks``),
without parameters and input, which are there anyway. "allocated": what the forward took from
torch's allocator and has not given back when it returns, less its output; this sees whatever else
is kept as well. Exit status 1 if fastmlp keeps more.
"""

import os

import torch
from peers import Problem, eager_network, fastmlp_network
from report import network_label
from suite import add_shapes, common_options
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved(model: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages saved for backward."""
    present = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in present:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    del y
    return sum(kept.values())


def allocated(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward leaves allocated besides its output."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler is not to tell of itself
    model(x)  # whatever is allocated once only
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = model(x)
    held = sum(event.self_cpu_memory_usage for event in record.key_averages())
    return int(held - y.untyped_storage().nbytes())


def main() -> int:
    parser = common_options(__doc__)
    add_shapes(parser, "named,blocks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    more = False
    print(f"{'':<35}{'saved':>26}{'allocated':>26}")
    print(f"{'shape':<15} {'network':<19}" + f"{'fastmlp':>13}{'eager':>13}" * 2 + "  bytes")
    for shape in options.shapes:
        problem = Problem(shape, "forward+backward")
        ours, theirs = fastmlp_network(problem), eager_network(problem)
        counts = [count(m, problem.x) for count in (saved, allocated) for m in (ours, theirs)]
        more |= counts[0] > counts[1] or counts[2] > counts[3]
        print(f"{shape.name:<15} {network_label(shape):<19}" + "".join(f"{c:13,}" for c in counts))
    return int(more)


if __name__ == "__main__":
    raise SystemExit(main())
