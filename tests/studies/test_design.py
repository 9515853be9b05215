"""A factorial in a few lines is the study that has it written out."""

from itertools import product

import pytest

from prismatic.studies.design import written_out

NORMS = {"pre": [], "post": ["model.norm_placement=post"]}
RATES = {"rate 1": ["optim.lr=1"], "rate 2": ["optim.lr=2"]}
VIEWS = {"": ["router=dense"], "views": ["focal=none", "perturbation.scale=0.8"]}


def node(**parts):
    design = {"norm": NORMS, "views": VIEWS, "rate": RATES}
    tiers = {"smoke": {"seeds": 2}}
    return {"arms": {"extra": ["seed=3"]}, "designs": [design], "tiers": tiers, **parts}


def test_a_factorial_has_an_arm_for_each_combination():
    arms = written_out(node())["arms"]
    assert arms["extra"] == ["seed=3"] and len(arms) == 1 + 2 * 2 * 2
    for levels in product(NORMS, VIEWS, RATES):
        norm, views, rate = levels
        expected = NORMS[norm] + VIEWS[views] + RATES[rate]
        assert arms[", ".join(filter(None, levels))] == expected


def test_arms_of_two_designs_stand_beside_each_other():
    both = node(designs=[{"norm": NORMS}, {"rate": RATES}])
    assert list(written_out(both)["arms"]) == ["extra", "pre", "post", "rate 1", "rate 2"]


def test_a_pattern_in_a_list_stands_for_its_arms_in_their_order():
    of = ["post, rate *", "extra", "pre, views, rate 2", "post, rate 1"]
    whole = written_out(node(claims={"a": {"of": of}}, tiers={"cpu": {"arms": ["pre, rate ?"]}}))
    expected = ["extra", "pre, views, rate 2", "post, rate 1", "post, rate 2"]
    assert whole["claims"]["a"]["of"] == expected
    assert whole["tiers"]["cpu"]["arms"] == ["pre, rate 1", "pre, rate 2"]


def test_a_pattern_as_a_key_stands_for_an_entry_each():
    contrasts = {"*, views, rate 1": {"extra": 1, "{arm}": -1}, "own": {"pre, rate 1": 1}}
    pairs = {"pre, rate [12]": ["{arm}", "extra"]}
    claims = written_out(node(claims={"a": {"contrasts": contrasts, "of": pairs}}))["claims"]
    assert claims["a"]["contrasts"] == {
        "pre, views, rate 1": {"extra": 1, "pre, views, rate 1": -1},
        "post, views, rate 1": {"extra": 1, "post, views, rate 1": -1},
        "own": {"pre, rate 1": 1},
    }
    assert claims["a"]["of"] == {
        "pre, rate 1": ["pre, rate 1", "extra"],
        "pre, rate 2": ["pre, rate 2", "extra"],
    }


def test_what_is_no_arm_is_left_as_it_is():
    tiers = {"cpu": {"seeds": 10, "overrides": ["data.files=[*.py]"], "arms": None}}
    claims = {"a": {"says": "a * b?", "measures": ["loss/val"], "offset": 0.5}}
    measures = {"routing/*": "all of it"}
    given = node(claims=claims, tiers=tiers, measures=measures)
    whole = written_out(given)
    assert [whole[key] for key in ("claims", "tiers", "measures")] == [claims, tiers, measures]
    assert "designs" in given and "designs" not in whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"designs": [{"norm": NORMS}, {"norm": NORMS}]}, "arm='pre' is not valid: it is"),
        (
            {"claims": {"a": {"of": ["QK, *"]}}},
            "pattern='QK, \\*' is not valid: it matches none",
        ),
        ({"figures": {"a": {"of": ["pre, *", "pst"]}}}, "arm beside a pattern='pst' is not valid"),
        ({"designs": [{"a": VIEWS, "b": VIEWS}]}, "arm='views' is not valid: it is declared twice"),
        ({"claims": {"a": {"*, rate 1": 1, "pre, *": 2}}}, "name='pre, [a-z, ]*rate 1' is not"),
        ({"designs": {"norm": NORMS}}, "designs={.*} is not valid: give a list: designs: "),
        ({"designs": [{"norm": ["pre", "post"]}]}, r"factor norm=\['pre', 'post'\] is not valid"),
        ({"designs": [{"norm": {}}]}, "factor norm={} is not valid: give a mapping, as in"),
        ({"designs": [{"norm": {"pre": None}}]}, "level 'pre' of norm=None is not valid: give a"),
        ({"designs": [{"norm": {"pre": "a=1"}}]}, "level 'pre' of norm='a=1' is not valid"),
        ({"designs": [{"norm": {"pre": [{"a": 1}]}}]}, "arm pre=.* is not valid: give a list of"),
        ({"arms": {"dense": "router=dense"}}, "arm dense='router=dense' is not valid: give a list"),
        ({"arms": ["dense"]}, r"arms=\['dense'\] is not valid: give a mapping"),
        ({"tiers": {"cpu": 10}}, "tier cpu=10 is not valid: give a mapping, as in tiers: "),
    ],
)
def test_a_name_that_fits_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        written_out(node(**changes))
