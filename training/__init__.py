"""The training recipe of the default model; see `training/README.md`. Not part of the installed package.

`python -m training.train` trains the model, `python -m training.evaluate` counts its right answers, and
`python -m training.clips` writes the sample clips that ship with the package.
"""
