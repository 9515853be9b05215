"""What is seen of a sweep: in the terminal (`display`), in its folder, and in MLflow (`overview`).

Both listen to the sweeper. `standing` says how a sweep stands, in numbers and pictures, `sweep_run`
keeps its run in MLflow, and `rerun` is the command that repeats one of its trials.
"""
