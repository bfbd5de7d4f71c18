"""Batches: every row once an epoch, one bucket a batch, fixed by seed and step alone."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixsigma.data.batching import BucketBatches, epoch_order
from pixsigma.errors import InputError


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """Buckets of the rows, a batch size that all of them fill, a seed."""
    batch = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(batch, 25), min_size=1, max_size=5))
    rows = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    order = draw(st.permutations(rows))
    return torch.tensor(order), batch, draw(st.integers(0, 2**31))


@given(data_sets(), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_every_row_comes_once_an_epoch_and_leftovers_open_the_next(
    data: tuple[torch.Tensor, int, int], epochs: int
) -> None:
    buckets, batch, seed = data
    batches = BucketBatches(buckets, batch, seed)
    streams: dict[int, list[int]] = {}
    for step in range(batches.steps_before(epochs)):
        rows = batches.rows(step).tolist()
        assert len(rows) == batch
        (bucket,) = set(buckets[rows].tolist())
        streams.setdefault(bucket, []).extend(rows)
    for bucket, stream in streams.items():
        members = (buckets == bucket).nonzero()[:, 0].tolist()
        size = len(members)
        assert epochs * size - len(stream) < batch
        for first in range(0, len(stream) - size + 1, size):
            assert sorted(stream[first : first + size]) == members
        counts = Counter(stream)
        assert max(counts.values()) - min(counts[m] for m in members) <= 1


@given(data_sets(), st.data())
@settings(deadline=None, max_examples=60)
def test_a_batch_depends_on_seed_and_step_alone(
    data: tuple[torch.Tensor, int, int], more: st.DataObject
) -> None:
    buckets, batch, seed = data
    read = BucketBatches(buckets, batch, seed)
    step = more.draw(st.integers(0, read.steps_before(5)))
    for before in range(max(0, step - 7), step):
        read.rows(before)
    resumed = BucketBatches(buckets, batch, seed)
    assert torch.equal(read.rows(step), resumed.rows(step))
    epoch = read.epoch_of(step)
    assert read.steps_before(epoch) <= step < read.steps_before(epoch + 1)


@given(data_sets(), st.integers(1, 3), st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_ranks_share_the_batch_of_one_process(
    data: tuple[torch.Tensor, int, int], world: int, step: int
) -> None:
    buckets, batch, seed = data
    buckets = buckets.repeat(world)
    alone = BucketBatches(buckets, batch * world, seed).rows(step)
    ranks = [
        BucketBatches(buckets, batch * world, seed, rank=rank, world=world).rows(step)
        for rank in range(world)
    ]
    assert torch.equal(torch.cat(ranks), alone)
    assert {len(rows) for rows in ranks} == {batch}


def test_one_bucket_is_read_in_the_order_of_its_permutations() -> None:
    batches = BucketBatches(torch.zeros(7, dtype=torch.int64), 3, seed=5)
    read = torch.cat([batches.rows(step) for step in range(7)])
    assert torch.equal(read, torch.cat([epoch_order(7, epoch, 5) for epoch in range(3)]))


def test_buckets_are_mixed_within_an_epoch_and_epochs_differ() -> None:
    buckets = torch.arange(3).repeat_interleave(40)
    batches = BucketBatches(buckets, 4, seed=0)
    epochs = [
        [int(buckets[batches.rows(step)[0]]) for step in range(first, first + 30)]
        for first in (0, 30)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_other_seeds_give_other_batches() -> None:
    buckets = torch.zeros(50, dtype=torch.int64)
    a, b = (BucketBatches(buckets, 10, seed).rows(0) for seed in (0, 1))
    assert not torch.equal(a, b)


def test_what_cannot_be_batched_is_told() -> None:
    buckets = torch.tensor([0, 0, 0, 0, 1])
    with pytest.raises(InputError, match=r"smallest of 2 has 1.*--min-bucket 2"):
        BucketBatches(buckets, 2, seed=0)
    with pytest.raises(InputError, match="multiple of 3"):
        BucketBatches(buckets[:4], 4, seed=0, rank=0, world=3)
    with pytest.raises(InputError, match="has 0"):
        BucketBatches(buckets[:0], 1, seed=0)
