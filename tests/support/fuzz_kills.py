"""`fastmlp train` ended at random moments, and gone on with to the very same numbers.

    python tests/support/fuzz_kills.py --seed 1 --count 1000

SIGKILL and SIGINT in turns hit trainings by all loops, until each of them has come to its end; then
its checkpoint must be that of a training that nobody disturbed, bit for bit. The trainings are
forks of this process, which has imported all they need.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from image_files import random_images, write_idx
from states import assert_same

from fastmlp import checkpoint
from fastmlp.app._options import LOOPS
from fastmlp.app.cli import main as command

WAYS = ("--compare", *(f"--loop={name}" for name in LOOPS))
ROWS, TEST_ROWS, BATCH = 310, 40, 20  # 16 batches, the last one smaller


def start(folder: Path, arguments: list[str]) -> int:
    """The id of a process that trains; what it tells is added to a file."""
    process = os.fork()
    if process:
        return process
    status = 70  # of an exception, which the file tells of
    try:
        told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(told, 1)
        os.dup2(told, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none
        status = command(["train", "--threads", "1", *arguments])
        sys.stdout.flush()
    except KeyboardInterrupt:  # before the command, or behind it
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def finish(process: int) -> int:
    """The exit status of a process that is left alone; negative: the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def told(folder: Path) -> str:
    return (folder / "told").read_text()[-2000:]


def run(seed: int, count: int) -> Counter[str]:
    """Ends trainings `count` times, and returns how often by what, and how many came to their end.

    Raises:
        AssertionError: one came to other numbers, left something behind, or ended otherwise.
    """
    torch.optim.SGD([torch.zeros(1)], lr=1.0)  # imports a thousand modules, for a second
    draw = random.Random(seed)
    made: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for train, rows in ((True, ROWS), (False, TEST_ROWS)):
            write_idx(folder / "data", *random_images(rows), train)
        go = ["--data-dir", str(folder / "data"), "--sizes", "24,30,10", "--batch-size", str(BATCH)]
        go += ["--epochs", "6"]
        whole: dict[str, tuple[Path, float]] = {}
        file = folder / "c.pt"
        way, every = draw.choice(WAYS), draw.choice((1, 3, 10, 500))
        ended = 0
        while ended < count or file.exists() or not made["whole"]:
            if way not in whole:
                place, clock = folder / f"whole{way}.pt", time.monotonic()
                status = finish(start(folder, [*go, way, "--checkpoint", str(place)]))
                assert status == 0, told(folder)
                whole[way] = place, time.monotonic() - clock
            place, seconds = whole[way]
            process = start(
                folder,
                [*go, way, "--checkpoint", str(file), "--checkpoint-every", str(every), "--resume"],
            )
            if ended < count:
                time.sleep(draw.uniform(0, seconds))
                signum = draw.choice((signal.SIGKILL, signal.SIGINT))
                os.kill(process, signum)
                status = finish(process)
                assert status in (0, -signal.SIGKILL, 128 + signal.SIGINT), told(folder)
                if status:
                    ended += 1
                    made[signum.name] += 1
                    if file.exists():
                        checkpoint.load(file)
                    continue
            else:
                assert finish(process) == 0, told(folder)
            assert_same(checkpoint.load(file), checkpoint.load(place), way)
            made["whole"] += 1
            file.unlink()
            left = set(os.listdir(folder)) - {"data", "told", *(p.name for p, _ in whole.values())}
            assert not left, f"left behind: {left}"
            way, every = draw.choice(WAYS), draw.choice((1, 3, 10, 500))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that a fork finds no threads that are missed in it
    print(dict(run(options.seed, options.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
