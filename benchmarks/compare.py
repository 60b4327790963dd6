"""Is the installed fastmlp slower anywhere than an earlier commit's?

Builds the commit from a temporary worktree into a temporary folder, on this machine, with this
compiler and torch. Each build runs in its own process; they take turns, so that the ratios are
paired as everywhere. Exit status 1 if a row's whole spread is slower, and its median by over 5 %.
An editable install has to be rebuilt first.
"""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import peers
import report
import torch
from check import fault
from harness import Block, Spread, settle, speedup
from shapes import select
from suite import add_shapes, common_options, effort, names

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("forward", "forward+backward")
ALLOWED = 0.95


@contextmanager
def built(commit: str) -> Iterator[Path]:
    """A folder with the commit's package, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        tree, site = Path(folder, "tree"), Path(folder, "site")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
            subprocess.run([*pip, "--no-deps", "--target", str(site), str(tree)], check=True)
            yield site
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def serve(threads: int, block_s: float) -> None:
    """The child: answers a shape's name and a task with ``ready``, an empty line with a sample."""
    torch.set_num_threads(threads)
    block, answer = None, "which shape?"
    for line in sys.stdin:
        if line.strip():
            name, task = line.split()
            torch.set_grad_enabled(task != "forward")
            problem = peers.Problem(select(name)[0], task)
            contestant = peers.fastmlp(problem, threads)
            wrong = fault(problem, contestant.results())
            block = Block(contestant.run, block_s)
            answer = wrong or "ready"
        elif block is not None:
            answer = f"{block.sample()} {block.call_s * (block.inner + block.lead_in)}"
        settle()  # it is the other's turn
        print(answer, flush=True)


class Child:
    """One build of fastmlp in its own process."""

    def __init__(self, site: Path | None, *arguments: object) -> None:
        paths = [str(site)] if site else []
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit("compare: a build of fastmlp ended early; its message is above")
        return answer

    def sample(self) -> tuple[float, float]:
        """Seconds of one call, and about how long taking the sample lasts."""
        seconds, cost = map(float, self.ask("").split())
        return seconds, cost

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("base", help="the commit to compare with")
    add_shapes(parser, "named")
    parser.add_argument("--tasks", type=lambda t: names(TASKS, t), default=",".join(TASKS))
    options = parser.parse_args()
    chosen = effort(options)
    slower = 0
    with ExitStack() as stack:
        site = stack.enter_context(built(options.base))
        new = Child(None, options.threads, chosen.block_s)
        base = Child(site, options.threads, chosen.block_s)
        stack.callback(new.end)
        stack.callback(base.end)
        print(report.describe_machine())
        print(f"{'shape':<15} {'task':<17} {'base µs':>10} {'new µs':>10}   base/new (p10–p90)")
        for shape in options.shapes:
            for task in options.tasks:
                for child in (base, new):
                    if (answer := child.ask(f"{shape.name} {task}")) != "ready":
                        raise SystemExit(f"compare: {'base' if child is base else 'new'}: {answer}")
                samples: dict[Child, list[float]] = {base: [], new: []}
                for _ in range(chosen.rounds_for(base.sample()[1] + new.sample()[1])):
                    for child in random.sample([base, new], 2):
                        samples[child].append(child.sample()[0])
                ratio = speedup(samples[base], samples[new])
                slower += ratio.high < 1 and ratio.median < ALLOWED
                times = "".join(f"{Spread.of(s).median * 1e6:11.1f}" for s in samples.values())
                spread = f"{ratio.median:8.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
                print(f"{shape.name:<15} {task:<16} {times}   {spread}", flush=True)
    print(f"{slower} rows slower than {options.base}")
    return 1 if slower else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), float(sys.argv[3]))
    else:
        raise SystemExit(main())
