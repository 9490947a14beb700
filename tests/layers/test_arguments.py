import pytest

from tfrec_diffusion.layers.arguments import (
    check_choice,
    check_not_negative,
    check_positive_integers,
    choose,
)


def test_right_arguments_pass():
    check_positive_integers(length=1, heads=8)
    check_not_negative(weight=0, rate=0.5)
    check_choice("start", "matched", ("uniform", "matched"))
    assert choose("sampler", "ddim", {"ddim": 1, "ddpm": 2}) == 1


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None])
def test_the_wrong_one_is_named(value):
    with pytest.raises(ValueError, match=f"`heads` must be a positive .* heads={value!r}"):
        check_positive_integers(length=3, heads=value)


@pytest.mark.parametrize("value", [-1e-9, float("nan"), "1", None])
def test_negative_numbers_are_named(value):
    with pytest.raises(ValueError, match=f"`weight` must be >= 0. Received: weight={value!r}"):
        check_not_negative(weight=value)


def test_the_choices_are_named():
    with pytest.raises(ValueError, match=r"`start` must be one of \['a', 'b'\]\. .*start='c'"):
        choose("start", "c", {"b": 1, "a": 2})
