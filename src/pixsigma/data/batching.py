"""Which rows make which batch: a pure function of seed and step, so that nothing need be saved.

The rows of a bucket form an endless stream: a permutation of the bucket for each epoch, one after
the other. Batches cut that stream, so none mixes buckets, and what is left at the end of an epoch
opens the bucket's first batch in the next: no row is lost, and after any number of epochs no row
was read twice as often as it should be or skipped. An epoch holds the batches that its rows
complete, the buckets in random order.
"""

from functools import lru_cache

import torch
from torch import Tensor

from pixsigma.errors import InputError


class BucketBatches:
    """Batches of rows that share a bucket, for one rank of a run."""

    def __init__(
        self, buckets: Tensor, batch_size: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        """`buckets` (M,) int64 is each row's bucket; `batch_size` counts the rows of all ranks.

        All ranks read one bucket in one step, an equal part each. Raises InputError for a batch
        that does not divide among the ranks, or that is larger than a bucket.
        """
        if batch_size % world or not 0 <= rank < world:
            raise InputError(
                f"a batch must divide among the processes: {batch_size} rows, rank {rank} of "
                f"{world}; make batch_size a multiple of {world}"
            )
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.members = [(buckets == b).nonzero()[:, 0] for b in buckets.unique().tolist()]
        self.sizes = [len(rows) for rows in self.members]
        if not self.sizes or min(self.sizes) < batch_size:
            smallest = min(self.sizes, default=0)
            raise InputError(
                f"every bucket needs at least batch_size = {batch_size} pictures, the smallest of "
                f"{len(self.sizes)} has {smallest}; lower batch_size, or prepare the data with "
                f"--min-bucket {batch_size}"
            )
        # a run asks for neighbours: this epoch's order, and streams across its border
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._stream = lru_cache(maxsize=2 * len(self.sizes))(self._draw_stream)

    def steps_before(self, epoch: int) -> int:
        """How many batches all epochs before this one hold."""
        return sum(epoch * size // self.batch_size for size in self.sizes)

    def epoch_of(self, step: int) -> int:
        """The epoch that this step belongs to."""
        low, high = 0, 1
        while self.steps_before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.steps_before(middle) <= step else (low, middle)
        return low

    def rows(self, step: int) -> Tensor:
        """The rows (batch_size / world,) int64 that this rank reads in this step, from 0 on."""
        epoch = self.epoch_of(step)
        labels, counts = self._order(epoch)
        place = step - self.steps_before(epoch)
        bucket = int(labels[place])
        number = epoch * self.sizes[bucket] // self.batch_size + int(counts[place])
        share = self.batch_size // self.world
        first = number * self.batch_size + self.rank * share
        return torch.stack([self._at(bucket, index) for index in range(first, first + share)])

    def _at(self, bucket: int, index: int) -> Tensor:
        epoch, place = divmod(index, self.sizes[bucket])
        return self._stream(bucket, epoch)[place]

    def _draw_stream(self, bucket: int, epoch: int) -> Tensor:
        """The rows of a bucket in an epoch's order."""
        order = epoch_order(self.sizes[bucket], epoch, self.seed + 7919 * bucket)
        return self.members[bucket][order]

    def _draw_order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Bucket of every batch of an epoch, and how many of that bucket came before it."""
        ends = [(epoch + 1) * size // self.batch_size for size in self.sizes]
        starts = [epoch * size // self.batch_size for size in self.sizes]
        numbers = torch.tensor([end - start for start, end in zip(starts, ends, strict=True)])
        labels = torch.arange(len(numbers)).repeat_interleave(numbers)
        labels = labels[epoch_order(len(labels), epoch, self.seed + 1)]
        counts = torch.zeros_like(labels)
        for bucket, number in enumerate(numbers.tolist()):
            counts[labels == bucket] = torch.arange(number)
        return labels, counts


def epoch_order(num_rows: int, epoch: int, seed: int) -> Tensor:
    """A permutation fixed by seed and epoch, so that a resumed run reads on where it stopped."""
    rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=rng)
