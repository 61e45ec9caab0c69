"""The gradient of the values (SDDMM) by the C interface, compared with float64 over kept entries."""

from __future__ import annotations

import ctypes

import pytest
import torch
from spdf_kernels import native

PORTABLE, AVX512, AVX512_BF16 = 0, 1, 2
POINTER, INT64, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

library = ctypes.CDLL(str(native.LIBRARY))
library.spdf_sddmm_prepare.restype = POINTER
library.spdf_sddmm_prepare.argtypes = [INT64, INT64, POINTER, POINTER, POINTER]
library.spdf_sddmm_bytes.restype = INT64
library.spdf_sddmm_bytes.argtypes = [POINTER]
library.spdf_sddmm_free.restype = None
library.spdf_sddmm_free.argtypes = [POINTER]
for function in (library.spdf_sddmm_f32, library.spdf_sddmm_bf16):
    function.argtypes = [POINTER, POINTER, INT64, POINTER, INT64, INT64, POINTER, INT, INT]

BEST = library.spdf_sddmm_best_isa()
ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(isa > BEST, reason="this CPU lacks the instructions"), id=name)
    for isa, name in ((PORTABLE, "portable"), (AVX512, "avx512"), (AVX512_BF16, "avx512_bf16"))
]
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]


def prepare(mask: torch.Tensor) -> int:
    """The prepared structure of a mask [out, in]."""
    start = torch.zeros(mask.shape[0] + 1, dtype=torch.int64)
    start[1:] = mask.sum(dim=1).cumsum(0)
    columns = mask.nonzero()[:, 1]
    wide = mask.shape[1] > 65536
    columns = columns.to(torch.int32).contiguous() if wide else columns.to(torch.int32).to(torch.uint16).contiguous()
    narrow_at, wide_at = (None, columns.data_ptr()) if wide else (columns.data_ptr(), None)
    prepared = library.spdf_sddmm_prepare(*mask.shape, start.data_ptr(), narrow_at, wide_at)
    assert prepared
    return prepared


def sddmm(mask: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, isa: int, threads: int = 1) -> torch.Tensor:
    """Gradient of the values [nnz] for dy [T, out] and x [T, in] with unit stride in the last dimension."""
    prepared = prepare(mask)
    values = torch.full((int(mask.sum()),), 7.0, dtype=x.dtype)
    function = library.spdf_sddmm_f32 if x.dtype == torch.float32 else library.spdf_sddmm_bf16
    tokens = x.shape[0]
    dy_ld, x_ld = max(dy.stride(0), mask.shape[0]), max(x.stride(0), mask.shape[1])
    status = function(prepared, dy.data_ptr(), dy_ld, x.data_ptr(), x_ld, tokens, values.data_ptr(), threads, isa)
    library.spdf_sddmm_free(prepared)
    assert status == 0
    return values


def random_case(
    out_features: int, in_features: int, tokens: int, density: float, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(out_features, in_features, generator=generator) < density
    dy = torch.randn(tokens, out_features, generator=generator).to(dtype)
    x = torch.randn(tokens, in_features, generator=generator).to(dtype)
    return mask, dy, x


def check(mask: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, values: torch.Tensor) -> None:
    """Equal to the float64 product within the rounding of fp32 sums, and for bf16 of one rounding at the end."""
    exact = (dy.double().t() @ x.double())[mask]
    scale = (dy.double().abs().t() @ x.double().abs())[mask]
    bound = scale * 2e-6 + (exact.abs() * 2**-8 if x.dtype == torch.bfloat16 else 0.0)
    assert values.shape == exact.shape
    assert bool(((values.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("out_features", "in_features", "tokens", "density"),
    [
        (1, 1, 1, 1.0),
        (5, 7, 1, 0.5),
        (64, 100, 37, 0.3),
        (33, 50, 517, 1.0),
        (700, 130, 300, 0.25),
        (520, 49, 1025, 0.1),
        (3, 4096, 16, 0.9),
        (17, 96, 15, 0.02),
    ],
)
def test_matches_float64_over_kept_entries(
    out_features: int, in_features: int, tokens: int, density: float, isa: int, dtype: torch.dtype
) -> None:
    mask, dy, x = random_case(out_features, in_features, tokens, density, dtype)
    check(mask, dy, x, sddmm(mask, dy, x, isa, threads=2))


@pytest.mark.parametrize("isa", ISAS)
def test_every_count_of_entries_in_a_row(isa: int) -> None:
    mask = torch.ones(100, 99, dtype=torch.bool).tril()  # row i keeps i + 1 entries, but at most 99
    _, dy, x = random_case(100, 99, 40, 0.0, torch.float32)
    check(mask, dy, x, sddmm(mask, dy, x, isa))


@pytest.mark.parametrize("isa", ISAS)
def test_every_number_of_tokens(isa: int) -> None:
    for tokens in range(1, 140):
        mask, dy, x = random_case(6, 9, tokens, 0.6, torch.float32, seed=tokens)
        check(mask, dy, x, sddmm(mask, dy, x, isa))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_more_tokens_than_one_packing_pass_holds(isa: int, dtype: torch.dtype) -> None:
    in_features = 70000  # beyond 16 bits; a pass packs 2^24 floats of x
    mask = torch.zeros(3, in_features, dtype=torch.bool)
    mask[0, ::1001] = mask[2, -5:] = True
    _, dy, x = random_case(3, in_features, 520, 0.0, dtype)
    check(mask, dy, x, sddmm(mask, dy, x, isa, threads=2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("out_features", "in_features", "tokens"), [(0, 5, 3), (5, 0, 3), (4, 4, 3), (4, 4, 0)])
def test_nothing_kept_or_no_tokens(out_features: int, in_features: int, tokens: int, isa: int) -> None:
    mask, dy, x = random_case(out_features, in_features, tokens, 0.0 if tokens else 0.5, torch.float32)
    values = sddmm(mask, dy, x, isa)
    assert torch.equal(values, torch.zeros(int(mask.sum())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_leading_strides(isa: int, dtype: torch.dtype) -> None:
    mask, dy, x = random_case(40, 60, 33, 0.4, dtype)
    wide_dy, wide_x = torch.full((33, 47), torch.nan, dtype=dtype), torch.full((33, 61), torch.nan, dtype=dtype)
    wide_dy[:, :40], wide_x[:, :60] = dy, x
    assert torch.equal(sddmm(mask, wide_dy[:, :40], wide_x[:, :60], isa), sddmm(mask, dy, x, isa))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa: int, dtype: torch.dtype) -> None:
    mask, dy, x = random_case(900, 700, 150, 0.3, dtype)  # 3 x 15 blocks, divided by rows, by columns and by both
    one = sddmm(mask, dy, x, isa, threads=1)
    check(mask, dy, x, one)
    for threads in (1, 2, 3, 5, 8, 64):
        assert torch.equal(one, sddmm(mask, dy, x, isa, threads=threads))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_non_finite_values_reach_only_their_entries(isa: int, dtype: torch.dtype) -> None:
    mask, dy, x = random_case(20, 30, 40, 0.5, dtype)
    x[3, 11] = torch.inf
    dy[7, 4] = torch.nan
    touched = mask.clone()
    touched[:, :] = False
    touched[:, 11] = touched[4, :] = True
    values = sddmm(mask, dy, x, isa)
    assert torch.equal(torch.isfinite(values), ~touched[mask])


@pytest.mark.parametrize("isa", ISAS)
def test_padding_computes_no_zero_times_infinity(isa: int) -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    x = torch.tensor([[torch.inf, 1.0]])
    dy = torch.tensor([[1.0, 2.0]])
    expected = torch.tensor([torch.inf, 1.0, torch.inf, 2.0])
    assert torch.equal(sddmm(mask, dy, x, isa), expected)


def test_the_structure_is_small() -> None:
    mask, _, _ = random_case(768, 768, 1, 0.25, torch.float32)
    prepared = prepare(mask)
    per_entry = library.spdf_sddmm_bytes(prepared) / int(mask.sum())
    library.spdf_sddmm_free(prepared)
    assert 1.0 < per_entry < 2.0
