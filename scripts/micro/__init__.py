"""The project's own pretraining of the backbone that is in the package, `trimtab-micro`.

    python -m scripts.micro teacher     # what the ViT-Tiny says of every image, once (about ten minutes)
    python -m scripts.micro train       # distil it into the small one
    python -m scripts.micro probe       # what its features are worth
    python -m scripts.micro write       # half precision, into the package; the model card and the page in docs

Images and teacher come from ../shared, everything on the way lies in runs/micro. A training that was stopped goes on.
"""
