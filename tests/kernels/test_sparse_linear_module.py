"""SparseLinear: state with its mask, conversions, dtypes, derivatives, copies, compilation."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kernels_reference import BACKENDS, assert_close, forward, grad_input, grad_values, random_pattern, random_tensor
from safetensors.torch import load_file, save_file
from spdf_kernels import SparseLinear, SparsityPattern, describe, sparse_linear
from torch import nn


def layer_of(seed: int = 0, bias: bool = True) -> SparseLinear:
    torch.manual_seed(seed)
    return SparseLinear(40, 24, random_pattern(24, 40, 0.4, seed), bias=bias)


def other_mask_of_equal_count(pattern: SparsityPattern) -> SparsityPattern:
    return SparsityPattern.from_mask(pattern.mask().flip(0))


def test_it_is_the_dense_layer_with_its_pruned_entries_at_zero() -> None:
    dense = nn.Linear(40, 24)
    layer = SparseLinear.from_linear(dense, random_pattern(24, 40, 0.4, seed=0))
    x = torch.randn(2, 9, 40)
    pruned = layer.to_dense()
    assert torch.equal(pruned.weight, torch.where(layer.pattern.mask(), dense.weight, 0))
    assert torch.equal(pruned.bias, dense.bias)
    torch.testing.assert_close(layer(x), pruned(x))
    assert sorted(layer.state_dict()) == ["bias", "mask_bits", "values"]
    assert layer_of(bias=False).to_dense().bias is None
    assert "density=0." in repr(layer)


def test_first_values_are_those_of_a_linear_layer() -> None:
    layer = SparseLinear(400, 100, random_pattern(100, 400, 0.5, seed=0))
    bound = 1 / 20
    assert 0.98 * bound < float(layer.values.abs().max()) <= bound
    assert float(layer.values.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_pattern_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a pattern of shape \[24, 40\], not \[40, 24\]"):
        SparseLinear(40, 24, random_pattern(40, 24, 0.4, seed=0))
    with pytest.raises(TypeError, match="must be a SparsityPattern"):
        SparseLinear(40, 24, torch.ones(24, 40, dtype=torch.bool))  # type: ignore[arg-type]


def test_a_state_of_another_mask_is_refused_and_changes_nothing() -> None:
    one = layer_of()
    other = SparseLinear(40, 24, other_mask_of_equal_count(one.pattern))
    assert other.values.shape == one.values.shape
    before = other.values.detach().clone()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="mask_bits is not the mask of this layer"):
            other.load_state_dict(one.state_dict(), strict=strict)
    assert torch.equal(other.values, before)

    state = one.state_dict()
    del state["mask_bits"]
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="values comes without mask_bits"):
            one.load_state_dict(state, strict=strict)
    with pytest.raises(RuntimeError, match=r"Missing key.*mask_bits"):
        one.load_state_dict({})
    one.load_state_dict({}, strict=False)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*scale"):
        one.load_state_dict(one.state_dict() | {"scale": torch.ones(1)})


def test_what_is_written_into_a_state_does_not_reach_the_pattern() -> None:
    layer = layer_of()
    layer.state_dict()["mask_bits"].zero_()
    assert layer.pattern.mask().any()


@pytest.mark.parametrize("assign", [False, True])
def test_saving_without_pickle(tmp_path: Path, assign: bool) -> None:
    model = nn.Sequential(layer_of(seed=1), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(5, 40)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for state in (torch.load(tmp_path / "model.pt", weights_only=True), load_file(tmp_path / "model.safetensors")):
        other = nn.Sequential(SparseLinear(40, 24, model[0].pattern), nn.ReLU(), nn.Linear(24, 3))
        other.load_state_dict(state, assign=assign)
        assert torch.equal(other(x), model(x))


def test_copies_share_the_pattern_and_nothing_else() -> None:
    layer = layer_of()
    again = copy.deepcopy(layer)
    assert again.pattern is layer.pattern
    with torch.no_grad():
        again.values.zero_()
    assert layer.values.abs().sum() > 0


def test_meta_parameters_wait_for_their_values() -> None:
    full = layer_of()
    with torch.device("meta"):
        layer = SparseLinear(40, 24, full.pattern)
    assert layer.values.is_meta and not layer.pattern.bits.is_meta
    layer.to_empty(device="cpu")
    layer.load_state_dict(full.state_dict())
    x = torch.randn(5, 40)
    assert torch.equal(layer(x), full(x))
    assert torch.equal(full.to("meta").to_empty(device="cpu").pattern.mask(), layer.pattern.mask())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_for_a_dense_layer(dtype: torch.dtype) -> None:
    layer = layer_of()
    x = torch.randn(9, 40, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = nn.functional.gelu(layer(x))
        loss = y.square().sum()
    assert y.dtype == dtype
    loss.backward()
    assert x.grad is not None and x.grad.dtype == layer.values.grad.dtype == torch.float32
    weight = layer.to_dense().requires_grad_()
    with torch.autocast("cpu", dtype):
        theirs = nn.functional.gelu(weight(x.detach()))
        theirs.square().sum().backward()
    torch.testing.assert_close(y, theirs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(layer.values.grad, weight.weight.grad[layer.pattern.mask()], rtol=5e-2, atol=5e-2)
    with torch.autocast("cpu", dtype):
        assert layer.double()(x.detach().double()).dtype == torch.float64
        assert layer.to(torch.bfloat16)(x.detach()).dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_under_autocast_and_backward_within_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    layer = layer_of()
    x = torch.randn(9, 40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.ops.spdf.spmm(x, layer.values, None, layer.pattern.handle, 24)
        y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_is_summed_in_float32(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPDF_KERNELS_BACKEND", backend)
    pattern = random_pattern(24, 3000, 0.9, seed=0)
    x = random_tensor(7, 3000, dtype=torch.float16, seed=1)
    values = random_tensor(pattern.nnz, dtype=torch.float16, seed=2)
    dy = random_tensor(7, 24, dtype=torch.float16, seed=3)
    leaves = [x.requires_grad_(), values.requires_grad_()]
    y = sparse_linear(x, values, pattern, torch.zeros(24, dtype=torch.float16))
    dx, dvalues = torch.autograd.grad(y, leaves, dy)
    assert y.dtype == dx.dtype == dvalues.dtype == torch.float16
    x, values = x.detach(), values.detach()
    for ours, exact in (
        (y.detach(), forward(x, values, pattern)),
        (dx, grad_input(dy, values, pattern)),
        (dvalues, grad_values(dy, x, pattern)),
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=2**-10, atol=2e-3)
    assert describe(pattern, torch.float16).forward == backend


def test_float64_passes_gradcheck_in_every_mode() -> None:
    pattern = random_pattern(5, 6, 0.5, seed=0)
    assert describe(pattern, torch.float64).forward == "torch"
    operands = [
        random_tensor(*shape, dtype=torch.float64, seed=seed).requires_grad_()
        for seed, shape in enumerate([(3, 6), (pattern.nnz,), (5,)])
    ]

    def product(x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return sparse_linear(x, values, pattern, bias)

    checks = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(product, operands, check_forward_ad=True, check_batched_forward_grad=True, **checks)
    assert torch.autograd.gradgradcheck(product, operands, check_fwd_over_rev=True, check_rev_over_rev=True, **checks)


def test_float64_keeps_non_finite_inputs_to_the_rows_that_keep_them_in_full_precision() -> None:
    pattern = random_pattern(24, 40, 0.4, seed=0)
    x, values = (random_tensor(*s, dtype=torch.float64, seed=1) for s in ((9, 40), (pattern.nnz,)))
    x[3, 7] = torch.inf
    y = sparse_linear(x, values, pattern)
    torch.testing.assert_close(y, forward(x, values, pattern), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "transform",
    [torch.func.jacfwd, torch.func.jacrev, torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.jacfwd(f))],
    ids=["jacfwd", "jacrev", "hessian", "jacfwd twice"],
)
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_transforms_of_torch_func(transform: Callable[..., Callable[..., torch.Tensor]], argument: int) -> None:
    pattern = random_pattern(5, 6, 0.5, seed=0)
    index = pattern.flat_index().long()
    operands = [
        random_tensor(*shape, dtype=torch.float32, seed=seed)
        for seed, shape in enumerate([(3, 6), (pattern.nnz,), (5,)])
    ]

    def derivative(product: Callable[..., torch.Tensor]) -> torch.Tensor:
        def scalars(operand: torch.Tensor) -> torch.Tensor:
            given = [*operands]
            given[argument] = operand
            return product(*given).pow(3).sum(1)

        return transform(scalars)(operands[argument])

    def dense(x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, torch.zeros(30).index_add(0, index, values).view(5, 6), bias)

    ours, theirs = derivative(lambda x, v, b: sparse_linear(x, v, pattern, b)), derivative(dense)
    assert theirs.abs().sum() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_per_sample_gradients() -> None:
    layer = layer_of()
    x = torch.randn(6, 3, 40)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(given: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, given, (sample,)).square().sum()

    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(6):
        (expected,) = torch.autograd.grad(layer(x[i]).square().sum(), layer.values)
        torch.testing.assert_close(by_sample["values"][i], expected, rtol=1e-4, atol=1e-4)


def test_forward_mode_of_the_dense_layer() -> None:
    from spdf_kernels import dense_linear

    x, weight = torch.randn(32, 40), torch.randn(24, 40)
    _, ours = torch.func.jvp(lambda w: dense_linear(x, w), (weight,), (weight,))
    torch.testing.assert_close(ours, x @ weight.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compile_without_graph_breaks() -> None:
    model = nn.Sequential(layer_of(), nn.GELU(), nn.Linear(24, 3))
    x = torch.randn(5, 40)
    ours = torch.compile(model, fullgraph=True)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected = torch.autograd.grad(model(x).float().square().sum(), list(model.parameters()))
            gradients = torch.autograd.grad(ours(x).float().square().sum(), list(model.parameters()))
        tolerance = 5e-2 if autocast else 1e-4
        for left, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    assert_close(ours(x).detach(), model(x).detach().double(), terms=64)
