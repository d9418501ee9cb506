"""The facts file: what it may say, and that everything else is refused by name."""

from __future__ import annotations

import json

import pytest

from roast_export import InputError
from roast_export.facts import LayerFacts, read_facts

TOML = """
[defaults]
seed = 1024
draw_bits = 64

[layers."encoder.*"]
scale = 1
coefficients = [1, 2, 3, 4]

[layers."encoder.0"]
scale = 0.5
"""


def test_later_patterns_win_over_earlier_ones_and_defaults(tmp_path):
    (tmp_path / "facts.toml").write_text(TOML)
    facts = read_facts(tmp_path / "facts.toml")
    assert facts.of("encoder.0") == LayerFacts(seed=1024, draw_bits=64, scale=0.5, coefficients=(1, 2, 3, 4))
    assert facts.of("encoder.1").scale == 1.0
    assert facts.of("head") == LayerFacts(seed=1024, draw_bits=64)


def test_json_says_the_same(tmp_path):
    content = {"defaults": {"seed": 7}, "layers": {"a": {"tile": [32, 64], "dense": True}}}
    (tmp_path / "facts.json").write_text(json.dumps(content))
    assert read_facts(tmp_path / "facts.json") == read_facts(content)
    assert read_facts(content).of("a") == LayerFacts(seed=7, tile=(32, 64), dense=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer": {}}, "unknown table 'layer'"),
        ({"layers": []}, "'layers' must be a table"),
        ({"layers": {"a": 3}}, "must be a table of facts"),
        ({"defaults": {"scales": 1}}, "unknown fact 'scales'; known are scale"),
        ({"defaults": {"scale": "1"}}, "scale = '1' must be float"),
        ({"defaults": {"seed": 1.5}}, "seed = 1.5 must be int"),
        ({"defaults": {"seed": True}}, "seed = True must be int"),
        ({"defaults": {"dense": 1}}, "dense = 1 must be bool"),
        ({"defaults": {"tile": [1, 2, 3]}}, "must be a list of 2 integers"),
        ({"defaults": {"random_numbers": [1 << 63] * 4}}, "must be a list of 4 or 8 integers"),
        ({"defaults": {"kind": "roast_mem"}}, "must be one of random, hashednet"),
        ({"defaults": {"draw_bits": 16}}, "must be one of 32, 64"),
    ],
)
def test_a_wrong_fact_is_refused_by_name(content, message):
    with pytest.raises(InputError) as refusal:
        read_facts(content)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("name", "text"), [("a.toml", "= 3"), ("a.json", "{"), ("b.json", "[]")])
def test_a_damaged_file_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_facts(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_facts(tmp_path / "none.toml")


def test_a_misspelt_layer_is_refused():
    with pytest.raises(InputError, match=r"no compressed layer is called 'encodr\.\*'; there are encoder\.0"):
        read_facts({"layers": {"encodr.*": {"scale": 1}}}).check_names(["encoder.0"])
