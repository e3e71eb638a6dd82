"""Where two outputs part: by token within one vocabulary, by character across two."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from playground.bench.compare.alignment import align, common_length
from tests.bench.compare.records import OTHER, TEXT, output

FOX = output(TEXT, ["Once ", "there was ", "a fox. ", "You ", "are"])
CLOSE = output(OTHER, ["Once ", "there was ", "a fox. ", "Close ", "your"])


def test_texts_part_at_the_first_token_that_differs() -> None:
    found = align(FOX, CLOSE, same_vocabulary=True)
    assert found["common"] == 3 and not found["identical"] and found["unit"] == "token"
    spans = [o["text"][a:b] for o, a, b in zip((FOX, CLOSE), found["at"], found["until"], strict=True)]
    assert spans == ["You ", "Close "]


def test_equal_texts_are_identical() -> None:
    found = align(FOX, dict(FOX), same_vocabulary=True)
    assert found["identical"] and found["common"] == 5


def test_a_text_that_goes_on_parts_where_the_other_ended() -> None:
    short = output("Once there was ", ["Once ", "there was "])
    found = align(FOX, short, same_vocabulary=True)
    assert (found["common"], found["identical"]) == (2, False)
    assert found["at"] == [15, 15] and found["until"] == [22, 15]  # the second one has nothing there


def test_other_vocabularies_are_held_against_each_other_by_character() -> None:
    split = output(TEXT, list(TEXT), first_id=500)
    assert align(FOX, split, same_vocabulary=False)["identical"]
    found = align(FOX, output(OTHER, [OTHER]), same_vocabulary=False)
    assert found["unit"] == "character" and found["common"] == len("Once there was a fox. ")


def test_half_a_character_counts_as_the_character_that_it_becomes() -> None:
    one: dict[str, Any] = {"token_ids": [1, 2, 3], "ends": [1, 1, 2], "text": "aé"}
    two: dict[str, Any] = {"token_ids": [1, 5], "ends": [1, 2], "text": "ab"}
    found = align(one, two, same_vocabulary=True)
    assert found["at"] == [1, 1] and found["until"] == [2, 2]


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_common_part_is_the_longest_equal_beginning(start: list[int], one: list[int], two: list[int]) -> None:
    a, b = [*start, *one], [*start, *two]
    common = common_length(a, b)
    assert common >= len(start) and a[:common] == b[:common]
    assert common in (len(a), len(b)) or a[common] != b[common]
