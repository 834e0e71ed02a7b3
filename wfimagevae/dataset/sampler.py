"""Which data positions a rank reads."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class PositionSampler(Sampler[list[int]]):
    """Endless batches of data positions, shared out among ranks without gaps or repeats.

    From p on, rank r of W takes ``p + r B ... p + (r + 1) B``, then p grows by ``W B``. So at
    every step the ranks together read the next ``W B`` positions, whatever W is.
    """

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
        if start < 0:
            raise ValueError(f"the first position must be 0 or more, got {start}")
        self.batch_size, self.rank, self.world_size, self.start = (
            batch_size,
            rank,
            world_size,
            start,
        )

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size
