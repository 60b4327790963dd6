"""The command `fastmlp`: `fastmlp train`, `fastmlp data`, `fastmlp info`.

Exit status: 0 done, 1 a fault (told in one line), 2 wrong arguments, 128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastmlp._faults import Fault
from fastmlp._files import expand
from fastmlp._version import __version__

from ._options import LOOPS, Options

_DEFAULT = Options()
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_TRAIN = """\
Trains a multilayer perceptron on handwritten digits as the lecture does: data set, batches,
network, CrossEntropyLoss, SGD. Prints the mean training loss and error of every 100 batches, and
the test error after each epoch."""

_CHECKPOINTS = """\
A checkpoint is written at the start, every --checkpoint-every batches, after each epoch, and on
Ctrl-C, each time whole or not at all. After a kill at any moment the same command with --resume
goes on to the very same numbers. With --resume, options not given are taken from the checkpoint;
those given must agree with it, except --epochs, which may grow. Without --resume an existing file
is never replaced, unless by --overwrite."""

_SOURCE = """\
a folder with IDX files, gzipped or not, or PNG files training/<label>/*.png and
testing/<label>/*.png; or digits, for the embedded ones"""

_CONVERT = """\
Writes a data set as IDX files or as PNG files, into a folder that is made whole or not at all.
Images stay in their order: names of PNG files count the rows, and IDX files that are made of such
files are, byte by byte, those that they were made from."""

_VERIFY = """\
Reads every file of a data set and tells what is in it. Files of as many images as MNIST has must
have MNIST's content; those of a PNG tree may have any names. Exit status 1 if something is wrong or
missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; None stands for the process's arguments."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without × and … gets ? instead
            stream.reconfigure(errors="replace")
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    command: Callable[..., int] = given.pop("command")
    try:
        status = command(given)
        sys.stdout.flush()  # here, where a closed pipe can be told from a fault
        return status
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _complain("interrupted", _INTERRUPTED)
    except Fault as fault:
        return _complain(str(fault), fault.status)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}", 1)
    except MemoryError as error:
        return _complain(f"there is not enough memory{f': {error}' if str(error) else ''}", 1)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        if not re.search("allocate memory|out of memory|not enough memory", reason):
            raise
        return _complain(reason, 1)  # torch has no type of its own for the CPU's
    except ImportError as error:  # torch or the compiled extension, which says what mends it
        return _complain(str(error), 1)


def _complain(message: str, status: int) -> int:
    print(f"fastmlp: {' '.join(message.split())}", file=sys.stderr)
    return status


def _train(given: dict[str, object]) -> int:
    try:
        from .train import train
    except RuntimeError as error:  # FASTMLP_ISA names what this machine has not
        raise Fault(str(error)) from error
    return train(given)


def _info(given: dict[str, object]) -> int:
    from fastmlp.info import report

    print(report())
    return 0


def _convert(given: dict[str, Any]) -> int:
    from fastmlp.data.convert import convert

    if given["gzip"] and given["to"] != "idx":
        raise Fault("--gzip is for --to idx: PNG files are compressed already")
    convert(**given)
    return 0


def _show(given: dict[str, Any]) -> int:
    from fastmlp.data.sheet import show

    show(**given)
    return 0


def _verify(given: dict[str, Any]) -> int:
    from fastmlp.data.verify import verify

    wrong = 0
    for right, line in verify(Path(given["dir"]), mnist=given["mnist"]):
        print(f"{'OK' if right else 'WRONG':6}{line}", flush=True)
        wrong += not right
    return int(wrong > 0)


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, instead of after the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastmlp", description="Fused multilayer perceptrons for PyTorch.")
    parser.add_argument("--version", action="version", version=f"fastmlp {__version__}")
    commands = parser.add_subparsers(metavar="train | data | info", required=True)
    info = commands.add_parser(
        "info",
        help="what is installed, and what runs fused on this machine",
        description="Shows versions, instruction sets, threads, devices, and what runs fused.",
    )
    info.set_defaults(command=_info)
    train = commands.add_parser(
        "train",
        help="train a network on handwritten digits",
        description=_TRAIN,
        epilog=_CHECKPOINTS,
        allow_abbrev=False,
        # What is not given stays out of the namespace: the default, or a checkpoint's, holds.
        argument_default=argparse.SUPPRESS,
    )
    train.set_defaults(command=_train)
    _add_train_options(train)
    data = commands.add_parser(
        "data",
        help="convert, look at and check images of handwritten digits",
        description="Converts, shows and checks data sets in MNIST's formats. Needs no network.",
    )
    _add_data_commands(data)
    return parser


def _add_data_commands(data: argparse.ArgumentParser) -> None:
    commands = data.add_subparsers(metavar="convert | show | verify", required=True)

    convert = commands.add_parser(
        "convert",
        help="IDX files from PNG files, or the reverse",
        description=_CONVERT,
        allow_abbrev=False,
    )
    convert.set_defaults(command=_convert)
    convert.add_argument("source", type=_path, metavar="SRC", help=_SOURCE)
    convert.add_argument("target", type=_path, metavar="DST", help="the folder to make")
    convert.add_argument("--to", choices=["idx", "png"], required=True, help="the format")
    convert.add_argument("--gzip", action="store_true", help="gzip the IDX files")
    convert.add_argument(
        "--overwrite",
        action="store_true",
        help="replace DST, if it is a folder of IDX and PNG files and holds nothing else",
    )

    show = commands.add_parser(
        "show",
        help="draw samples with their labels",
        description="Draws images, chosen at random, and their labels on one sheet.",
        allow_abbrev=False,
    )
    show.set_defaults(command=_show)
    show.add_argument("source", type=_path, metavar="SRC", help=_SOURCE)
    show.add_argument(
        "--out", type=_path, metavar="FILE", required=True, help="the PNG file; is replaced"
    )
    part = show.add_mutually_exclusive_group()
    part.add_argument(
        "--train", action="store_true", default=True, help="from the training part (default)"
    )
    part.add_argument("--test", dest="train", action="store_false", help="from the test part")
    for option, default, text in (
        ("--count", 100, "images"),
        ("--columns", 20, "images side by side"),
    ):
        show.add_argument(
            option,
            type=_whole(1, 10_000),
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )
    show.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="of the choice (default: %(default)s)"
    )

    verify = commands.add_parser(
        "verify",
        help="check that files are whole, and MNIST's",
        description=_VERIFY,
        allow_abbrev=False,
    )
    verify.set_defaults(command=_verify)
    verify.add_argument("dir", type=_path, metavar="DIR", help="a folder as SRC of convert")
    verify.add_argument(
        "--not-mnist",
        dest="mnist",
        action="store_false",
        help="another set (Fashion-MNIST, letters): compare nothing with MNIST, allow any labels",
    )


def _add_train_options(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("data")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--data",
        choices=["digits"],
        help="digits: scikit-learn's 1797 handwritten digits, scaled to 28×28, every fifth held "
        "out for the test; offline (default)",
    )
    source.add_argument(
        "--data-dir",
        type=_path,
        metavar="DIR",
        help="MNIST, or a set in its format: IDX files, gzipped or not, or PNG files "
        "training/<label>/*.png and testing/<label>/*.png",
    )
    group.add_argument(
        "--download",
        action="store_true",
        help="first fetch the MNIST files that DIR lacks (11 MB, checked by SHA-256)",
    )

    group = train.add_argument_group("network and training")
    group.add_argument(
        "--sizes",
        type=_sizes,
        metavar="N,N,…",
        help="pixels, hidden widths, classes (default: 784,300,10 for 28×28 pixels and labels 0…9)",
    )
    group.add_argument("--epochs", type=_positive, metavar="N", help=_default("epochs"))
    group.add_argument("--batch-size", type=_positive, metavar="N", help=_default("batch_size"))
    group.add_argument(
        "--lr", type=_rate, metavar="X", help=f"learning rate of SGD {_default('lr')}"
    )
    group.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help=f"of the initial values and the batches {_default('seed')}",
    )
    loops = group.add_mutually_exclusive_group()
    loops.add_argument(
        "--loop",
        choices=LOOPS,
        help="plain: nn.Linear and a DataLoader of single items, as the lecture has it; fused: "
        "FusedMLP in the same loop, batches gathered in one go; step: TrainStep, runs of batches "
        "in one call. The numbers are the same up to rounding (default: step on the CPU, fused on "
        "another device)",
    )
    loops.add_argument(
        "--compare",
        action="store_true",
        help="train the network by each of these loops in turns, on the same batches; print their "
        "curves side by side, the greatest differences and the ratios of times",
    )

    group = train.add_argument_group("machine")
    group.add_argument(
        "--threads", type=_threads, metavar="N", help="of torch (default: torch's own choice)"
    )
    group.add_argument(
        "--device", metavar="NAME", help=f"cpu, cuda, cuda:1, … {_default('device')}"
    )

    group = train.add_argument_group("files")
    group.add_argument(
        "--plot",
        type=_path,
        metavar="FILE",
        help="draw the curves (PNG, PDF, SVG, …); replaces the file",
    )
    group.add_argument(
        "--checkpoint", type=_path, metavar="FILE", help="keep the training's state here"
    )
    group.add_argument(
        "--checkpoint-every",
        type=_positive,
        metavar="N",
        help=f"batches between checkpoints {_default('checkpoint_every')}",
    )
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, or from the start where there is none yet",
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="replace an existing checkpoint from the start"
    )


def _default(option: str) -> str:
    return f"(default: {getattr(_DEFAULT, option)})"


def _whole(least: int, most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not re.fullmatch("[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {most}"
            )
        return int(text)

    return whole


_positive = _whole(1, 2**31 - 1)
_threads = _whole(1, 1024)  # torch starts as many as it is told, and then stands still
_seed = _whole(0, 2**63 - 1)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]+([,-][0-9]+)+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 784,300,10")
    return tuple(_positive(size) for size in re.split("[,-]", text))


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return expand(text)
