"""What is seen of a sweep: in the terminal (`display`), in its folder, and in MLflow (`overview`).

Both listen to the sweeper, and show one `account` of it. In the order of reading: `runs` (a row for
each), `ranking` (a row for each configuration, over its seeds), `knobs` (which parameter matters),
`failures`, `standing` (a sweep's worth), `rerun` (what to type next), `pictures`, `account`, `page`
(the report); `sweep_run` keeps a sweep's run in MLflow.
"""
