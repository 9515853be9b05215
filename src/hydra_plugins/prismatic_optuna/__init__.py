"""A Hydra sweeper on Optuna 5: `hydra/sweeper: prismatic_optuna`, with upstream's key names.

Hydra imports the modules without an underscore at every start, so they leave Optuna alone until a
sweep begins. In the order of reading: `options` (the keys of `hydra.sweeper`), `sweeper` (the
plugin), `callback` (what may listen to a sweep), `study` (how a study is read), `configurations`
(what it compares), `results` (what it comes to); then `_space`, `_storage`, `_owner`, `_study` (how
it is kept), `_pruning`, `_outcome`, `_search` (the loop).
"""
