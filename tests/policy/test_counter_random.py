"""The counter generator equals its definition and is uniform."""

import torch

from reinforge.policy.counter_random import mix, stream_key, uniform

WRAP = (1 << 64) - 1


def splitmix64(seed: int, counter: int) -> int:
    """The published algorithm, in plain integers."""
    x = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & WRAP
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WRAP
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WRAP
    return x ^ (x >> 31)


def test_equals_splitmix64():
    keys = torch.tensor([stream_key("test", i) for i in range(50)])
    for counter in (0, 1, 2**20):
        expected = [splitmix64(int(key) & WRAP, counter) for key in keys]
        assert [int(x) & WRAP for x in mix(keys, counter)] == expected


def test_uniform_fills_the_unit_interval_evenly():
    numbers = uniform(torch.tensor(stream_key(3)), torch.arange(100_000))
    counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8  # 99.9 % quantile at 19 degrees of freedom; the stream is fixed, so this never flakes
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_neighbouring_streams_are_unrelated():
    keys = torch.tensor([stream_key(0, g) for g in range(1000)])
    pairs = torch.stack([uniform(keys, 0), uniform(keys, 1)])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.1
