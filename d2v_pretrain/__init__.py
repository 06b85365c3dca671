"""d2v_pretrain: data2vec 1.0 and 2.0 self-supervised pretraining for speech, images and text."""

__version__ = "0.1.0"
