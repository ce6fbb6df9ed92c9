"""The parts of the patched Triton that need no Triton: rules, IR edits, fp8 arithmetic."""

from __future__ import annotations

import math
import pickle
import stat
import struct
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda.capability import Capability
from legacy_cuda.catalog import capabilities
from legacy_cuda.triton_backend import dot, fp8, limits, mlir

LEGACY = [row for row in capabilities().values() if row.capability < Capability(7, 2)]


@pytest.mark.parametrize("row", LEGACY, ids=lambda row: str(row.capability))
def test_limits_are_those_of_the_catalog(row: Any) -> None:
    pair = (row.capability.major, row.capability.minor)
    assert limits.has_dp4a(pair) == row.dp4a
    assert limits.shared_memory(pair) == row.shared_memory_optin_kib << 10
    assert limits.has_fast_half(pair) == (row.fp16_fp32_ratio == "2:1")


@pytest.mark.parametrize(
    ("capability", "processor"),
    [((3, 7), "sm_37"), ((5, 2), "sm_52"), ((6, 0), "sm_60"), ((6, 1), "sm_52"), ((7, 0), "sm_70")],
)
def test_llvm_generates_without_slow_fp16(capability: tuple[int, int], processor: str) -> None:
    assert limits.llvm_processor(capability) == processor


def test_no_rule_for_gpus_with_tensor_cores_of_triton() -> None:
    assert dot.make((7, 5)) is None
    assert fp8.make((8, 0)) is None


def _ptxas(folder: Path, release: str) -> str:
    path = folder / "ptxas"
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_ptxas_of_cuda_13_is_refused_by_name(tmp_path: Path) -> None:
    path = _ptxas(tmp_path, "13.0")
    with pytest.raises(limits.UnsuitablePtxasError, match=rf"{path} is of CUDA 13.0.*sm_61"):
        limits.find_ptxas((6, 1), lambda: path)


def test_kepler_takes_ptxas_of_cuda_11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    monkeypatch.setenv("TRITON_PTXAS_PATH", _ptxas(old, "11.8"))
    assert limits.find_ptxas((3, 7), lambda: "unused") == str(old / "ptxas")
    monkeypatch.setenv("TRITON_PTXAS_PATH", _ptxas(new, "12.8"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    with pytest.raises(limits.UnsuitablePtxasError, match=r"sm_37.*not suitable: .*new.*nvcc-cu11"):
        limits.find_ptxas((3, 7), lambda: "unused")


def test_what_is_no_ptxas_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ptxas"
    path.write_text("#!/bin/sh\necho hello\n")
    path.chmod(0o755)
    with pytest.raises(limits.UnsuitablePtxasError, match="does not say"):
        limits.find_ptxas((6, 1), lambda: str(path))
    with pytest.raises(limits.UnsuitablePtxasError, match="does not run"):
        limits.find_ptxas((6, 1), lambda: str(tmp_path / "missing"))


class _Function:
    def __init__(self, name: str) -> None:
        self.name = name

    def get_name(self) -> str:
        return "llvm.func"

    def get_num_regions(self) -> int:
        return 1

    def get_str_attr(self, name: str) -> str:
        assert name == "sym_name"
        return self.name


class _Module:
    """Text and attributes, as much of an MLIR module as is looked at."""

    def __init__(self, text: str, shared: int = 0, kernels: tuple[str, ...] = ()) -> None:
        self.text, self.shared, self.context, self.kernels = text, shared, None, kernels

    def __str__(self) -> str:
        return self.text

    def walk(self, look: Any) -> None:
        for name in self.kernels:
            look(_Function(name))

    def get_int_attr(self, name: str) -> int:
        assert name == "ttg.shared"
        return self.shared


class OutOfResources(Exception):
    """As Triton has it, of which these tests run without."""

    def __init__(self, required: int, limit: int, name: str) -> None:
        self.required, self.limit, self.name = required, limit, name


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for the two names taken from Triton; the list gets what was parsed."""
    errors, library = types.ModuleType("triton.runtime.errors"), types.ModuleType("libtriton")
    errors.OutOfResources = OutOfResources  # type: ignore[attr-defined]  # a stand-in
    parsed: list[str] = []

    class IR:
        @staticmethod
        def parse_mlir_module(path: str, context: object) -> _Module:
            parsed.append(Path(path).read_text())
            return _Module(parsed[-1])

    library.ir = IR  # type: ignore[attr-defined]  # a stand-in
    for name in ("triton", "triton.runtime", "triton._C"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "triton.runtime.errors", errors)
    monkeypatch.setitem(sys.modules, "triton._C.libtriton", library)
    limits._out_of_shared_memory.cache_clear()
    return parsed


def test_too_much_shared_memory_names_kernel_and_limit(triton: list[str]) -> None:
    limits.check_shared_memory(_Module("", 49152, ("attention",)), (6, 1))
    with pytest.raises(OutOfResources) as caught:
        limits.check_shared_memory(_Module("", 49153, ("attention",)), (6, 1))
    again = pickle.loads(pickle.dumps(caught.value))  # compile workers send it back
    for error in (caught.value, again):
        assert str(error) == (
            "attention needs 49153 bytes of shared memory; a block on capability 6.1 has 49152. "
            "Take smaller blocks or a smaller num_stages."
        )


def test_shared_memory_of_volta(triton: list[str]) -> None:
    limits.check_shared_memory(_Module("", 98304), (7, 0))
    with pytest.raises(OutOfResources):
        limits.check_shared_memory(_Module("", 98305), (7, 0))


DOT = (
    "      %s = tt.dot %a, %b, %c {legacy_dp4a}, inputPrecision = tf32 : tensor<64x16xf32, #d> * "
    "tensor<16x64xf32, #e> -> tensor<64x64xf32, #f> loc(#loc7)"
)
WIDENING = (
    "      %w = tt.fp_to_fp %v : tensor<64x32xbf16, #ttg.dot_op<{opIdx = 0, parent = #f}>> -> "
    "tensor<64x32xf32, #ttg.dot_op<{opIdx = 0, parent = #f}>> loc(#loc3)"
)


def test_marked_dots_get_a_location(triton: list[str]) -> None:
    module = mlir.after_ttgir(_Module(f"head\n{DOT}\ntail"))
    assert str(module).split("\n") == [
        "head",
        DOT.replace("loc(#loc7)", "loc(#legacy_dp4a0)"),
        "tail",
        '#legacy_dp4a0 = loc("legacy_dp4a"(#loc7))',
    ]
    assert mlir.has_dp4a(module)


def test_widening_becomes_extf(triton: list[str]) -> None:
    plain = DOT.replace(" {legacy_dp4a}", "")
    module = mlir.after_ttgir(_Module(f"{WIDENING}\n{plain}"))
    assert str(module).split("\n")[0] == (
        "      %w = arith.extf %v : tensor<64x32xbf16, #ttg.dot_op<{opIdx = 0, parent = #f}>> to "
        "tensor<64x32xf32, #ttg.dot_op<{opIdx = 0, parent = #f}>> loc(#loc3)"
    )


@pytest.mark.parametrize(
    "text",
    [
        WIDENING,  # no dot: not a matter of dots
        DOT.replace(" {legacy_dp4a}", ""),
        DOT.replace(" {legacy_dp4a}", "") + "\n" + WIDENING.replace("xbf16", "xf8E5M2"),
        DOT.replace(" {legacy_dp4a}", "") + "\n" + WIDENING.replace(" :", ", rounding = rtne :"),
    ],
)
def test_other_modules_stay(triton: list[str], text: str) -> None:
    module = _Module(text)
    assert mlir.after_ttgir(module) is module
    assert not triton


FMA = "    %{} = llvm.intr.fmuladd(%a, %b, %{}) : (f32, f32, f32) -> f32 loc(#loc{})"


def test_multiply_adds_of_marked_dots_become_dp4a(triton: list[str]) -> None:
    lines = [FMA.format("x", "c", 9), FMA.format("y", "x", 4), '#loc9 = loc("legacy_dp4a"(#loc7))']
    text = str(mlir.lower_dp4a(_Module("\n".join(lines)))).split("\n")
    assert text[-2:] == lines[1:]
    assert text[3].count("dp4a.s32.s32 $0, $1, $2, $3;") == 1
    assert text[4] == "    %x = llvm.bitcast %legacy_dp4a_word0 : i32 to f32 loc(#loc9)"
    assert [line.split(" = ")[1] for line in text[:3]] == [
        f"llvm.bitcast %{name} : f32 to i32 loc(#loc9)" for name in "abc"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        FMA.format("x", "c", 9).replace("f32, f32, f32", "f64, f64, f64"),
        FMA.format("x", "c", 1),
    ],
)
def test_unknown_forms_are_errors_not_skipped(triton: list[str], line: str) -> None:
    with pytest.raises(mlir.IRError):
        mlir.lower_dp4a(_Module(f'{line}\n#loc9 = loc("legacy_dp4a"(#loc7))'))


def test_dots_without_location_are_errors(triton: list[str]) -> None:
    with pytest.raises(mlir.IRError):
        mlir.after_ttgir(_Module(DOT.removesuffix(" loc(#loc7)")))


def _single(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0])


def _bits(value: float) -> int:
    """Of the nearest fp32; of a sum or product of two of them that is rounding once, as a double
    holds both exactly enough (2 * 24 + 2 bits)."""
    if math.isinf(value):
        return 0xFF800000 if value < 0 else 0x7F800000
    try:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return 0x7F800000 if value > 0 else 0xFF800000


class _Machine:
    """Executes what would be built: every value is its 32 (or 8) bits."""

    def __getattr__(self, name: str) -> Any:
        kind = name.removeprefix("create_")
        if name.startswith("get_") and name != "get_int32":
            return lambda *_: name
        table = {
            "and": lambda a, b: a & b,
            "or": lambda a, b: a | b,
            "shl": lambda a, b: a << b & 0xFFFFFFFF,
            "lshr": lambda a, b: a >> b,
            "add": lambda a, b: (a + b) & 0xFFFFFFFF,
            "sub": lambda a, b: (a - b) & 0xFFFFFFFF,
            "fadd": lambda a, b: _bits(_single(a) + _single(b)),
            "fmul": lambda a, b: _bits(_single(a) * _single(b)),
            "icmpEQ": lambda a, b: a == b,
            "icmpSLT": lambda a, b: _signed(a) < _signed(b),
            "icmpSGT": lambda a, b: _signed(a) > _signed(b),
            "select": lambda c, a, b: a if c else b,
            "bitcast": lambda a, kind: a,
            "int_cast": lambda a, kind, signed: a & 0xFF,
        }
        return table[kind]

    def get_int32(self, value: int) -> int:
        assert -(1 << 31) <= value < 1 << 31
        return value & 0xFFFFFFFF


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >> 31 else bits


FORMATS = pytest.mark.parametrize("kind", [fp8.E4M3, fp8.E5M2], ids=["e4m3", "e5m2"])


def _decode(code: int, kind: fp8.Format) -> float:
    """A code by the definition of its format."""
    sign, magnitude = -1.0 if code >> 7 else 1.0, code & 0x7F
    exponent, mantissa = magnitude >> kind.mantissa, magnitude % (1 << kind.mantissa)
    if magnitude > kind.largest:
        return sign * math.inf if kind is fp8.E5M2 and mantissa == 0 else math.nan
    if exponent:
        mantissa += 1 << kind.mantissa
    return float(sign * mantissa * Fraction(2) ** (max(exponent, 1) - kind.bias - kind.mantissa))


def _nearest(value: float, kind: fp8.Format) -> int:
    """The code nearest to a value, ties to the even code, saturating, by looking at all."""
    if math.isnan(value):
        return 0x7F
    sign = 0x80 if math.copysign(1, value) < 0 else 0
    if abs(value) >= _decode(kind.largest, kind):
        return sign | kind.largest
    exact = Fraction(abs(value))
    codes = range(kind.largest + 1)
    code = min(codes, key=lambda c: (abs(Fraction(_decode(c, kind)) - exact), c & 1))
    return sign | code


@FORMATS
def test_every_fp8_value_is_widened_exactly(kind: fp8.Format) -> None:
    build = fp8._Build(_Machine(), [])
    for code in range(256):
        expected, found = _decode(code, kind), _single(build.widened(code, kind))
        assert math.isnan(found) if math.isnan(expected) else found == expected
        if not math.isnan(expected):
            assert math.copysign(1, found) == math.copysign(1, expected)


@FORMATS
def test_every_fp8_number_comes_back(kind: fp8.Format) -> None:
    build = fp8._Build(_Machine(), [])
    for code in range(kind.largest + 1):
        for sign in (0, 0x80):
            assert build.narrowed(_bits(_decode(sign | code, kind)), kind) == sign | code
    assert build.narrowed(0x7FC00000, kind) == 0x7F
    assert build.narrowed(0xFF800000, kind) == 0x80 | kind.largest


@FORMATS
@given(st.integers(0, (1 << 32) - 1) | st.floats(-70000, 70000, width=32).map(_bits))
def test_fp32_is_rounded_to_the_nearest_fp8(kind: fp8.Format, bits: int) -> None:
    found = fp8._Build(_Machine(), []).narrowed(bits, kind)
    value = _single(bits)
    assert (found & 0x7F if math.isnan(value) else found) == _nearest(value, kind)


@FORMATS
def test_ties_between_neighbours_go_to_the_even_one(kind: fp8.Format) -> None:
    build = fp8._Build(_Machine(), [])
    for code in range(kind.largest):
        middle = (_decode(code, kind) + _decode(code + 1, kind)) / 2
        even = code if code % 2 == 0 else code + 1
        assert build.narrowed(_bits(middle), kind) == even
