"""Data: tasks that hand out batches, and the corpora that text tasks are made of.

Everything here is pure: a batch is a function of its index and a seed, so training resumes by
asking for the next index, and no global random generator is read or moved.
"""

from .corpora import (
    Bible,
    Corpus,
    German,
    PydocTopics,
    PythonLibrary,
    Shakespeare,
    TextSource,
    UserFiles,
)
from .corpus import CorpusTask
from .synthetic import IIDTask, MixedTask
from .tables import latin_square, random_function, sum_digit, sum_mod, uneven
from .task import IGNORE, Batch, Task, Tokenizer, next_tokens, stream
from .text import TextTask, user_text

__all__ = [
    "IGNORE", "Batch", "Bible", "Corpus", "CorpusTask", "German", "IIDTask", "MixedTask",
    "PydocTopics", "PythonLibrary", "Shakespeare", "Task", "TextSource", "TextTask", "Tokenizer",
    "UserFiles", "latin_square", "next_tokens", "random_function", "stream", "sum_digit", "sum_mod",
    "uneven", "user_text",
]  # fmt: skip
