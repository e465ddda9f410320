from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alexdeploy.errors import InputError, UsageError
from alexdeploy.recipe import load_contract, load_recipe, parse_recipe, with_train_options
from alexdeploy.zoo.registry import NETWORKS, build_network

MODELS = Path(__file__).resolve().parents[2] / "models"
TEXT = """\
[network]
name = "alexnet-mnist"
lrn = false

[preprocess]
color = "gray"
crop = 28
mean = [0.5]
std = [0.25]

[train]
epochs = 3
batch_size = 16
learning_rate = 1
"""


def test_every_network_has_a_recipe_and_every_recipe_a_network() -> None:
    assert {path.parent.name for path in MODELS.glob("*/recipe.toml")} == set(NETWORKS)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_recipe_of_a_network_names_it_and_feeds_it(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.network.name == name
    assert recipe.preprocess.labels == ()
    with torch.device("meta"):
        assert build_network(recipe.network, 7)(torch.zeros(2, *recipe.preprocess.input_shape)).shape == (2, 7)


def test_a_recipe_file_is_read_with_defaults_for_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert (recipe.network.lrn, recipe.network.dropout) == (False, 0.5)
    assert (recipe.preprocess.resize, recipe.preprocess.std) == (None, (0.25,))
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.train.optimizer) == (3, 1.0, "adam")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "epochs",
            "epochz",
            r"unknown key 'epochz' in section \[train\]; did you mean 'epochs'\? valid: epochs, batch",
        ),
        ("lrn", "lnr", r"unknown key 'lnr' in section \[network\]; did you mean 'lrn'\? valid: name, lrn, dropout"),
        ("crop", "corp", r"unknown key 'corp' in section \[preprocess\]; did you mean 'crop'\?"),
        ("[train]", "[trian]", r"unknown key 'trian' in the recipe; did you mean 'train'\? valid: network, preprocess"),
        ("lrn = false", "zzz = 1", r"unknown key 'zzz' in section \[network\]; valid: name"),
        ("epochs = 3", 'epochs = "3"', r"int.*str.*train\.epochs"),
        ('"gray"', '"grey"', r"grey.*preprocess\.color"),
        ("[0.5]", "[0.5, 0.5]", "mean and std need 1 values each"),
        (TEXT[TEXT.index("[train]") :], "", "field 'train'"),
        ("alexnet-mnist", "alexnet-mnits", r"unknown network 'alexnet-mnits'; did you mean 'alexnet-mnist'\?"),
        ("[network]", "[network", "not a TOML file"),
    ],
)
def test_a_faulty_recipe_is_refused_with_its_origin_and_the_cure(old: str, new: str, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^mine.toml: .*{complaint}"):
        parse_recipe(TEXT.replace(old, new, 1).encode(), "mine.toml")


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-16-le"])
def test_a_recipe_that_is_not_utf8_is_refused_with_the_cure(encoding: str) -> None:
    with pytest.raises(InputError, match=r"^mine.toml: its text is not UTF-8; save it as UTF-8$"):
        parse_recipe(f"# 花\n{TEXT}".encode(encoding) if encoding == "gbk" else TEXT.encode(encoding), "mine.toml")


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_recipe(str(tmp_path / "mine.toml")) == parse_recipe(TEXT.encode(), "mine.toml")
    assert load_contract(str(tmp_path / "mine.toml")).crop == 28


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("train", "epochs = 0"),
        ("train", "batch_size = 0"),
        ("train", "learning_rate = 0"),
        ("train", "learning_rate = nan"),
        ("train", "learning_rate = inf"),
        ("train", "weight_decay = inf"),
        ("train", "momentum = -1"),
        ("train", "weight_decay = -1"),
        ("network", "dropout = 1.5"),
        ("preprocess", "crop = 0"),
        ("preprocess", "resize = 0"),
    ],
)
def test_a_value_out_of_range_is_refused_when_the_recipe_is_read(section: str, line: str) -> None:
    key = line.split()[0]
    kept = [given for given in TEXT.splitlines() if not given.startswith(key)]
    kept.insert(kept.index(f"[{section}]") + 1, line)
    with pytest.raises(InputError, match=key):
        parse_recipe("\n".join(kept).encode(), "mine.toml")


def test_a_misspelt_network_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown network 'alexnet-haf'; did you mean 'alexnet-half'"):
        load_recipe("alexnet-haf")


def test_a_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml: no such recipe file.*alexnet-half"):
        load_recipe(str(tmp_path / "absent.toml"))


def test_given_training_options_replace_those_of_the_recipe() -> None:
    recipe = load_recipe("alexnet")
    changed = with_train_options(recipe, epochs=2, learning_rate=None, batch_size=5)
    assert (changed.train.epochs, changed.train.batch_size) == (2, 5)
    assert changed.train.learning_rate == recipe.train.learning_rate
    assert (changed.network, changed.preprocess) == (recipe.network, recipe.preprocess)
    assert recipe == load_recipe("alexnet")


@pytest.mark.parametrize("option", [{"epochs": 0}, {"batch_size": -1}, {"learning_rate": float("nan")}])
def test_a_training_option_out_of_range_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        with_train_options(load_recipe("alexnet"), **option)


def test_a_value_that_is_none_of_the_valid_ones_is_told_with_those() -> None:
    text = b'[preprocess]\ncrop = 32\ncolor = "RGB"\nmean = [0.5]\nstd = [0.5]\n'
    with pytest.raises(InputError, match=r"'RGB' \(preprocess\.color\); valid: \"rgb\", \"bgr\", \"gray\"$"):
        parse_recipe(text, "mine.toml")
