"""From an annotation to an example: every rule, every kind of bad input, and what survives the way to disk and back."""

import numpy as np
import pytest

from revision_jax.config import ConfigError
from revision_jax.data.datasets.rules import Rules, normalise
from revision_jax.data.datasets.schema import Annotation, Example, Problem, check


def annotation(**changes):
    values = {"video_id": "v", "duration_s": 100.0, "query_id": "q", "query": "A dog runs.", "moments": [[10.0, 20.0]]}
    return Annotation(where="file:7", **{**values, **changes})


def test_an_annotation_becomes_an_example():
    example = check(annotation(video_id=12, query_id=5, category="c", source_id="s", offset_s=3), Rules(), "train")
    assert (example.video_id, example.query_id, example.kind, example.split, example.offset_s) == ("12", "5", "one", "train", 3.0)
    assert example.moments.dtype == np.float32 and example.spans == ((10.0, 20.0),)
    assert check(annotation(moments=[[1, 2], [5, 9]]), Rules(), "train").kind == "several"
    absent = check(annotation(moments=[]), Rules(), "test")
    assert absent.kind == "absent" and absent.moments.shape == (0, 2) and absent.spans == ()
    assert check(annotation(moments=(), kind="near_miss"), Rules(), "test").kind == "near_miss"


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"moments": None}, "no_moment", "has no moment"),
        ({"moments": [[20.0, 10.0]]}, "reversed_moment", r"moment 1 [20, 10] must begin before it ends"),
        ({"moments": [[1, 2], [10.0, 10.0]]}, "reversed_moment", "moment 2"),
        ({"moments": [[10.0, 10.0 + 1e-9]]}, "reversed_moment", "too short"),
        ({"moments": [[90.0, 100.5]]}, "outside_moment", "must lie inside the video's 100 s"),
        ({"moments": [[-0.5, 10.0]]}, "outside_moment", "must lie inside"),
        ({"moments": [[float("nan"), 10.0]]}, "malformed", "two numbers"),
        ({"moments": [[1.0, float("inf")]]}, "malformed", "two numbers"),
        ({"moments": [[1.0, 10**400]]}, "malformed", "two numbers"),
        ({"moments": [[1.0, 2.0, 3.0]]}, "malformed", "two numbers"),
        ({"moments": [5]}, "malformed", "two numbers"),
        ({"moments": {"start": 1}}, "malformed", "must be a list"),
        ({"moments": "1 to 2"}, "malformed", "must be a list"),
        ({"moments": ["ab"]}, "malformed", "two numbers"),
        ({"moments": [["1", "2"]]}, "malformed", "two numbers"),
        ({"moments": [[True, 2.0]]}, "malformed", "two numbers"),
        ({"query": " \n "}, "empty_query", "empty"),
        ({"query": None}, "empty_query", "empty"),
        ({"query": 5}, "malformed", "query must be text"),
        ({"query": "half \ud800 of it"}, "not_utf8", "surrogate"),
        ({"video_id": ""}, "malformed", "video_id"),
        ({"video_id": None}, "malformed", "video_id"),
        ({"query_id": 1.5}, "malformed", "query_id"),
        ({"duration_s": 0}, "duration", "above 0"),
        ({"duration_s": "100"}, "duration", "'100'"),
        ({"duration_s": float("nan")}, "duration", "nan"),
        ({"offset_s": "x"}, "malformed", "offset_s"),
        ({"kind": "absent"}, "kind", "is 'absent' and has 1 moments"),
        ({"kind": "one", "moments": []}, "kind", "has 0 moments"),
        ({"kind": "maybe"}, "kind", "maybe"),
        ({"kind": ["one"]}, "kind", "['one'] is not one of"),
        ({"category": None}, "malformed", "category"),
    ],
)
def test_what_is_wrong_is_an_error_that_says_where(changes, reason, says):
    found = check(annotation(**changes), Rules(), "train")
    assert isinstance(found, Problem) and found.reason == reason and not found.filtered
    assert str(found).startswith("file:7: ") and says in str(found)


def test_rules_turn_errors_into_filters_and_repairs():
    def of(rules, **changes):
        found = check(annotation(**changes), rules, "train")
        return found.spans if isinstance(found, Example) else (found.reason, found.filtered)

    assert of(Rules(no_moment="drop"), moments=None) == ("no_moment", True)
    assert of(Rules(empty_query="drop"), query="") == ("empty_query", True)
    assert of(Rules(reversed_moment="drop"), moments=[[20, 10]]) == ("reversed_moment", True)
    assert of(Rules(reversed_moment="swap"), moments=[[20, 10]]) == ((10.0, 20.0),)
    assert of(Rules(reversed_moment="swap"), moments=[[20, 20]]) == ("reversed_moment", True)
    assert of(Rules(outside_moment="drop"), moments=[[90, 101]]) == ("outside_moment", True)
    assert of(Rules(outside_moment="clip"), moments=[[-5, 10], [90, 101]]) == ((0.0, 10.0), (90.0, 100.0))
    assert of(Rules(outside_moment="clip"), moments=[[100, 110]]) == ("outside_moment", True)
    assert of(Rules(slack_s=1.0), moments=[[90, 101]]) == ((90.0, 100.0),)
    assert of(Rules(slack_s=1.0), moments=[[90, 101.5]]) == ("outside_moment", False)
    assert of(Rules(slack_s=1.0), moments=[[100.2, 100.8]]) == ("outside_moment", False)
    assert of(Rules(longest_share=0.9), moments=[[5, 95]]) == ("longest_share", True)
    assert of(Rules(longest_share=0.9), moments=[[5, 94]]) == ((5.0, 94.0),)
    assert of(Rules(), moments=[[0, 100]]) == ((0.0, 100.0),)
    # with one of its moments gone, a query would be asked about windows that show it: the whole query goes
    assert of(Rules(reversed_moment="drop"), moments=[[1, 2], [20, 10]]) == ("reversed_moment", True)


def test_rounding_to_float32_never_puts_a_moment_outside():
    duration = 32400.0000001
    example = check(annotation(duration_s=duration, moments=[[0.1, duration]]), Rules(), "train")
    assert example.moments[0, 1] <= np.float32(example.duration_s) and example.duration_s == float(np.float32(duration))


def test_text():
    decomposed, said = "Cafe\u0301  opens\n again. ", "Caf\u00e9 opens again."
    assert normalise(decomposed, Rules()) == said
    assert normalise(decomposed, Rules(nfc=False, collapse_blanks=False)) == decomposed
    assert normalise(decomposed, Rules(lowercase=True, ending="bare")) == "caf\u00e9 opens again"
    assert normalise("Who is there??", Rules(ending="question")) == "Who is there?" and normalise("There", Rules(ending="question")) == "There?"
    assert normalise("?", Rules(ending="question")) == normalise(" . ", Rules(ending="bare")) == normalise("\u3000", Rules(collapse_blanks=False)) == ""
    assert normalise("什么时候?", Rules()) == "什么时候?"


@pytest.mark.parametrize(("changes", "says"), [({"splits": ()}, "splits"), ({"slack_s": -1.0}, "slack_s"), ({"longest_share": 0.0}, "longest_share")])
def test_rules_that_make_no_sense(changes, says):
    with pytest.raises(ConfigError, match=says):
        Rules(**changes)


def test_a_record_comes_back_as_the_example():
    example = check(annotation(query="Ça va?"), Rules(), "train")
    stored = {name: value.encode() if isinstance(value, str) else value for name, value in example.record().items()}
    back = Example.of(stored)
    assert back.query == "Ça va?" and back.split == "train" and back.duration_s == 100.0
    np.testing.assert_array_equal(back.moments, example.moments)
