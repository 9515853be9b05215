"""What the scripts share: one readable line for every error that a user can mend.

Imported before anything heavy, so that `--help` answers at once.
"""

import gc
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prismatic.errors import FULL_DISK, causes

SOURCES = Path(__file__).parents[2]
FULL = "HYDRA_FULL_ERROR"
NUMBER = re.compile(r"^\+{0,2}(sparsity|strategy|perturbation|focal)=([-+.\d][\w.+-]*(?:,.*)?)$")
KEY_OF = {
    "sparsity": "sparsity",
    "strategy": "strategy",
    "perturbation": "scale",
    "focal": "length",
}

HOME = re.compile(r"(?<==)~(?=/|$)")  # not every shell expands it in the middle of a word
PLAIN, SPECIAL = re.compile(r"[A-Za-z_/][\w./-]*"), {"true", "false", "null", "nan", "inf"}
AMBIGUOUS = re.compile(r"^Ambiguous value for argument '(.*)'$", re.MULTILINE)

# Of a process that torchrun, srun or a user on a further machine started.
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK")
# A rank composes a run folder of its own; only rank 0's shall be there.
LEAVE_NOTHING = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")

# What Lightning and MLflow say to their users; by name, since importing them takes seconds.
FOREIGN = {"MisconfigurationException", "MlflowException"}
# Of torch's RuntimeError on a CPU and on a GPU, and of python's own.
OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory|^Unable to allocate")


def quote(value: Any) -> str:
    """A value in Hydra's grammar, which reads it as just this value."""
    if isinstance(value, list):
        return f"[{','.join(map(quote, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quote(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in SPECIAL
        return value if plain else QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value).lower()


def suggest(key: str, valid: Iterable[str]) -> str:
    """The names that would have been right, the likely one last."""
    names = sorted(str(name) for name in valid if not str(name).startswith("_"))
    near = get_close_matches(key, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"\nvalid here: {', '.join(names)}{hint}"


def missing_key(error: BaseException) -> str:
    """For a key that the configuration does not have: those it has."""
    parent, key = getattr(error, "parent_node", None), getattr(error, "key", None)
    if key is None or parent is None or not hasattr(parent, "keys"):
        return ""
    return suggest(str(key), parent.keys())


def unexpected_argument(error: BaseException) -> str:
    """For a key that was added with `+` and that nothing takes: what is taken."""
    target = re.search(r"target '([\w.]+)'", str(error))
    argument = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not (target and argument):
        return ""
    taken = signature(get_object(target[1])).parameters
    return f"{target[1]} takes no {argument[1]!r}{suggest(argument[1], taken)}"


def how_to_quote(error: BaseException) -> str:
    """For a value with characters that Hydra's grammar reads otherwise: how to give it as text."""
    ambiguous = AMBIGUOUS.search(str(error))
    typed = ambiguous[1] if ambiguous else getattr(error, "override", None) or ""
    key, given, value = typed.partition("=")
    word = f"{key}={quote(value)}"
    word = shlex.quote(word) if set(word) & set('"$`\\!') else f'"{word}"'
    return f"\nto give it as a text, quote it for Hydra and for the shell: {word}" if given else ""


def explain(error: BaseException) -> str | None:
    """The message of an error that the user can mend, or None for a fault of the program."""
    chain = list(causes(error))
    known = (HydraException, OmegaConfBaseException)
    ours = (ValueError, OSError, FloatingPointError)
    for cause in chain:
        foreign = FOREIGN.intersection(base.__name__ for base in type(cause).__mro__)
        if isinstance(cause, OSError) and cause.errno in FULL_DISK:
            return f"{cause}. Make room, or let PRISMATIC_OUTPUTS name a folder on another disk"
        if isinstance(cause, RuntimeError | MemoryError) and OUT_OF_MEMORY.search(str(cause)):
            return (
                f"out of memory: {str(cause).splitlines()[0]}\nLower optim.batch_size "
                "(trainer.accumulate_grad_batches keeps the step's size), data.seq_len or the model"
            )
        if (isinstance(cause, ours) and not isinstance(cause, known)) or foreign:
            return str(cause)
    if not isinstance(error, known):
        return None
    unexpected = unexpected_argument(error)
    if unexpected:
        return unexpected
    first = str(error).split("\nConfig search path")[0].split("\nTo append")[0]
    hints = (hint(cause) for cause in chain for hint in (missing_key, how_to_quote))
    return first + next(filter(None, hints), "")


def refuse_numbers(arguments: list[str]) -> None:
    """A number given to a group of named options: say where numbers go."""
    for argument in arguments:
        match = NUMBER.match(argument)
        if match:
            node = "focal" if match[1] == "focal" else "perturbation"
            raise ValueError(
                f"{argument}: {match[1]} is a group of named options (see --help); a number is "
                f"given as {node}.{KEY_OF[match[1]]}={match[2]}"
            )


def refuse_lone_sweep(choices: Mapping[str, str | None], in_sweep: bool) -> None:
    """A sweep's file in a single run, which would silently be one job with its defaults."""
    for group in ("grid", "optuna"):
        if choices.get(group) and not in_sweep:
            raise ValueError(f"{group}={choices[group]} is a sweep: add -m")


def the_one_given(config: Mapping[str, object], keys: Iterable[str]) -> str:
    """Which of the keys has a value; they exclude one another."""
    given = [key for key in keys if config[key] is not None]
    if len(given) != 1:
        examples = ", ".join(f"{key}=..." for key in keys)
        raise ValueError(f"give one of {examples}; here: {', '.join(given) or 'none'} (see --help)")
    return given[0]


def texts(overrides: Any) -> list[str]:
    """A node of overrides as they were typed: what one interpolates is not known where it stands.

    Iterating over such a node would resolve it there.
    """
    return cast(list[str], OmegaConf.to_container(overrides, resolve=False))


def refuse_added(overrides: Sequence[str], valid: Iterable[str]) -> None:
    """A key that a script does not know, added with `+`."""
    for override in texts(overrides):
        if override.startswith("+"):
            key = override.lstrip("+").partition("=")[0]
            raise ValueError(f"{override}: there is no key {key}{suggest(key, valid)}")


def further_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of a distributed run, and not its first."""
    return any(environment.get(name, "0") not in ("", "0") for name in RANKS)


def run(main: Callable[[], object]) -> None:
    """Run a script's main; a mendable error becomes its message and exit status 1."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes that share this run
    wanted = first and os.environ.get(FULL) == "1"  # a further one inherits it, set as below
    gc.set_threshold(10_000)  # at the usual 700, collecting is a quarter of the start of a script
    os.environ[FULL] = "1"  # Hydra then hands its errors over instead of printing them
    logging.raiseExceptions = False  # a log file on a full disk buries the error that tells so
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; a notebook's names a module of its own
    # Launchers such as submitit start pythons that know nothing of this script's folder.
    known = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(SOURCES), *known]))
    try:
        if os.name != "posix":  # it locks files and forks trials as these do
            raise OSError(f"{sys.platform} is not supported: use Linux or macOS (on Windows, WSL)")
        sys.argv[1:] = [HOME.sub(str(Path.home()), argument, count=1) for argument in sys.argv[1:]]
        refuse_numbers(sys.argv[1:])
        if further_rank(os.environ):
            sys.argv += LEAVE_NOTHING
        main()
    except BrokenPipeError:  # as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, FloatingPointError) and not first:
            return  # all processes stopped for it together: one says so, and with what status
        message = None if wanted else explain(error)
        if message is None:
            raise
        print(f"error: {message}\n({FULL}=1 shows the traceback)", file=sys.stderr)
        sys.exit(1)
    finally:
        if not wanted:
            os.environ.pop(FULL, None)
