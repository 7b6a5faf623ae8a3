"""What followed the same ending before; seen to fail where the shortest ending decides, or drafts are learned from."""

from agp.lookup import Lookup, common, endings

A, B, C, D, E = range(5)


def test_the_longest_ending_decides_and_the_newest_of_its_like():
    lookup = Lookup(longest=3, least=1)
    assert lookup([[A, B, C, D, B, C, E, B, C]], [[]], 1) == [[E]]
    assert lookup([[A, B, C, D, B, C, E, B, C, A, B, C]], [[]], 2) == [[D, B]]


def test_it_goes_on_from_drafts_and_does_not_learn_from_them():
    lookup = Lookup(least=2)
    text = [A, B, C, A, B]
    assert lookup([text], [[]], 4) == [[C, A, B, C]]
    assert lookup([text], [[D]], 4) == [[]]
    assert lookup([[*text, C, D, E]], [[]], 4) == [[]], "nothing ever followed C, D, E"
    assert lookup([[*text, C, D, E]], [[A, B]], 2) == [[C, D]]


def test_what_is_known_of_other_texts_stands_behind_its_own():
    known = common([[A, B, C], [A, B, C], [A, B, D], [D, E, A]])
    assert known == {(A, B): C}, "seen twice and in most cases"
    lookup = Lookup(known)
    assert lookup([[D, A, B]], [[]], 3) == [[C]]
    assert Lookup(known)([[A, B, D, A, B]], [[]], 1) == [[D]]


def test_rows_are_apart_and_may_leave_and_come():
    lookup = Lookup(least=1)
    one, two = [A, B, A], [A, C, A]
    assert lookup([one, two], [[], []], 1) == [[B], [C]]
    lookup.keep([1])
    assert lookup([[*two, D, A]], [[]], 1) == [[D]]
    assert lookup([[*two, D, A], one], [[], []], 1) == [[D], [B]]
    lookup.keep([1, 2, 0])  # the third has come and was not met yet
    assert lookup([one, [A, E, A], [*two, D, A]], [[], [], []], 1) == [[B], [E], [D]]


def test_no_more_than_asked_for():
    assert Lookup(least=1)([[A] * 9], [[]], 3) == [[A] * 3]
    assert Lookup(least=1)([[A] * 9], [[]], 0) == [[]]
    assert endings([A, B, C], 2) == [(A, B, C), (B, C)]
