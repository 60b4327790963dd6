"""Every program in examples/ runs, draws its picture, and prints what the lecture claims."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import run_file

from fastmlp.functional import ACTIVATIONS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted(file.name for file in EXAMPLES.glob("[!_]*.py"))  # found: a new one is tested too
# In place of --quick --plot FILE.
ARGUMENTS = {"mnist.py": ["--epochs", 8]}
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf)"

if not PROGRAMS:
    pytest.skip("examples/ is in the source tree, not beside these tests", allow_module_level=True)
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


def numbers(pattern: str, told: str) -> list[float]:
    """Those that stand at each # of the pattern; somewhere it has to fit."""
    found = re.findall(re.escape(pattern).replace(r"\#", NUMBER), told)
    assert found, f"{pattern!r} does not stand in\n{told}"
    return [float(n) for match in found for n in ([match] if isinstance(match, str) else match)]


def rows(head: str, told: str) -> list[list[float]]:
    """The numbers in each line of the table under the line that begins so."""
    lines = told[told.index(head) :].splitlines()[1:]
    table = []
    for line in lines:
        if not re.match(r"\s*\d", line):
            break
        table.append([float(n) for n in re.findall(NUMBER, line)])
    return table


def xor(told: str) -> None:
    loss, *chances = numbers("linear, trained: loss # (ln 2", told) + numbers(
        "four points # # # #", told
    )
    assert loss == pytest.approx(0.6931, abs=2e-4)
    assert chances == pytest.approx([0.5] * 4, abs=0.01)
    assert numbers("random lines: error # %", told) == [25]
    assert numbers("the best of these: error # %", told) == [0]


def linear_activations(told: str) -> None:
    assert "fused: True" in told
    (part,) = numbers("# of the bound for rounding", told)
    assert 0 < part <= 1
    linear, *_ = numbers("identity: variance that no affine map explains #,", told)
    relu, *_ = numbers("relu: variance that no affine map explains #,", told)
    assert linear < 1e-10
    assert relu > 0.1
    assert numbers("dimensions of the outputs #", told) == [3, 8]


def activations(told: str) -> None:
    table = re.findall(rf"^(\w+) +{' +'.join([NUMBER] * 6)}$", told, re.MULTILINE)
    assert len(table) == len(ACTIVATIONS)
    for _, difference, error, theirs, d_difference, d_error, d_theirs in table:
        assert float(error) < 8  # roundings, and three times as many, see reference.py
        assert float(d_error) < 24
        assert float(difference) <= float(error) + float(theirs) + 0.02  # printed to 0.01
        assert float(d_difference) <= float(d_error) + float(d_theirs) + 0.02


def universal_approximation(told: str) -> None:
    medians = {units: median for units, _, median, _ in rows("units ", told)}
    assert list(medians) == [1, 2, 3, 5, 10, 20, 50]
    assert medians[50] < medians[10] < medians[3] < medians[1]


def width_and_depth(told: str) -> None:
    trained = rows("parameters   width 5", told)
    assert [row[0] for row in trained] == [16, 46, 106, 226, 466]
    least = [row[2] for row in trained]
    assert min(least[2:]) < least[0]
    built = rows("parameters   width 3", told)
    assert [row[1] for row in built] == list(range(1, 13))
    for _, depth, error, *_ in built:
        assert error == pytest.approx(4.0 ** -(depth + 1), rel=0.05)  # printed to two digits
    assert built[-1][2] < built[-1][4] / 1000


def tensor_conventions(told: str) -> None:
    (right,) = numbers("[355, 1, 28, 28] → [355, 784], same memory: error #%", told)
    assert right < 15
    for same in ("batch last: permute first", "memory_format=channels_last: flatten(1)"):
        assert re.search(rf"^{re.escape(same)}: .* error {NUMBER}%$", told, re.MULTILINE)
    for wrong in ("batch last: view", "transposed: reshape", "channels last: flatten(1)"):
        line = re.search(rf"^{re.escape(wrong)}: .* error {NUMBER}%$", told, re.MULTILINE)
        assert line is not None
        assert float(line[1]) > 60
    assert told.count("view size is not compatible") == 2


def dropout(told: str) -> None:
    without, with_it = rows("p ", told)
    assert (without[0], with_it[0]) == (0.0, 0.3)
    assert max(without[1], with_it[1]) < 5  # learnt by heart
    assert with_it[3] < without[3]


def going_deeper(told: str) -> None:
    cell = rf" +{NUMBER} +{NUMBER} % +{NUMBER}"  # loss, error, first gradient
    table = {
        name: [float(n) for n in numbers]
        for name, *numbers in re.findall(rf"^(\S.*?){cell * 3}$", told, re.MULTILINE)
    }
    assert len(table) == 8
    losses, errors, gradients = ({n: row[i::3] for n, row in table.items()} for i in range(3))
    assert min(errors["sigmoid"][1:]) > 80  # chance: 90
    assert errors["relu"][0] < 60
    assert errors["relu"][1] > 70
    assert errors["relu"][2] > 80
    assert errors["relu, auxiliary heads"][1] < 60
    assert errors["relu, He's initial values"][1] < 50
    assert errors["relu, He's initial values"][2] > 80
    assert not losses["relu, residual"][2] < 100  # or nan
    assert max(errors["relu, residual, small"] + errors["relu, residual, small, dropout"]) < 25
    assert gradients["relu"][0] > 1e-4 > gradients["relu"][1] > gradients["relu"][2] == 0
    assert all(0.1 < norm < 10 for norm in gradients["relu, residual, small"])


def mnist(told: str) -> None:
    errors = numbers("test error # %", told)
    assert len(errors) == 8
    assert errors[-1] < 9.0  # the nearest mean of a class


EVIDENCE: dict[str, Callable[[str], None]] = {
    "activations.py": activations,
    "dropout.py": dropout,
    "going_deeper.py": going_deeper,
    "linear_activations.py": linear_activations,
    "mnist.py": mnist,
    "tensor_conventions.py": tensor_conventions,
    "universal_approximation.py": universal_approximation,
    "width_and_depth.py": width_and_depth,
    "xor.py": xor,
}


@pytest.mark.parametrize(
    "program",
    # One in each run; the others take longer.
    [p if p == "xor.py" else pytest.param(p, marks=pytest.mark.sweep) for p in PROGRAMS],
)
def test_the_program_shows_what_it_claims(program: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    arguments = ARGUMENTS.get(program, ["--quick", "--plot", picture])
    done = run_file(EXAMPLES / program, *arguments)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr
    if program in EVIDENCE:
        EVIDENCE[program](done.stdout)
    if picture in arguments:
        image = pytest.importorskip("PIL.Image").open(picture)
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(image.width * image.height)
        assert len(colours) > 10  # there is something on it
        assert list(tmp_path.iterdir()) == [picture]


def test_each_program_that_has_evidence_is_there() -> None:
    assert EVIDENCE.keys() <= set(PROGRAMS)


@pytest.mark.sweep
def test_a_picture_replaces_the_file_and_is_the_same_in_every_run(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    contents = []
    for _ in range(2):
        done = run_file(EXAMPLES / "activations.py", "--quick", "--plot", picture)
        assert done.returncode == 0, done.stderr
        contents.append(picture.read_bytes())
        picture.write_text("old")
    assert contents[0].startswith(b"<?xml")
    assert contents[0] == contents[1]


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["picture.bmp", "missing/picture.png", "."])
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    name: str, tmp_path: Path
) -> None:
    done = run_file(EXAMPLES / "activations.py", "--plot", tmp_path / name)
    assert done.returncode == 2
    assert "--plot" in done.stderr
    assert str(tmp_path) in done.stderr
    assert done.stdout == ""
