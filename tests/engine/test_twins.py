"""Copies that nobody can tell from their originals."""

from __future__ import annotations

import torch

from kdbench.engine.twins import Twins


def test_a_twin_has_values_strides_and_offset_of_its_own_memory() -> None:
    base = torch.arange(48.0).reshape(2, 3, 2, 4)
    for tensor in (
        base,
        base.contiguous(memory_format=torch.channels_last),
        base[:, 1:, :, ::2],
        base.transpose(1, 3),
        base[0, 0, 0, 0],
        base.to(torch.bfloat16)[1],
        torch.arange(5)[2:],
        torch.zeros(0, 3),
    ):
        twin = Twins()(tensor)
        assert torch.equal(twin, tensor)
        assert (twin.stride(), twin.storage_offset()) == (tensor.stride(), tensor.storage_offset())
        assert twin.dtype is tensor.dtype
        before = tensor.clone()
        twin.zero_()
        assert torch.equal(tensor, before)


def test_what_shares_memory_shares_it_in_the_copies() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    twin = Twins()
    whole, part, other = twin(base), twin(base[1]), Twins()(base[1])
    part.fill_(-1.0)
    assert whole[1].eq(-1.0).all()
    assert torch.equal(other, base[1])
    assert base[1, 0] == 4.0
