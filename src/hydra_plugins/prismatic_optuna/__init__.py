"""A Hydra sweeper on Optuna 5: `hydra/sweeper: prismatic_optuna`, with upstream's key names.

Two modules are public: `sweeper` (the plugin and its options) and `callback` (what may listen to
a sweep); listeners may also use `_reading` (how a study is read). The private ones are loaded when
a sweep begins; in the order of reading: `_space`, `_samplers`, `_storage`, `_owner`, `_study`,
`_launchers`, `_results`, `_pruning`, `_report`, `_loop`, `_search`.
"""
