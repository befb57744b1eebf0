"""Sketches: error bounds, merges that equal unions, and bytes that are the same in any order and any pieces."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_core.hashing import hash_rows, hash_strings
from analytics_core.sketches import HistogramSketch, UniqueSketch

NUMBERS = st.lists(
    st.floats(-1e12, 1e12) | st.sampled_from([0.0, 1e-9, -1e-9, 1e-300, 1e300, -1e300, 0.1, 8589934592.5])
)
PINNED = ["0000000000000000", "0c6eb88c173615ee", "6f75b51b83c9372f", "4c72f7ee492f6d34"]
SIZES = st.sampled_from([0, 1, 300, 512, 513, 2048, 2500])


def unique(hashes: np.ndarray) -> UniqueSketch:
    sketch = UniqueSketch()
    sketch.add(hashes)
    return sketch


def histogram(values: list[float]) -> HistogramSketch:
    sketch = HistogramSketch()
    sketch.add(values)
    return sketch


def hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


# --- hashing ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=40) | st.none(), max_size=30), st.integers(0, 2**63))
def test_every_form_of_the_same_strings_hashes_alike(words: list[str | None], seed: int) -> None:
    plain = [word or "" for word in words]
    expected = hash_strings(plain, seed).tolist()
    column = pa.array(words, pa.string())
    assert hash_strings([word.encode() for word in plain], seed).tolist() == expected
    assert hash_strings(column, seed).tolist() == expected
    assert hash_strings(column.dictionary_encode(), seed).tolist() == expected
    assert hash_strings(pa.array(["x", *words], pa.string())[1:], seed).tolist() == expected
    assert hash_strings(column.cast(pa.large_string()), seed).tolist() == expected
    assert [int(hash_strings([word], seed)[0]) for word in plain] == expected


def test_hashes_are_the_same_everywhere_for_ever() -> None:
    """Stored sketches hold them: another value here loses every stored count."""
    found = [f"{value:016x}" for value in hash_strings(["", "a", "user-1", "a longer id than eight bytes"]).tolist()]
    assert found == PINNED


def test_hashes_differ_by_seed_length_and_padding() -> None:
    assert hash_strings(["a"], 1)[0] != hash_strings(["a"], 2)[0]
    assert hash_strings(["a"])[0] != hash_strings(["a\0"])[0]
    assert len(set(hash_strings([f"user{n}" for n in range(100_000)]).tolist())) == 100_000


def test_every_bit_of_the_hash_is_used() -> None:
    bits = np.unpackbits(hash_strings([f"u{n}" for n in range(20_000)]).view(np.uint8).reshape(-1, 8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02


def test_the_hash_of_a_string_does_not_depend_on_those_beside_it() -> None:
    """Of one length or of many, and more than are hashed at a time."""
    lengths = np.random.default_rng(1).integers(0, 40, 20_000)
    many = [f"{n:x}" * 8 for n in range(20_000)]
    for words in ([word[:length] for word, length in zip(many, lengths, strict=True)], [w[-8:] for w in many]):
        found = hash_strings(pa.array(words))
        for at in (0, 1, 8_190, 8_191, 8_192, 8_193, 16_383, 16_384, 19_999):
            assert found[at] == hash_strings([words[at]])[0]
        assert found.tolist() == [*hash_strings(words[:7]).tolist(), *hash_strings(pa.array(words)[7:]).tolist()]


def test_hash_rows_takes_rows_of_one_length() -> None:
    matrix = np.frombuffer(b"user-1user-2", np.uint8).reshape(2, 6)
    assert hash_rows(matrix).tolist() == hash_strings(["user-1", "user-2"]).tolist()


# --- unique ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 511, 512])
def test_small_counts_are_exact(n: int) -> None:
    sketch = unique(np.concatenate([hashes(n), hashes(n)]))
    assert sketch.estimate() == n
    assert len(sketch.to_bytes()) == 8 * n + 1


@pytest.mark.parametrize("n", [513, 1_000, 5_000, 10_000, 20_000, 200_000, 1_000_000])
def test_large_counts_are_within_four_standard_errors(n: int) -> None:
    errors = [unique(hashes(n, seed)).estimate() / n - 1 for seed in range(8)]
    assert np.abs(errors).max() < 4 * 1.04 / math.sqrt(4096)
    assert abs(np.mean(errors)) < 4 * 1.04 / math.sqrt(4096 * len(errors))


def test_strings_are_counted_as_well_as_random_hashes() -> None:
    sketch = unique(hash_strings([f"user_{n:06d}" for n in range(100_000)]))
    assert sketch.estimate() == pytest.approx(100_000, rel=0.05)


def test_the_ends_of_the_range_of_hashes_are_counted() -> None:
    extremes = np.array([0, 2**64 - 1, 1, 1 << 52, (1 << 52) - 1], np.uint64)
    sketch = unique(np.concatenate([hashes(600), extremes]))
    registers = np.frombuffer(sketch.to_bytes(), np.uint8, offset=1)
    assert registers[0] == 53, "52 zeros and one more"
    assert sketch.estimate() == pytest.approx(605, rel=0.06)


@given(st.lists(st.tuples(SIZES, st.integers(0, 3)), max_size=5), st.randoms())
@settings(deadline=None, max_examples=60)
def test_a_merge_is_the_union_in_any_order_and_pieces(parts: list[tuple[int, int]], order: object) -> None:
    pieces = [hashes(n, seed) for n, seed in parts]
    everything = np.concatenate([np.empty(0, np.uint64), *pieces])
    whole = unique(everything)
    order.shuffle(pieces)  # type: ignore[attr-defined]
    merged, added = UniqueSketch(), UniqueSketch()
    for piece in pieces:
        other = unique(piece)
        before = other.to_bytes()
        merged.merge(other)
        assert other.to_bytes() == before
        added.add(piece)
    assert whole.to_bytes() == merged.to_bytes() == added.to_bytes()


@pytest.mark.parametrize("n", [0, 5, 512, 513, 50_000])
def test_a_unique_sketch_survives_bytes_and_goes_on(n: int) -> None:
    sketch = UniqueSketch.from_bytes(unique(hashes(n)).to_bytes())
    assert sketch.to_bytes() == unique(hashes(n)).to_bytes()
    sketch.add(hashes(700, 9))
    assert sketch.to_bytes() == unique(np.concatenate([hashes(n), hashes(700, 9)])).to_bytes()


@pytest.mark.parametrize("data", [b"", b"X", b"R123", b"E1234567"])
def test_what_is_no_unique_sketch_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a unique sketch"):
        UniqueSketch.from_bytes(data)


# --- histogram -------------------------------------------------------------------------------------------------------


@given(NUMBERS.filter(bool), st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 1.0]))
@settings(deadline=None)
def test_quantiles_are_within_one_per_cent(values: list[float], q: float) -> None:
    sketch = histogram(values)
    exact = float(np.sort(values)[int(q * (len(values) - 1))])
    assert abs(sketch.quantile(q) - exact) <= 0.01 * abs(exact) * (1 + 1e-9) + 1e-9
    assert (sketch.low, sketch.high, sketch.count) == (min(values), max(values), len(values))


@given(st.lists(NUMBERS, max_size=4), st.randoms())
@settings(deadline=None)
def test_histograms_merge_to_the_same_bytes_in_any_order_and_pieces(parts: list[list[float]], order: object) -> None:
    whole = histogram([value for part in parts for value in part])
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged, added = HistogramSketch(), HistogramSketch()
    for part in parts:
        merged.merge(HistogramSketch.from_bytes(histogram(part).to_bytes()))
        for value in part:
            added.add([value])
    assert whole.to_bytes() == merged.to_bytes() == added.to_bytes()
    assert merged.total == whole.total


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_the_total_is_exact_to_the_billionth(values: list[float]) -> None:
    sketch = histogram(values)
    assert sketch.total == pytest.approx(math.fsum(values), abs=1e-9 * len(values), rel=1e-15)
    assert sketch.mean == sketch.total / len(values)


def test_totals_beyond_the_range_of_floats_are_infinite_and_do_not_fail() -> None:
    assert histogram([1.7e308, 1.7e308]).total == math.inf
    assert histogram([-1.7e308, -1.7e308]).total == -math.inf


def test_values_that_are_not_finite_are_left_out() -> None:
    sketch = histogram([math.nan, math.inf, -math.inf, 2.0])
    assert (sketch.count, sketch.total, sketch.quantile(0.5)) == (1, 2.0, 2.0)


def test_an_empty_histogram_has_no_value() -> None:
    sketch = histogram([])
    assert math.isnan(sketch.quantile(0.5))
    assert math.isnan(sketch.mean)
    assert HistogramSketch.from_bytes(sketch.to_bytes()).to_bytes() == sketch.to_bytes()


def test_buckets_grow_with_the_logarithm_of_the_range_only() -> None:
    assert len(histogram((10 ** np.random.default_rng(1).uniform(-3, 6, 100_000)).tolist()).to_bytes()) < 8_000


@pytest.mark.parametrize("data", [b"", b"\x01", b"R123"])
def test_what_is_no_histogram_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a histogram sketch"):
        HistogramSketch.from_bytes(data)
