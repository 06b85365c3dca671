"""Embedded text: Python's language reference (real), and documents of a small grammar with a probe of word order."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, islice
from pydoc_data.topics import topics
from random import Random

import numpy as np

from d2v_pretrain.rng import fold_in
from datamodules.probe import Labelled, Split

TOPICS = 8
_ZIPF = 1.5


class SyntheticText:
    """Two kinds of pretraining text, and a probe on documents of the second kind that are not in it.

    In the grammar, article, adjective and noun agree in number, and so do verb and subject; all sentences of a
    document run subject-verb-object or all object-verb-subject, which only the agreement tells.

    Args:
        documents: grammar documents to pretrain on, 3 to 6 sentences each.
        train, test: labelled documents of the probe.
        seed: of the data, not of the run.
    """

    def __init__(self, documents: int, train: int, test: int, seed: int) -> None:
        self.documents, self.train, self.test = documents, train, test
        self.grammar = Grammar(seed)

    def texts(self) -> Iterator[str]:
        """Paragraphs of the reference, then documents of the grammar."""
        for name in sorted(topics):
            yield from (" ".join(part.split()) for part in topics[name].split("\n\n") if part.strip())
        yield from (self.grammar.document(i)[0] for i in range(self.documents))

    def describe(self) -> str:
        """One line for the log."""
        real = f"Python's language reference (real, {len(topics)} topics)"
        return f"{real} and a synthetic grammar ({self.documents:,} documents, none of the probe's)"

    def labelled(self) -> list[Labelled[str]]:
        """Word order, and the topic as a check of sanity (words alone tell it)."""
        first = [self.grammar.document(self.documents + i) for i in range(self.train)]
        second = [self.grammar.document(self.documents + self.train + i) for i in range(self.test)]
        note = "grammar documents that are not in the pretraining text"
        order = Labelled("order", _split(first, 1), _split(second, 1), 2, f"S-V-O or O-V-S; {note}")
        return [order, Labelled("topic", _split(first, 2), _split(second, 2), TOPICS, f"a check of sanity; {note}")]


def _split(documents: list[tuple[str, int, int]], field: int) -> Split[str]:
    return Split(lambda i: documents[i][0], np.array([document[field] for document in documents]))


class Grammar:
    """A lexicon of pseudo-words, and documents in it; both are functions of the seed and the document's index."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        words = _words(Random(fold_in(seed, 0)))
        nouns, verbs, self.adjectives = (list(islice(words, n)) for n in (50, 24, 60))
        # Shared words come after a topic's own, so that Zipf's law makes the own ones frequent
        self.nouns = [list(islice(words, 20)) + nouns for _ in range(TOPICS)]
        self.verbs = [list(islice(words, 8)) + verbs for _ in range(TOPICS)]

    def document(self, index: int) -> tuple[str, int, int]:
        """The text, its order (0 subject first, 1 object first) and its topic."""
        rng = Random(fold_in(self.seed, 1, index))
        order, topic = int(rng.random() * 2), int(rng.random() * TOPICS)
        count = 3 + int(rng.random() * 4)
        return " ".join(self._sentence(rng, order, topic) for _ in range(count)), order, topic

    def _sentence(self, rng: Random, order: int, topic: int) -> str:
        plural = rng.random() < 0.5
        subject, other = self._phrase(rng, topic, plural), self._phrase(rng, topic, rng.random() < 0.5)
        # 's and 're are tokens of their own in GPT-2's pre-tokenizer: the ending can be masked and predicted
        verb = _zipf(rng, self.verbs[topic]) + ("'re" if plural else "'s")
        parts = [other, verb, subject] if order else [subject, verb, other]
        if rng.random() < 0.3:
            parts.append("pe " + self._phrase(rng, topic, rng.random() < 0.5))
        return " ".join(parts) + "."

    def _phrase(self, rng: Random, topic: int, plural: bool) -> str:
        ending = "n" if plural else ""
        words = ["tos" if plural else "ta"]
        if rng.random() < 0.4:
            words.append(_zipf(rng, self.adjectives) + ending)
        return " ".join([*words, _zipf(rng, self.nouns[topic]) + ending])


def _words(rng: Random) -> Iterator[str]:
    """Different words of two or three syllables, endlessly."""
    seen: set[str] = set()
    while True:
        syllables = ("bdfgklmnprsvz"[int(rng.random() * 13)] + "aeiou"[int(rng.random() * 5)] for _ in range(3))
        word = "".join(syllables)[: 4 + 2 * int(rng.random() * 2)]
        if word not in seen:
            seen.add(word)
            yield word


@cache
def _weights(n: int) -> list[float]:
    return list(accumulate((i + 1) ** -_ZIPF for i in range(n)))


def _zipf(rng: Random, words: list[str]) -> str:
    """One word, the n-th with a probability proportional to n^-1.5."""
    weights = _weights(len(words))
    return words[bisect(weights, rng.random() * weights[-1])]
