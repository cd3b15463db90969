"""What nvcc makes of the CUDA kernels: no warning, no spill, no cached load of exchanged data, tensor cores."""

from __future__ import annotations

import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from tools import cuda_compile, gpu_resources, sass

RECURRENT = {f"{kernel}_{way}" for kernel in ("single_block", "cooperative") for way in ("forward", "backward")}
LEAN = {"lean_forward", "lean_backward"}  # for sm_80 on; empty before
LAYERS = {
    "lean_layers_forward",
    "lean_layers_backward",
}  # the same code twice an instance: compiled for sm_90 alone here

# Instructions of a step of `lean` in bfloat16 with dense rows, at most; what others take is in the committed rows
MOST_FORWARD, MOST_BACKWARD, MOST_TO_SEND = 300, 450, 120
FORWARD_TILES = {
    cuda_compile.lean_words("lean_forward", [str(spans), str(groups), "1", "true"])[0]
    for spans in (1, 2, 4)
    for groups in (1, 2)
}
BACKWARD_TILES = {
    cuda_compile.lean_words("lean_backward", [str(spans), str(parts), "true"])[0]
    for parts, most in ((1, 16), (4, 4))
    for spans in (1, 2, 4, 8, 16)
    if spans <= most
}


# What is spilled where, in bytes: `single_block` has 128 registers a thread, and on sm_75 the halves of a product, which other
# architectures multiply at once, and copies that are not asynchronous take some of them
SPILLS = {(75, "single_block_forward", "float16"): 52}

PTXAS = """ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    8 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""

SASS = """
        /*0000*/                   LDG.E.CONSTANT R2, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/                   LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64] ;
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/                   EXIT ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2);
"""


def test_spilled_bytes_are_read():
    assert cuda_compile.spill_bytes(PTXAS) == {"_Z1av": 48, "_Z1bv": 0}


def test_constant_and_strong_loads_are_counted_separately_in_loops():
    code = sass.parse(SASS, 10, 0)
    assert (cuda_compile._loads(code, "CONSTANT"), cuda_compile._loads(code, "STRONG")) == (0, 1)
    assert code.count(*sass.TENSOR, in_loops=True) == 1


def load(register: int, address: int = 2) -> str:
    return f"  /*0010*/  LDG.E.128.STRONG.GPU R{register}, desc[UR4][R{address}.64] ;\n"


ADD = "  /*0020*/  IADD3 R2, R2, 0x10, RZ ;\n"
LOOK = "  /*0020*/  ISETP.NE.AND P0, PT, R{}, -0x1, PT ;\n"


@pytest.mark.parametrize(
    ("code", "groups"),
    [
        (load(4) + load(8) + ADD + load(12) + load(16) + LOOK.format(7), (4,)),
        (load(4) + LOOK.format(4) + load(8) + load(12) + LOOK.format(9), (1, 2)),
        (load(4) + load(8, 6) + LOOK.format(9), (1, 1)),  # the address is what the first one brings
        (load(4) + load(8), (2,)),
        (ADD + LOOK.format(4), ()),
    ],
)
def test_loads_in_flight_are_counted_until_a_result_is_named(code, groups):
    assert sass.strong_groups(code) == groups


STEP = """
        /*0000*/                   BAR.SYNC 0x0 ;
.L_x_0:
.L_x_1:
        /*0010*/                   LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64] ;
.L_x_2:
        /*0020*/                   ISETP.NE.AND P0, PT, R4, -0x1, PT ;
        /*0030*/              @!P0 LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64] ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/                   FADD R4, R4, R5 ;
        /*0080*/                   STG.E.STRONG.GPU desc[UR4][R2.64], R4 ;
        /*0090*/                   STG.E desc[UR4][R2.64], R4 ;
        /*00a0*/              @!P1 BRA `(.L_x_1) ;
        /*00b0*/                   IADD3 R2, R2, 0x10, RZ ;
        /*00c0*/              @!P1 BRA `(.L_x_0) ;
.L_x_3:
        /*00d0*/                   LDG.E.STRONG.GPU R4, desc[UR4][R2.64] ;
        /*00e0*/              @!P1 BRA `(.L_x_3) ;
        /*00f0*/                   EXIT ;
"""


def test_instructions_of_a_step_are_those_of_the_loops_over_time_without_polling():
    """Loads, a product, the barrier, what follows until the branch back: not the loop around it, nor one that only polls."""
    code = sass.parse(STEP, 10, 0)
    assert (code.step, code.send) == (7, 2)
    cells = """
.L_x_4:
        /*0100*/                   MUFU.EX2 R4, R4 ;
        /*0110*/                   ST.E.STRONG.GPU desc[UR4][R2.64], R4 ;
        /*0120*/              @!P1 BRA `(.L_x_4) ;
"""
    assert sass.parse(STEP + cells, 10, 0).step == 7 + 3


def test_the_instances_of_lean_are_told_in_words():
    names = [
        "lean_forward<bfloat_t, 4, 2, 1, true>",
        "lean_forward<tf32_t, 1, 1, 2, false>",
        "lean_backward<half_t, 8, 4, true>",
    ]
    rows = [cuda_compile._row(90, name, sass.parse(STEP, 10, 0), 0) for name in names]
    assert [(row.kernel, row.math, row.tile, row.options) for row in rows] == [
        ("lean_forward", "bfloat16", "4 spans, 2 groups, 1 tile", "dense"),
        ("lean_forward", "tf32", "1 span, 1 group, 2 tiles", "rows"),
        ("lean_backward", "float16", "8 spans, 4 parts", "dense"),
    ]
    assert (rows[0].step_instructions, rows[0].send_instructions) == (7, 2)
    assert cuda_compile._row(90, "cooperative_forward<half_t>", sass.parse(STEP, 10, 0), 0).step_instructions == 0


@cache
def compiled(capability: int) -> tuple[cuda_compile.CudaKernelRow, ...]:
    nvcc = cuda_compile.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc; pip install 'fastlstm[cuda-build]'")
    files = ("*",) if capability == 90 else ("lean_[fb]*", "[!l]*")
    return tuple(row for only in files for row in cuda_compile.rows(nvcc, capability, only)[0])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_kernels_have_no_spills_and_the_expected_instructions(capability):
    """compile_file has raised on any warning."""
    rows = compiled(capability)
    assert {row.kernel for row in rows} == RECURRENT | LEAN | (LAYERS if capability == 90 else set()) | {
        "per_step_forward",
        "per_step_backward",
        "per_step_backward_sum",
        "decode",
    }
    for row in rows:
        assert (row.spill_bytes, row.spills, row.stack) == (0, 0, 0), row
        assert row.registers <= (255 if row.kernel.startswith(("cooperative", "decode", "lean")) else 128), row
        assert row.constant_loads == 0, row
    for row in (row for row in rows if row.kernel in RECURRENT):
        assert (row.tensor > 0) == (row.math != "float32"), row
        assert row.math != "float32" or row.ffma > 100, row
        assert row.async_copies > 0, row
        assert (row.strong_loads > 0) == row.kernel.startswith("cooperative"), row
        assert row.in_flight >= (4 if row.kernel.startswith("cooperative") else 0), row


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_instance_of_lean_issues_its_loads_together_and_few_instructions(capability):
    """One round trip through L2 a wait, few instructions from barrier to send."""
    rows = [row for row in compiled(capability) if row.kernel in LEAN]
    assert {(row.kernel, row.tile) for row in rows if row.math == "bfloat16"} == {
        *_instances("lean_forward"),
        *_instances("lean_backward"),
    }
    assert {(row.math, row.options) for row in rows} == set(product(("tf32", "float16", "bfloat16"), ("dense", "rows")))
    for row in rows:
        spans, *others = (int(number) for number in re.findall(r"\d+", row.tile))
        together = spans * others[1] if row.kernel == "lean_forward" else max(spans, others[0] if others[0] > 1 else 0)
        if (row.kernel, spans, row.math, row.options) == ("lean_backward", 16, "tf32", "rows"):
            together = 8  # in two batches: registers are short
        assert row.in_flight == together, row
        assert row.tensor > 0, row
        assert 0 < row.send_instructions <= MOST_TO_SEND or row.kernel == "lean_backward", row
        assert row.step_instructions > 200, row


def _instances(kernel: str) -> set[tuple[str, str]]:
    """What csrc/cuda/lean_layout.h lists, last for what is shipped, before that for the simulation."""
    text = (cuda_compile.CUDA / "lean_layout.h").read_text()
    listed = re.findall(rf"#define FASTLSTM_{kernel.upper()}\(X\)((?:.*\\\n)*.*)", text)[-1]
    numbers = (re.findall(r"\d+", one) for one in re.findall(r"X\(([\d, ]+)\)", listed))
    return {(kernel, cuda_compile.lean_words(kernel, [*one, "true"])[0]) for one in numbers}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_a_step_of_lean_in_bfloat16_takes_few_instructions(capability):
    budgets = {"lean_forward": (FORWARD_TILES, MOST_FORWARD), "lean_backward": (BACKWARD_TILES, MOST_BACKWARD)}
    measured = {
        (row.kernel, row.tile): row.step_instructions
        for row in compiled(capability)
        if row.kernel in LEAN and (row.math, row.options) == ("bfloat16", "dense")
    }
    over = {
        (kernel, tile): count
        for (kernel, tile), count in measured.items()
        if tile in budgets[kernel][0] and count > budgets[kernel][1]
    }
    assert set(measured) >= {(kernel, tile) for kernel, (tiles, _) in budgets.items() for tile in tiles}
    assert not over


@pytest.mark.slow
def test_a_warning_is_an_error(tmp_path):
    nvcc = cuda_compile.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc; pip install 'fastlstm[cuda-build]'")
    source = tmp_path / "warns.cu"
    source.write_text("__global__ void f(float* x) { int unused; *x = 1; }\n")
    with pytest.raises(RuntimeError, match="unused"):
        cuda_compile.compile_file(nvcc, source, 80, tmp_path / "warns.cubin")


def committed() -> list[dict]:
    return gpu_resources.read(gpu_resources.DATA / "cuda.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_committed_rows_are_what_the_kernels_compile_to(capability):
    nvcc = cuda_compile.find_nvcc()
    by = (gpu_resources.DATA / "cuda.version").read_text().strip()
    if nvcc is None or by != f"nvcc {cuda_compile.version(nvcc)}":
        pytest.skip(f"the committed rows are by {by}")
    key = ("kernel", "math", "tile", "options")
    actual = {tuple(getattr(row, k) for k in key): vars(row) for row in compiled(capability)}
    compiled_kernels = {row.kernel for row in compiled(capability)}
    rows = (r for r in committed() if r["capability"] == capability and r["kernel"] in compiled_kernels)
    expected = {tuple(row[k] for k in key): row for row in rows}
    assert actual == expected, "run python -m tools.gpu_resources --compile cuda"


def test_committed_rows_cover_all_architectures_without_spills():
    rows = committed()
    assert {row["capability"] for row in rows} == set(gpu_resources.ARCHITECTURES["cuda"])
    for row in rows:
        spilled = SPILLS.get((row["capability"], row["kernel"], row["math"]), 0)
        assert (row["spill_bytes"], row["constant_loads"]) == (spilled, 0), row
        promised = row["math"] == "float16" or (row["math"] != "float32" and row["capability"] >= 80)
        if row["kernel"] in RECURRENT | LEAN | LAYERS:
            assert (row["tensor"] > 0) == (promised and (row["kernel"] in RECURRENT or row["capability"] >= 80)), row
    layers = {row["kernel"] for row in rows} & LAYERS
    assert layers == LAYERS


def test_the_log_of_the_compiler_is_committed():
    log = Path(gpu_resources.DATA / "cuda.txt").read_text()
    files = {path.name for path in cuda_compile.CUDA.glob("*.cu")}
    for capability in gpu_resources.ARCHITECTURES["cuda"]:
        for name in files:
            assert f"-arch=sm_{capability} -Xptxas=-v -cubin csrc/cuda/{name}" in log
    assert "warning" not in log.replace("all-warnings", "")
