"""Index sets: what is accepted, what is refused and how, and the algebra against Python's sets."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadrop.index_set import IndexSet, as_matrix_index, check_indices


@st.composite
def index_sets(draw, size=st.integers(1, 30)):
    size = draw(size)
    units = draw(st.sets(st.integers(0, size - 1), min_size=1))
    return IndexSet(sorted(units), size)


def pairs():
    return st.integers(1, 30).flatmap(
        lambda size: st.tuples(index_sets(st.just(size)), index_sets(st.just(size)))
    )


class TestCheckIndices:
    @pytest.mark.parametrize(
        "indices",
        [
            [0, 2, 5],
            (0, 2, 5),
            np.array([0, 2, 5], np.int8),
            np.array([0, 2, 5], np.uint64),
            np.array([0, 2, 5], ">i2"),
            np.array([0, 9, 2, 9, 5])[::2],
            np.array([5, 2, 0])[::-1],
            np.isin(np.arange(6), [0, 2, 5]),
            [True, False, True, False, False, True],
        ],
    )
    def test_accepts(self, indices):
        result = check_indices("rows", indices, 6)
        assert result.dtype == np.int64
        assert result.flags.c_contiguous
        assert result.flags.aligned
        np.testing.assert_array_equal(result, [0, 2, 5])

    @pytest.mark.parametrize(
        ("indices", "error", "message"),
        [
            ([[0, 1]], ValueError, r"^rows must be one-dimensional, got .* \(1, 2\)"),
            (3, ValueError, r"^rows must be one-dimensional, got .* \(\)"),
            ([], ValueError, r"^rows is empty, at least one of 6 units"),
            (np.zeros(6, bool), ValueError, r"^rows is empty, at least one of 6 units"),
            (np.ones(5, bool), ValueError, r"^rows is a boolean mask of length 5, .* 6 units"),
            (np.ones(7, bool), ValueError, r"^rows is a boolean mask of length 7, .* 6 units"),
            ([0.0, 1.0], TypeError, r"^rows must hold integers or booleans, got .* float64"),
            ([0, np.nan], TypeError, r"^rows must hold integers or booleans, got .* float64"),
            (["0", "1"], TypeError, r"^rows must hold integers or booleans, got .* <U1"),
            ([0, None], TypeError, r"^rows must hold integers or booleans, got .* object"),
            ([0, -1], ValueError, r"^rows must be in \[0, 6\), got -1 at position 1"),
            ([0, 6], ValueError, r"^rows must be in \[0, 6\), got 6 at position 1"),
            (np.array([2**63], np.uint64), ValueError, r"^rows .* got 9223372036854775808 at"),
            (np.array([-128], np.int8), ValueError, r"^rows must be in .* got -128 at"),
            ([0, 2, 2], ValueError, r"^rows must be ascending and unique, got 2 at position 1"),
            ([0, 2, 1], ValueError, r"^rows must be ascending and unique, got 2 .* by 1"),
        ],
    )
    def test_refuses(self, indices, error, message):
        with pytest.raises(error, match=message):
            check_indices("rows", indices, 6)
        with pytest.raises(error, match=message.replace("rows", "indices")):
            IndexSet(indices, 6)

    def test_small_integers_on_a_long_axis(self):
        indices = np.array([0, 100, 127], np.int8)
        np.testing.assert_array_equal(check_indices("rows", indices, 100_000), indices)


class TestIndexSet:
    def test_is_frozen(self):
        kept = IndexSet([0, 2], 4)
        for name in ("indices", "size", "is_all", "address", "other"):
            with pytest.raises(AttributeError, match=name):
                setattr(kept, name, 1)
        for name in ("indices", "size"):
            with pytest.raises(AttributeError, match=name):
                delattr(kept, name)
        with pytest.raises(ValueError, match="read-only"):
            kept.indices[0] = 1

    def test_copies_what_it_is_given(self):
        indices = np.array([0, 2])
        kept = IndexSet(indices, 4)
        indices[:] = 3
        np.testing.assert_array_equal(kept.indices, [0, 2])
        assert indices.flags.writeable

    def test_address_is_that_of_the_indices(self):
        for kept in (
            IndexSet([0, 2], 4),
            IndexSet([0, 2], 4).union(IndexSet([3], 4)),
            IndexSet([0, 2, 5, 6, 8], 9),
        ):
            assert kept.address == kept.indices.ctypes.data
            assert kept.indices.flags.c_contiguous
            assert kept.indices.dtype == np.int64
        assert IndexSet.all(3).address == IndexSet([0, 1, 2], 3).address == 0

    @given(kept=index_sets())
    def test_facts(self, kept):
        units = set(kept.indices.tolist())
        assert len(kept) == len(units)
        assert kept.is_all == (len(units) == kept.size)
        np.testing.assert_array_equal(np.flatnonzero(kept.mask()), kept.indices)
        assert kept.mask().shape == (kept.size,)
        assert IndexSet(kept.mask(), kept.size) == kept

    @given(kept=index_sets())
    def test_copies_and_pickles_are_equal(self, kept):
        for other in (copy.copy(kept), copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
            assert other == kept
            assert hash(other) == hash(kept)
            assert other.address in (0, other.indices.ctypes.data)

    @given(pair=pairs())
    def test_equality_and_hash(self, pair):
        one, other = pair
        assert (one == other) == (one.indices.tolist() == other.indices.tolist())
        if one == other:
            assert hash(one) == hash(other)
        assert one != IndexSet(one.indices, one.size + 1)
        assert one != one.indices.tolist()

    @given(pair=pairs())
    def test_union(self, pair):
        one, other = pair
        union = one.union(other)
        assert union.size == one.size
        assert union.indices.tolist() == sorted({*one.indices.tolist(), *other.indices.tolist()})

    @given(pair=pairs())
    def test_positions(self, pair):
        one, other = pair
        if {*other.indices.tolist()} <= {*one.indices.tolist()}:
            positions = one.positions_of(other)
            assert positions.size == len(one)
            np.testing.assert_array_equal(one.indices[positions.indices], other.indices)
        else:
            missing = min({*other.indices.tolist()} - {*one.indices.tolist()})
            with pytest.raises(ValueError, match=f"^unit {missing} of other is not in this set"):
                one.positions_of(other)

    @given(one=index_sets(), other=index_sets())
    def test_outer(self, one, other):
        outer = one.outer(other)
        expected = np.outer(one.mask(), other.mask()).ravel()
        assert outer == IndexSet(expected, one.size * other.size)
        assert outer.is_all == (one.is_all and other.is_all)

    @given(sets=st.lists(st.none() | index_sets(), min_size=1, max_size=4), data=st.data())
    def test_as_matrix_index(self, sets, data):
        shape = tuple(data.draw(st.integers(1, 4)) if s is None else s.size for s in sets)
        rows, cols = as_matrix_index(tuple(sets), shape)
        mask = np.zeros(shape, bool)
        mask[
            np.ix_(
                *(
                    np.arange(n) if s is None else s.indices
                    for s, n in zip(sets, shape, strict=True)
                )
            )
        ] = True
        matrix = mask.reshape(-1, shape[-1])
        found = np.zeros_like(matrix)
        found[
            np.ix_(
                *(
                    np.arange(n) if s is None else s.indices
                    for s, n in zip((rows, cols), matrix.shape, strict=True)
                )
            )
        ] = True
        np.testing.assert_array_equal(found, matrix)

    def test_sets_of_different_axes_do_not_mix(self):
        for method in (IndexSet([0], 3).union, IndexSet([0], 3).positions_of):
            with pytest.raises(ValueError, match=r"^other is a set of 4 units, this axis has 3"):
                method(IndexSet([0], 4))

    @pytest.mark.parametrize("size", [0, -1])
    def test_an_axis_without_units_has_no_set(self, size):
        with pytest.raises(ValueError, match=f"^size must be at least 1, got {size}"):
            IndexSet.all(size)

    @pytest.mark.parametrize("size", [2.5, 3.0, "3", None])
    def test_size_is_an_integer(self, size):
        with pytest.raises(TypeError, match=r"^size must be an integer, got"):
            IndexSet.all(size)
        with pytest.raises(TypeError, match=r"^size must be an integer, got"):
            IndexSet([0, 1], size)

    def test_size_may_be_a_numpy_integer(self):
        assert IndexSet.all(np.int32(5)) == IndexSet([0, 1, 2, 3, 4], np.uint8(5))
        assert type(IndexSet.all(np.int32(5)).size) is int

    def test_repr_makes_it_again_or_is_short(self):
        assert repr(IndexSet.all(4)) == "IndexSet.all(4)"
        assert len(repr(IndexSet(np.arange(0, 10_000, 3), 10_000))) < 80


def test_a_block_as_one_of_a_matrix():
    one, two = IndexSet([1], 3), IndexSet([0, 2], 4)
    assert as_matrix_index((), (2, 3, 4)) == (None, None)
    assert as_matrix_index((two,), (4,)) == (None, two)
    assert as_matrix_index((one, two), (3, 4)) == (one, two)
    assert as_matrix_index((None, None, two), (2, 3, 4)) == (None, two)
    assert as_matrix_index((None, one, None), (2, 3, 4)) == (IndexSet([1, 4], 6), None)
