"""What a user sees of a sweep: in the terminal, in its folder and in MLflow.

`Display`, `Overview` and `Grid` are the doors, by their modules: `Grid` is imported at every start
of a script, and must not bring the others along.
"""
