"""Is the installed fastmlp slower anywhere than an earlier commit's?

Builds the commit from a temporary worktree into a temporary folder, on this machine, with this
compiler and torch; or takes a folder that holds a built package, such as a worktree. Each build
runs in its own process; they take turns, so that the ratios are paired as everywhere. Every row of
model.py, train_step.py and fit.py in which fastmlp takes part. A row below the allowed ratio is
measured again, with more effort. Exit status 1 if it stays there, its whole spread below 1.
An editable install has to be rebuilt first.
"""

import os
import random
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import check
import peers
import report
import torch
from harness import Block, Effort, Spread, settle, speedup
from shapes import select
from suite import AGAIN, add_shapes, common_options, effort, names

ROOT = Path(__file__).resolve().parents[1]
MODULE_TASKS = ("forward", "forward+backward")
TASKS = (*MODULE_TASKS, "sgd", "adam", "fit-sgd", "fit-adam")
ALLOWED = 0.97


@contextmanager
def built(base: str) -> Iterator[Path]:
    """A folder with the commit's package, compiled; or the folder given."""
    if Path(base, "fastmlp").is_dir():
        if not Path(base, "fastmlp", f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
            raise SystemExit(f"compare: {base}: no fastmlp that is built")
        yield Path(base).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        tree, site = Path(folder, "tree"), Path(folder, "site")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), base], check=True)
        try:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
            subprocess.run([*pip, "--no-deps", "--target", str(site), str(tree)], check=True)
            yield site
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def entered(
    name: str, task: str, data_dir: str | None, threads: int
) -> tuple[peers.Contestant, str | None]:
    """This build's contestant at a shape and a task, and what is wrong with its results."""
    # The scripts are not imported above: earlier versions have less of what they import.
    problem = peers.Problem(select(name)[0], task.removeprefix("fit-"), data_dir)
    if task in MODULE_TASKS:
        one = peers.fastmlp(problem, threads)
        return one, check.fault(problem, one.results())
    if task.startswith("fit-"):
        import fit

        one = fit.contestant("fit", None, problem, threads)
        return one, fit.expected(problem, None).fault(one.results())
    import train_step

    one = train_step.train_step(problem, threads)
    return one, train_step.expected(problem).fault(one.results())


def serve(threads: int, block_s: float, data_dir: str | None) -> None:
    """The child: answers "where" with the package's folder, a shape's name and a task with
    ``ready`` or why not, and an empty line with a sample of it."""
    torch.set_num_threads(threads)
    block, contestant, answer = None, None, "which shape?"
    for line in sys.stdin:
        if line.strip() == "where":
            import fastmlp

            answer = str(Path(fastmlp.__file__).parent)
        elif line.strip():
            name, task = line.split()
            torch.set_grad_enabled(task != "forward")
            try:
                contestant, wrong = entered(name, task, data_dir, threads)
            except (AttributeError, ImportError, TypeError, peers.Unsupported) as reason:
                answer = f"skipped: {reason}"
            else:
                block = Block(contestant.run, block_s)
                answer = wrong or "ready"
        elif block is not None and contestant is not None:
            cost = block.call_s * (block.inner + block.lead_in)
            answer = f"{block.sample() / contestant.repeats} {cost}"
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


def samples(base: Child, new: Child, chosen: Effort) -> tuple[list[float], list[float]]:
    """Seconds of one call of both, a sample a round."""
    taken: dict[Child, list[float]] = {base: [], new: []}
    for _ in range(chosen.rounds_for(base.sample()[1] + new.sample()[1])):
        for child in random.sample([base, new], 2):
            taken[child].append(child.sample()[0])
    return taken[base], taken[new]


def main() -> int:
    parser = common_options(__doc__)
    parser.add_argument("base", help="the commit to compare with, or a folder with a built fastmlp")
    add_shapes(parser, "named,small,width,sparse,blocks")
    parser.add_argument("--tasks", type=lambda t: names(TASKS, t), default=",".join(TASKS))
    parser.add_argument("--data-dir", default="", metavar="DIR", help="of MNIST, for mnist-*")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # as the children: it is printed
    chosen = effort(options)
    more = chosen._replace(rounds=AGAIN * chosen.rounds, budget_s=AGAIN * chosen.budget_s)
    slower, open_, ratios = 0, 0, []
    with ExitStack() as stack:
        site = stack.enter_context(built(options.base))
        arguments = (options.threads, chosen.block_s, options.data_dir)
        new, base = Child(None, *arguments), Child(site, *arguments)
        stack.callback(new.end)
        stack.callback(base.end)
        print(report.describe_machine())
        where = [child.ask("where") for child in (base, new)]
        if where[0] == where[1]:
            raise SystemExit(f"compare: both builds are {where[0]}")
        print(f"base: {where[0]}, new: {where[1]}")
        print(f"{'shape':<15} {'task':<17} {'base µs':>10} {'new µs':>10}   base/new (p10–p90)")
        for shape in options.shapes:
            for task in options.tasks:
                answers = [child.ask(f"{shape.name} {task}") for child in (base, new)]
                if skipped := [a for a in answers if a.startswith("skipped")]:
                    print(f"{shape.name:<15} {task:<16} {skipped[0]}", flush=True)
                    continue
                for name, answer in zip(("base", "new"), answers, strict=True):
                    if answer != "ready":
                        raise SystemExit(f"compare: {name}: {shape.name}, {task}: {answer}")
                times = samples(base, new, chosen)
                if speedup(*times).median < ALLOWED:
                    times = samples(base, new, more)
                ratio = speedup(*times)
                ratios.append(ratio.median)
                below = ratio.median < ALLOWED
                slower += below and ratio.high < 1
                open_ += below and ratio.high >= 1
                columns = "".join(f"{Spread.of(s).median * 1e6:11.1f}" for s in times)
                spread = f"{ratio.median:8.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
                print(f"{shape.name:<15} {task:<16} {columns}   {spread}", flush=True)
    if ratios:
        print(f"{len(ratios)} rows, the least ratio {min(ratios):.3f}")
    print(f"{slower} rows below {ALLOWED} of {options.base}, {open_} more whose spread includes 1")
    return 1 if slower else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), float(sys.argv[3]), (sys.argv[4:5] or [""])[0] or None)
    else:
        raise SystemExit(main())
