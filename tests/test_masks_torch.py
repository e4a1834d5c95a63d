"""The torch masks are the NumPy masks, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import pytest
import torch

from fl_darex.masks import BLOCK, keep_threshold, on_torch, survivors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
KEYS = [0, 5, 0x7E0A39886D826C1C, 2**63, 2**64 - 1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("numel", [0, 1, 899, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_torch_draws_the_same_positions(device, p, numel):
    kept = keep_threshold(p)
    for key in KEYS:
        drawn = on_torch.survivors(key, numel, kept, device)
        assert (drawn.dtype, drawn.device.type) == (torch.int64, device)
        assert drawn.tolist() == survivors(key, numel, kept).tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_torch_draws_on_where_the_first_draws_do_not_reach_the_end(device):
    kept = keep_threshold(0.999)
    again = 0
    for key in range(1500):
        expected = survivors(key, 899, kept)
        again += expected.size >= 4  # four draws are made at first
        assert on_torch.survivors(key, 899, kept, device).tolist() == expected.tolist()
    assert again >= 5


def test_the_number_of_threads_does_not_matter():
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            drawn.append(on_torch.survivors(7, 5 * BLOCK, keep_threshold(0.9), "cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*drawn)


def test_a_drawing_in_many_parts_is_the_same(monkeypatch):
    kept = keep_threshold(0.9)
    whole = on_torch.survivors(3, 5 * BLOCK + 9, kept, "cpu")
    monkeypatch.setattr(on_torch, "_AT_ONCE", 1)
    assert torch.equal(on_torch.survivors(3, 5 * BLOCK + 9, kept, "cpu"), whole)


def test_torchs_global_generator_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    on_torch.survivors(3, 1000, keep_threshold(0.9), "cpu")
    assert torch.equal(torch.get_rng_state(), before)
