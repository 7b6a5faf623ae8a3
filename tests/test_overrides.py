"""Settings are checked against the dataclass that has them, and all that is wrong is one error."""

from dataclasses import dataclass, field

import pytest

from agp.overrides import from_file, override


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 3
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = "x"
    last: int | None = None
    packed: bool = True
    data: dict[str, str] = field(default_factory=dict)
    fit: Inner = Inner()


def test_text_takes_the_type_of_the_setting():
    made = override(Settings(), ["name=3", "last=4", "packed=false", "fit.rate=1", "data.a=/x/y=z"])
    assert made == Settings(name="3", last=4, packed=False, data={"a": "/x/y=z"}, fit=Inner(rate=1.0))
    assert override(made, ["last=none"]).last is None


def test_a_file_holds_the_same(tmp_path):
    (tmp_path / "a.toml").write_text('last = 2\n[data]\na = "x"\n[fit]\nrate = 1\n')
    assert from_file(Settings(), tmp_path / "a.toml") == Settings(last=2, data={"a": "x"}, fit=Inner(rate=1.0))


WRONG = {
    "nosuch=1": "no setting nosuch; it has name, last, packed, data, fit",
    "fit.stepz=1": "no setting fit.stepz; did you mean fit.steps? fit has steps, rate",
    "rate=1": "no setting rate; did you mean fit.rate? it has name, last, packed, data, fit",
    "data=x": "data is 'x'; data.NAME=value is needed",
    "last=1.5": "last is '1.5'; a whole number or none is needed",
    "packed=maybe": "packed is 'maybe'; true or false is needed",
    "fit=3": "fit is '3'; an object by name is needed",
    "fit.steps=ten": "fit.steps is 'ten'; a whole number is needed",
    "last": "'last' is no name=value",
}


@pytest.mark.parametrize("pair", WRONG)
def test_what_makes_no_sense_is_refused(pair):
    with pytest.raises(ValueError) as refused:
        override(Settings(), [pair])
    assert str(refused.value) == WRONG[pair]


def test_all_of_it_is_one_error():
    with pytest.raises(ValueError) as refused:
        override(Settings(), list(WRONG))
    assert str(refused.value).count(";") >= len(WRONG)


def test_a_file_with_a_wrong_type_or_none_at_all(tmp_path):
    (tmp_path / "a.toml").write_text('last = "2x"\nname = 3\n')
    with pytest.raises(ValueError, match="last is '2x'; .*name is 3; text is needed"):
        from_file(Settings(), tmp_path / "a.toml")
    with pytest.raises(ValueError, match="no TOML file"):
        from_file(Settings(), tmp_path / "b.toml")
