"""Ranking, texts of the table, the picture."""

import io
import json

from PIL import Image
from rich.console import Console

from revision_jax.planning.plot import draw
from revision_jax.planning.report import Report, by_program, counted, markdown, milliseconds, ranked, table
from revision_jax.sharding.chips import CHIPS, GIB

MESH = {"data": 1, "fsdp": 16, "context": 1, "tensor": 4}


def report(strategy, step=1.0, total=4.0, available=15.75, program="train 1a", **more):
    sizes = {"arguments": 1 * GIB, "temporaries": int((total - 1) * GIB), "output": 0, "total": int(total * GIB), "available": int(available * GIB)}
    seconds = {"compute": step, "hbm": step / 2, "interconnect": step / 4, "step": step}
    values = {
        "fits": total <= available, "bytes": sizes, "flops": {"analytic": 64 * 10**15, "compiled": 10**15}, "seconds": seconds, "binds": "compute",
        "positions_per_s": 1000 / step, "rows_per_s": 10 / step, "mfu_ceiling": 0.5, "collectives": {"all-gather": {"count": 5, "bytes": 29.4e9, "wire": 1.0}},
    }  # fmt: skip
    return Report(program, "train", strategy, "v5e:8x8", MESH, 10, 1000, **{**values, **more})


REPORTS = [
    report("slow", step=2.0), report("big", total=20.0, advice="fits with decoder.remat=full (9.00 GiB)", problem="out of HBM", seconds={}, binds=""),
    Report("train 1a", "train", "odd", "v5e:8x8", MESH, 10, 1000, problem="stages.1a.batch: a batch of 10 does not divide by the 64 devices"),
    report("quick", step=0.5), report("bigger", total=30.0), report("alone", program="train 2"),
]  # fmt: skip


def test_what_fits_comes_first_by_time_then_by_what_is_lacking_then_what_does_not_compile():
    assert [one.strategy for one in ranked(REPORTS[:5])] == ["quick", "slow", "big", "bigger", "odd"]
    assert list(by_program(REPORTS)) == ["train 1a", "train 2"]


def test_without_times_the_smaller_comes_first():
    bare = {"fits": None, "seconds": {}, "binds": ""}
    assert [one.strategy for one in ranked([report("large", total=3.0, **bare), report("small", total=2.0, **bare)])] == ["small", "large"]


def test_lacking_bytes():
    assert report("big", total=20.0).lacks == int(20 * GIB) - int(15.75 * GIB) and report("quick").lacks == 0 and REPORTS[2].lacks == 0


def test_numbers_as_texts():
    assert [counted(number) for number in (0, 648, 2.54e6, 29.4e9, 1.1e16)] == ["0", "648", "2.54M", "29.4G", "11P"]
    assert [milliseconds(seconds) for seconds in (None, 0.00123, 0.0456, 1.4717)] == ["", "1.23", "45.6", "1,472"]


def test_the_table_says_all_of_it():
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table("plan", REPORTS, CHIPS["v5e"]))
    text = console.export_text()
    for wanted in ("fsdp 16 x tensor 4", "no: 4.25 GiB too much", "gather 5: 29.4G", "a batch of 10 does not divide", "15.75 GiB usable", "50%", "500", "2k"):
        assert wanted in text, wanted
    assert "| train 1a | 1 | quick | fsdp 16 x tensor 4 |" in markdown(REPORTS) and "**500**" in markdown(REPORTS)


def test_reports_travel_as_json():
    assert [Report.from_dict(json.loads(json.dumps(one.to_dict()))) for one in REPORTS] == REPORTS


def test_the_picture(tmp_path):
    picture = Image.open(draw(tmp_path / "plan.png", "plan", REPORTS))
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1_000_000)}
    assert picture.width == 1500 and {(12, 68, 148), (122, 170, 220), (43, 138, 62), (201, 42, 42)} <= colours
