"""Pretrain data2vec: `python train.py modality=audio|vision|text`. All of it is in
d2v_pretrain/run.py and conf/."""

from d2v_pretrain.cli import main

if __name__ == "__main__":
    main()
