"""Both languages say the same things, and every word that the code asks for is there."""

import re
from pathlib import Path
from string import Formatter

import pytest

from normscope.report import words
from normscope.terms.errors import UnknownNameError

ENGLISH, CHINESE = words.load("en").table, words.load("zh").table
SOURCES = [path.read_text() for path in Path(words.__file__).parents[1].rglob("*.py")]


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(sentence) if name}


def test_both_languages_have_the_same_keys():
    assert ENGLISH.keys() == CHINESE.keys()


@pytest.mark.parametrize("key", ENGLISH)
def test_a_sentence_has_the_same_blanks_in_both_languages(key):
    assert fields(ENGLISH[key]) >= fields(CHINESE[key])
    assert fields(ENGLISH[key]) - fields(CHINESE[key]) <= {"n"}  # "one" has no number in English either


def test_every_word_that_is_asked_for_is_there():
    asked = {key for text in SOURCES for key in re.findall(r'words\(\s*"([\w./]+)"', text)}
    asked |= {key for text in SOURCES for key in re.findall(r'left_out\(.*"([\w.]+)"\)', text)}
    counted = {key for text in SOURCES for key in re.findall(r'counted\(\s*"([\w.]+)"', text)}
    assert len(asked) > 50
    assert asked | {f"{key}.{end}" for key in counted for end in ("one", "many")} <= ENGLISH.keys()


def test_every_word_is_asked_for():
    text = "".join(SOURCES)
    families = (
        *(
            "quantity.",
            "unit.",
            "event.",
            "meta.",
            "ailment.",
            "arm.",
            "measure.",
            "tensor.",
            "trial.means.",
            "verdict.",
        ),
        *("severity.", "missing.", "saturates.", "cure.", "link."),
    )
    said = {
        key
        for key in ENGLISH
        if f'"{key}"' in text or f'"{key.rpartition(".")[0]}"' in text or key.startswith(families)
    }
    assert said == ENGLISH.keys()


def test_chinese_is_chinese():
    latin = {key for key, sentence in CHINESE.items() if not re.search("[\u3000-\uffef]", sentence)}
    assert all(
        CHINESE[key] == ENGLISH[key] for key in latin if re.search("[a-z]{2}", re.sub(r"{\w+}", "", CHINESE[key]))
    )


def test_an_unknown_language_is_refused():
    with pytest.raises(UnknownNameError) as error:
        words.load("de")
    assert str(error.value) == (
        "A report was asked for in a language that it does not speak.\n"
        "  found    lang='de'\n"
        "  because  every sentence of the page is written by hand in each language\n"
        "  do       choose 'en' or 'zh'"
    )
