"""A Hydra launcher for one machine: trials side by side, one process each.

`hydra/launcher: prismatic_local` selects it; `launcher.py` says what it promises. Reading order:
`launcher.py`, `streaming.py` (the loop that fills slots), `_trials.py` (processes, or this one),
`_slots.py` (threads and GPUs), `_command.py` (a trial as a command), `_server.py` (the process
that starts and ends trials), `_job.py` (what runs in a trial).
"""
