import threading

import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from edgeclean.compression.tucker import full_ranks, singular_values, tucker2

SHAPES = [(8, 6, 3, 3), (6, 8, 3, 3), (16, 3, 1, 5), (64, 3, 3, 3), (3, 40, 2, 2), (12, 7, 1, 1)]


def random_kernel(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def steep_kernel(shape, seed=0):
    """Singular values that fall, as those of trained kernels do."""
    kernel = random_kernel(shape, seed)
    out = torch.logspace(0, -1.5, shape[0], dtype=torch.float64)
    channels_in = torch.logspace(0, -1.5, shape[1], dtype=torch.float64)
    return kernel * out[:, None, None, None] * channels_in[None, :, None, None]


def relative_error(kernel, tucker):
    return float((kernel - tucker.kernel()).norm() / kernel.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_kernel(shape):
    kernel = random_kernel(shape)
    tucker = tucker2(kernel)
    assert tucker.ranks == full_ranks(kernel)
    torch.testing.assert_close(tucker.kernel(), kernel, rtol=0, atol=1e-12)


def test_full_rank_is_exact_where_the_kernel_is_rank_deficient():
    kernel = random_kernel((12, 5, 3, 3))
    kernel[:, 2:] = kernel[:, :3]
    torch.testing.assert_close(tucker2(kernel).kernel(), kernel, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_the_unfoldings(shape):
    kernel = random_kernel(shape)
    found_out, found_in = singular_values(kernel, 1), singular_values(kernel, 2)
    out = torch.linalg.svdvals(kernel.flatten(1))
    channels_in = torch.linalg.svdvals(kernel.transpose(0, 1).flatten(1))
    torch.testing.assert_close(found_out, out, rtol=0, atol=1e-7 * float(out[0]))
    torch.testing.assert_close(found_in, channels_in, rtol=0, atol=1e-7 * float(channels_in[0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_slice_norms_of_the_core_are_the_singular_values(shape):
    kernel = random_kernel(shape)
    tucker = tucker2(kernel)
    torch.testing.assert_close(
        tucker.core.flatten(1).norm(dim=1), singular_values(kernel, 1), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        tucker.core.transpose(0, 1).flatten(1).norm(dim=1),
        singular_values(kernel, 2),
        rtol=0,
        atol=1e-7,
    )


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 12), channels_in=st.integers(1, 12), kh=st.integers(1, 3),
    kw=st.integers(1, 3), seed=st.integers(0, 1000), choice=st.data(),
)  # fmt: skip
def test_error_is_at_most_the_discarded_energy(out, channels_in, kh, kw, seed, choice):
    kernel = random_kernel((out, channels_in, kh, kw), seed)
    full_out, full_in = full_ranks(kernel)
    rank_out = choice.draw(st.integers(1, full_out))
    rank_in = choice.draw(st.integers(1, full_in))
    whole = tucker2(kernel)
    cut = whole.truncated(rank_out, rank_in)
    squared_error = float((kernel - cut.kernel()).square().sum())
    discarded = float(
        singular_values(kernel, 1)[rank_out:].square().sum()
        + singular_values(kernel, 2)[rank_in:].square().sum()
    )
    assert squared_error <= discarded + 1e-12 * float(kernel.square().sum())
    kept = float(cut.core.square().sum())
    assert squared_error == pytest.approx(float(kernel.square().sum()) - kept, abs=1e-9)


@pytest.mark.parametrize("shape", [(32, 24, 3, 3), (16, 48, 1, 1), (24, 8, 5, 5)])
@pytest.mark.parametrize("make", [random_kernel, steep_kernel])
def test_two_sweeps_come_within_one_percent_of_partial_tucker(shape, make):
    kernel = make(shape)
    ranks = tuple(rank // 2 for rank in full_ranks(kernel))
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(kernel, rank=list(ranks), modes=[0, 1])
        rebuilt = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    reference = float((kernel - rebuilt).norm() / kernel.norm())
    errors = [relative_error(kernel, tucker2(kernel, ranks, sweeps=n)) for n in (0, 1, 2)]
    assert errors[2] <= 1.01 * reference
    assert errors[2] <= errors[1] + 1e-12
    assert errors[1] <= errors[0] + 1e-12


def test_ranks_without_sweeps_are_the_leading_part():
    kernel = random_kernel((9, 7, 3, 3))
    cut, direct = tucker2(kernel).truncated(4, 5), tucker2(kernel, (4, 5))
    torch.testing.assert_close(direct.core, cut.core, rtol=0, atol=1e-12)
    torch.testing.assert_close(direct.factor_in, cut.factor_in, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_orthonormal_with_a_positive_largest_entry(shape):
    tucker = tucker2(random_kernel(shape))
    for factor in (tucker.factor_out, tucker.factor_in):
        identity = torch.eye(factor.shape[1], dtype=factor.dtype)
        torch.testing.assert_close(factor.T @ factor, identity, rtol=0, atol=1e-12)
        assert bool((factor.max(dim=0).values >= -factor.min(dim=0).values).all())


def test_negated_kernel_has_the_same_factors():
    kernel = random_kernel((8, 6, 3, 3))
    there, back = tucker2(kernel), tucker2(-kernel)
    torch.testing.assert_close(there.factor_out, back.factor_out, rtol=0, atol=1e-12)
    torch.testing.assert_close(there.core, -back.core, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_computed_in_double_precision(shape):
    kernel = random_kernel(shape, dtype=torch.float32)
    single, double = tucker2(kernel), tucker2(kernel.double())
    assert torch.equal(single.core, double.core.float())
    assert torch.equal(single.factor_in, double.factor_in.float())


def test_single_precision_keeps_its_type():
    kernel = random_kernel((8, 6, 3, 3), dtype=torch.float32)
    tucker = tucker2(kernel)
    assert tucker.core.dtype == tucker.factor_in.dtype == torch.float32
    assert relative_error(kernel, tucker) < 1e-6


def test_tensorly_keeps_its_backend():
    before = tensorly.get_backend()
    tucker2(random_kernel((4, 4, 3, 3))).kernel()
    assert tensorly.get_backend() == before


def test_another_thread_keeps_its_backend_meanwhile(monkeypatch):
    seen = []

    def ask_from_another_thread(*arguments):
        other = threading.Thread(target=lambda: seen.append(tensorly.get_backend()))
        other.start()
        other.join()
        return unfold(*arguments)

    unfold, before = tensorly.unfold, tensorly.get_backend()
    monkeypatch.setattr(tensorly, "unfold", ask_from_another_thread)
    tucker2(random_kernel((4, 4, 3, 3)))
    assert seen == [before, before]


def test_ranks_that_do_not_fit_are_refused():
    kernel = random_kernel((8, 6, 3, 3))
    with pytest.raises(ValueError, match=r"ranks \(9, 3\).*between \(1, 1\) and \(8, 6\)"):
        tucker2(kernel, (9, 3))
    with pytest.raises(ValueError, match=r"ranks \(0, 3\) do not fit a core of ranks \(8, 6\)"):
        tucker2(kernel).truncated(0, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_kernels_that_are_not_finite_are_refused(bad):
    kernel = random_kernel((4, 4, 3, 3))
    kernel[1, 2, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        tucker2(kernel)
