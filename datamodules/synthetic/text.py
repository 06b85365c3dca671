"""SyntheticText: Python's language reference, and documents of a small grammar with a probe."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, islice
from pydoc_data.topics import topics
from random import Random

import numpy as np

from d2v_pretrain.rng import fold_in
from datamodules.datasets.base import TextDataset
from datamodules.datasets.probe_tasks import Labelled, Split

TOPICS = 4
# Fewest and most sentences of a document: in pretraining so long that most blocks of 64 tokens lie
# in one document, in the probe so short that a document fits a block.
_LONG, _SHORT = (40, 40), (3, 5)


class SyntheticText(TextDataset):
    """Python's language reference, and documents of a synthetic grammar. The probe has other
    documents of this grammar.

    In the grammar, article, adjective and noun agree in number, and so do verb and subject.
    Subjects are persons; objects, and nouns after "pe", are things. The sentences of a document are
    all subject-verb-object, or all object-verb-subject. The words that occur never tell which; only
    which of them come before the verb does.

    Args:
        documents: grammar documents to pretrain on, 40 sentences each.
        train, test: labelled documents of the probe.
        seed: of the data, not of the run.
    """

    def __init__(self, documents: int, train: int, test: int, seed: int) -> None:
        self.documents, self.train, self.test = documents, train, test
        self.grammar = Grammar(seed)

    def texts(self) -> Iterator[str]:
        """Paragraphs of the reference, then documents of the grammar."""
        for name in sorted(topics):
            yield from (
                " ".join(part.split()) for part in topics[name].split("\n\n") if part.strip()
            )
        yield from (self.grammar.document(i, _LONG)[0] for i in range(self.documents))

    def describe(self) -> str:
        real = f"Python's language reference (real, {len(topics)} topics)"
        return f"{real} and a synthetic grammar ({self.documents:,} documents, none of the probe's)"

    def labelled(self) -> list[Labelled[str]]:
        """Two classifications: by word order, and as a sanity check by topic, which single words
        tell."""
        first = [self.grammar.document(self.documents + i, _SHORT) for i in range(self.train)]
        after = self.documents + self.train
        second = [self.grammar.document(after + i, _SHORT) for i in range(self.test)]
        note = "grammar documents that are not in the pretraining text"
        order, topic = f"S-V-O or O-V-S; {note}", f"a check of sanity; {note}"
        return [
            Labelled("order", _split(first, 1), _split(second, 1), 2, order),
            Labelled("topic", _split(first, 2), _split(second, 2), TOPICS, topic),
        ]


def _split(documents: list[tuple[str, int, int]], field: int) -> Split[str]:
    return Split(lambda i: documents[i][0], np.array([document[field] for document in documents]))


class Grammar:
    """A lexicon of pseudo-words, a function of the seed, and documents of it by number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        words = _words(Random(fold_in(seed, 0)))
        people, verbs, self.adjectives = (list(islice(words, n)) for n in (24, 16, 20))
        # Zipf's law makes the first words frequent: a topic's own come before the shared ones.
        self.people = [list(islice(words, 6)) + people for _ in range(TOPICS)]
        things = list(islice(words, 24))
        self.things = [list(islice(words, 6)) + things for _ in range(TOPICS)]
        self.verbs = [list(islice(words, 4)) + verbs for _ in range(TOPICS)]

    def document(self, index: int, sentences: tuple[int, int]) -> tuple[str, int, int]:
        """A document.

        Args:
            index: of the document.
            sentences: smallest and largest number of sentences.

        Returns:
            The text, its order (0 subject first, 1 object first) and its topic.
        """
        rng = Random(fold_in(self.seed, 1, index))
        order, topic = int(rng.random() * 2), int(rng.random() * TOPICS)
        least, most = sentences
        count = least + int(rng.random() * (most - least + 1))
        return " ".join(self._sentence(rng, order, topic) for _ in range(count)), order, topic

    def _sentence(self, rng: Random, order: int, topic: int) -> str:
        people, things = self.people[topic], self.things[topic]
        plural = rng.random() >= 0.5
        subject = self._phrase(rng, people, plural)
        other = self._phrase(rng, things, rng.random() >= 0.5)
        # 's and 're are tokens of their own in GPT-2's pre-tokenizer, so that the ending can be
        # masked and predicted.
        verb = _zipf(rng, self.verbs[topic]) + ("'re" if plural else "'s")
        parts = [other, verb, subject] if order else [subject, verb, other]
        if rng.random() < 0.3:
            parts.append("pe " + self._phrase(rng, things, rng.random() >= 0.5))
        return " ".join(parts) + "."

    def _phrase(self, rng: Random, nouns: list[str], plural: bool) -> str:
        ending = "n" if plural else ""
        words = ["tos" if plural else "ta"]
        if rng.random() < 0.3:
            words.append(_zipf(rng, self.adjectives) + ending)
        return " ".join([*words, _zipf(rng, nouns) + ending])


def _words(rng: Random) -> Iterator[str]:
    """Different words of two or three syllables, endlessly."""
    seen: set[str] = set()
    while True:
        syllables = (
            "bdfgklmnprsvz"[int(rng.random() * 13)] + "aeiou"[int(rng.random() * 5)]
            for _ in range(3)
        )
        word = "".join(syllables)[: 4 + 2 * int(rng.random() * 2)]
        if word not in seen:
            seen.add(word)
            yield word


@cache
def _weights(n: int) -> list[float]:
    return list(accumulate(1 / (i + 1) for i in range(n)))


def _zipf(rng: Random, words: list[str]) -> str:
    """One word, the n-th with a probability proportional to 1 / n."""
    weights = _weights(len(words))
    return words[bisect(weights, rng.random() * weights[-1])]
