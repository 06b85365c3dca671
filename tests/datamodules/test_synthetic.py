"""The embedded data: a function of (seed, item) alone, split without overlap, and as hard as it is
said to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from d2v_pretrain.types import ProbeTask
from datamodules.synthetic.audio import SEEN, SyntheticAudio
from datamodules.synthetic.text import TOPICS, SyntheticText
from datamodules.synthetic.vision import SyntheticVision
from datamodules.synthetic.voices import SPEAKERS, WORDS, Voices
from datamodules.transforms.audio import AudioTransform
from datamodules.transforms.text import TextTransform


def baseline_accuracy(task: ProbeTask) -> float:
    """Logistic regression on the raw features, by scikit-learn."""
    (x, y), (test_x, test_y) = (
        (
            torch.cat([task.raw_baseline(b) for b in part]).numpy(),
            torch.cat([b.labels for b in part]).numpy(),
        )
        for part in (task.train, task.test)
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(x, y)
    return model.score(test_x, test_y)


def test_audio_items_do_not_depend_on_how_many_there_are() -> None:
    few, many = SyntheticAudio(3, 0, seed=0), SyntheticAudio(6, 0, seed=0)
    assert all(np.array_equal(few.read(i), many.read(i)) for i in range(3))
    assert not np.array_equal(SyntheticAudio(3, 0, seed=1).read(0), few.read(0))
    assert few.lengths.tolist() == [len(few.read(i)) for i in range(3)]


def test_words_of_a_pair_have_the_same_phones() -> None:
    assert all(
        sorted(a) == sorted(b) and a != b for a, b in zip(WORDS[::2], WORDS[1::2], strict=True)
    )


def test_probe_speakers_are_unseen() -> None:
    voices = Voices(0)
    task = SyntheticAudio(1, 300, seed=0).labelled()[0]
    speakers = np.array([voices.word(i)[2] for i in range(300)])
    assert len(task.train) == (speakers < SEEN).sum() and len(task.test) == (speakers >= SEEN).sum()
    assert set(speakers) == set(range(SPEAKERS))


def test_audio_is_sound_at_the_pitch_of_its_speaker() -> None:
    voices = Voices(0)
    for speaker in (int(voices.pitch.argmin()), int(voices.pitch.argmax())):
        wave = voices._say(np.random.default_rng(3), speaker, [0]).astype(float)
        spectrum = np.abs(np.fft.rfft(wave)) ** 2
        envelope = np.fft.irfft(spectrum)  # autocorrelation
        lag = 40 + int(envelope[40:250].argmax())
        assert 16_000 / lag == pytest.approx(voices.pitch[speaker], rel=0.15)


def test_a_bag_of_frames_cannot_tell_the_words() -> None:
    task = AudioTransform(SyntheticAudio(1, 900, seed=0), 1.5, seed=0).probe_tasks()[0]
    assert 0.4 < baseline_accuracy(task) < 0.7
    assert task.classes == 10 and task.raw_baseline(next(iter(task.train))).shape == (64, 80)


def test_images_do_not_depend_on_how_many_there_are() -> None:
    few, many = SyntheticVision(3, 2, 2, seed=0), SyntheticVision(700, 2, 2, seed=0)
    assert all(np.array_equal(few.read(i), many.read(i)) for i in range(3))
    assert few.read(0).shape == (3, 32, 32) and few.read(0).dtype == np.uint8


def test_probe_images_are_unseen_and_balanced() -> None:
    dataset = SyntheticVision(50, 400, 400, seed=0)
    task = dataset.labelled()[0]
    images = [dataset.read(i) for i in range(50)] + [
        s.read(i) for s in (task.train, task.test) for i in range(400)
    ]
    assert len({image.tobytes() for image in images}) == 850
    assert np.bincount(task.train.labels, minlength=10).min() > 20


def test_documents_agree_as_the_grammar_says() -> None:
    grammar = SyntheticText(1, 1, 1, seed=0).grammar
    plural = {"tos": True, "ta": False}
    for i in range(200):
        text, order, _ = grammar.document(i, (3, 5))
        for sentence in text.split(". "):
            words = sentence.rstrip(".").split()
            verb = next(n for n, word in enumerate(words) if "'" in word)
            before = next(plural[word] for word in words[:verb] if word in plural)
            after = next(plural[word] for word in words[verb:] if word in plural)
            assert words[verb].endswith("'re") is (after if order else before)


def test_pretraining_text_holds_no_document_of_the_probe() -> None:
    dataset = SyntheticText(300, 100, 100, seed=0)
    texts, (order, topic) = set(dataset.texts()), dataset.labelled()
    tested = [split.read(i) for split in (order.train, order.test) for i in range(100)]
    assert not texts & set(tested) and len(set(tested)) == 200
    assert set(topic.train.labels.tolist()) == set(range(TOPICS))


def test_topic_is_easy_and_order_needs_more_than_words() -> None:
    order, topic = TextTransform(
        SyntheticText(100, 800, 400, 0), 96, 1000, None, None
    ).probe_tasks()
    assert baseline_accuracy(topic) > 0.95
    assert baseline_accuracy(order) > 0.9  # 1-3-grams with 800 labels see it, single words do not:
    words = replace(
        order,
        raw_baseline=lambda batch: torch.nn.functional.one_hot(batch.inputs, 1000).sum(1).float(),
    )
    assert 0.4 < baseline_accuracy(words) < 0.6
