import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from prismatic.config import command_line as cli
from prismatic.files import write_text
from prismatic.tracking import connect

from ..tiny import FEW, IID, MODEL, QUIET, ROOT, TEXT

SMALL = [*MODEL, *QUIET, *FEW]
GROUPS = (
    "callbacks data debug experiment focal guard logger loss model optim perturbation router "
    "sparsity strategy trainer"
).split()

# What is typed -> what the message must name: the value, what is valid, what to do.
TYPED = {
    "model=huge": ["model/huge", "base", "small", "tiny"],
    "experiment=nope": ["experiment/nope", "delta_8", "willow"],
    "modle=tiny": ["'modle'", "router", "did you mean model?"],
    "model.dmi=3": ["'model.dmi'", "num_heads", "did you mean dim?"],
    "+model.dmi=3": ["'dmi'", "num_heads", "did you mean dim?"],
    "+perturbation.sparsty=.1": ["'sparsty'", "did you mean sparsity?"],
    "+trainer.max_step=3": ["'max_step'", "did you mean max_steps?"],
    "+foo=1": ["'foo'", "data, model, router", "objective"],
    "perturbation.sparsity=0": ["perturbation.sparsity=0 ", "(0, 1]", "perturbation.scale=0"],
    "perturbation.sparsity=1.5": ["perturbation.sparsity=1.5 ", "(0, 1]"],
    "sparsity=0.03": ["sparsity=0.03", "perturbation.sparsity=0.03"],
    "sparsity=0": ["perturbation.sparsity=0", "--help"],
    "perturbation=0.5": ["perturbation.scale=0.5"],
    "perturbation.mode=atractive": ["'atractive'", "attractive, repulsive, noise, directional"],
    "focal.pattern=radail": ["'radail'", "none, radial, helical, radial_helical"],
    "focal.units=fraction": ["focal.length=314", "focal.length=0.1 focal.wavelength=1"],
    "router.num_experts=0": ["router.num_experts=0 ", "whole number >= 1"],
    "router.level=batch router.pool=mean": ["not a likelihood", "router.allow_leak=true"],
    "router.pool=mean": ["router.pool='mean'", "causal_mean, first, last"],
    "model.dim=30 model.num_heads=4": ["model.dim=30 ", "divisible by model.num_heads=4"],
    "model.norm=batch": ["model.norm='batch'", "layernorm, rmsnorm, none"],
    "optim.lr=-1": ["optim.lr=-1 ", "number > 0"],
    "optim.batch_size=0": ["optim.batch_size=0 ", "whole number >= 1"],
    "seed=-1": ["seed=-1 ", "0 to 2**32 - 1"],
    "objective=null": ["objective=None", "loss/val"],
    "objective=loss/vla": ["objective='loss/vla'", "loss/val,"],
    "optim.lr=1e30 optim.warmup_steps=0": ["step 1", "nan", "Lower optim.lr"],
    "trainer.devices=0": ["devices=0"],
    "callbacks=default callbacks.checkpoint.monitor=nope": ["monitor='nope'", "'loss/val'"],
    "+router.temprature=2": ["router key='temprature'", "temperature"],
    "ckpt_path=TMP/none.ckpt": ["TMP/none.ckpt does not exist", "checkpoints/last.ckpt"],
    "ckpt_path=TMP/binary.bin": ["TMP/binary.bin cannot be read", "<run>/checkpoints"],
    "data=text": ["data.path=null", "PRISMATIC_DATA"],
    "data=text data.path=TMP/none": ["TMP/none does not exist", "name a UTF-8 file or folder"],
    "data=text data.path=TMP/empty.txt": ["TMP/empty.txt is empty", "give a file"],
    "data=text data.path=TMP/binary.bin": ["TMP/binary.bin is not UTF-8", "convert it"],
    "data=text data.path=TMP/short.txt": ["'short.txt' has 5 bytes", "2,580", "data.seq_len"],
}


TYPED |= {  # with characters that Hydra's grammar gives a meaning
    "+tags.x=a(b": ["\"+tags.x='a(b'\""],
    "+tags.x=a,b": ["\"+tags.x='a,b'\""],
    "+tags.x=a=b": ["\"+tags.x='a=b'\""],
    "+tags.x=it's": ["""'+tags.x='"'"'it\\'"'"'s'"'"''"""],
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("hello")
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 20)
    return tmp_path


@pytest.mark.parametrize(("typed", "named"), TYPED.items(), ids=TYPED)
def test_bad_input_gives_one_readable_error(typed, named, files, script):
    arguments = typed.replace("TMP", str(files)).split()
    data = [] if "data=text" in typed else IID
    outcome = script("train", *SMALL, *data, *arguments)
    assert outcome.status == 1
    assert "Traceback" not in outcome.err + outcome.out
    message = outcome.err.partition("error: ")[2]
    for part in named:
        assert part.replace("TMP", str(files)) in message
    assert message.endswith("(HYDRA_FULL_ERROR=1 shows the traceback)\n")
    assert outcome.err.count("error: ") == 1


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (
            "run=null",
            "give one of run=..., sweep=..., random=..., compare=..., send=...; here",
        ),
        ("run=TMP sweep=TMP", "compare=..., send=...; here: run, sweep"),
        ("sweep=TMP", "has no multirun.yaml: give the folder of a sweep"),
        ("sweep=TMP fresh_seeds=1", "fresh_seeds=1 is not valid"),
        ("run=TMP +foo=1", "+foo=1: there is no key foo"),
        ("run=TMP temperature=-1", "temperature=-1 is not valid"),
        ("run=TMP", "is no run folder: it has no config.yaml; give a folder that src/train.py"),
        ("run=TMP/none", "is no run folder"),
        ("rum=TMP", "did you mean run?"),
    ],
)
def test_bad_input_to_eval(typed, named, tmp_path, script):
    outcome = script("eval", *typed.replace("TMP", str(tmp_path)).split())
    assert outcome.status == 1
    assert named in outcome.err and "Traceback" not in outcome.err


def test_the_traceback_is_there_on_request(script, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="sparsity=0 is not valid"):
        script("train", *SMALL, *IID, "perturbation.sparsity=0")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    for fault in (ZeroDivisionError("modulo"), TypeError("a bug"), KeyError("a bug")):

        def main(fault=fault):
            raise fault

        monkeypatch.setattr(sys, "argv", ["train.py"])
        with pytest.raises(type(fault)):
            cli.run(main)
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_lack_of_memory_is_said_with_its_remedy():
    with pytest.raises(RuntimeError) as lack:
        torch.empty(2**60)
    message = cli.explain(lack.value)
    assert message.startswith("out of memory: ") and "Lower optim.batch_size" in message
    assert cli.explain(RuntimeError("a bug")) is None


def test_what_is_not_supported_is_said_at_the_door(monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(os, "name", "nt")
        cli.run(pytest.fail)
    assert ended.value.code == 1
    assert "use Linux or macOS (on Windows, WSL)" in capsys.readouterr().err


def test_pictures_are_files_even_when_started_from_a_notebook(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    seen = []
    cli.run(lambda: seen.append(os.environ["MPLBACKEND"]))
    assert seen == ["agg"]


def test_a_good_run_says_where_to_look(script, tmp_path):
    outcome = script("train", *SMALL, *IID)
    assert outcome.status == 0 and outcome.err == ""
    assert "validation loss" in outcome.out and "bayes" in outcome.out
    [config] = (tmp_path / "outputs").glob("runs/*/*/config.yaml")
    assert f"python src/eval.py run={config.parent}" in outcome.out


def test_what_is_typed_is_taken_as_it_was_meant(script, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "2024").write_text(TEXT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "notes")
    small = [*SMALL, "data=text", "data.seq_len=16", "callbacks=default", "~callbacks.progress"]
    outcome = script(
        "train", *small, "data.path=2024", "hydra.run.dir=~/here", "hydra.job.chdir=true",
        "logger=mlflow", "logger.experiment_name=2024", "logger.run_name=7",
        "logger.tracking_uri=sqlite:///relative.db",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    client = connect(f"sqlite:///{tmp_path}/notes/relative.db")
    [run] = client.search_runs([client.get_experiment_by_name("2024").experiment_id])
    assert run.info.run_name == "7" and run.data.tags["run_dir"] == str(tmp_path / "here")
    assert (tmp_path / "here" / "report" / "report.html").is_file()
    monkeypatch.chdir(tmp_path)
    outcome = script("eval", "run=~/here", "prompt=2024", "count=3")
    assert outcome.status == 0, outcome.err
    assert "--- continuation ---\n2024" in outcome.out


def process(*arguments, **environment):
    """A script as its user runs it."""
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def test_an_override_is_taken_as_it_was_typed():
    typed = OmegaConf.create(["prompt=${nothing}", "+x=1"])
    with pytest.raises(ValueError, match=r"^\+x=1: there is no key x"):
        cli.refuse_added(typed, ["prompt"])


@pytest.mark.parametrize("full", ["0", "1"])
def test_a_real_process_ends_with_status_1(full, tmp_path):
    done = process(
        str(ROOT / "src" / "train.py"), "model=huge", HYDRA_FULL_ERROR=full,
        PRISMATIC_OUTPUTS=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1
    assert "model/huge" in done.stderr
    assert ("Traceback" in done.stderr) == (full == "1")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_help_names_every_group():
    done = process(str(ROOT / "src" / "train.py"), "--help")
    assert done.returncode == 0
    for group in GROUPS:
        assert f"\n{group}: " in done.stdout
    assert "perturbation=attractive focal=radial_helical" in done.stdout


@pytest.mark.parametrize("name", ["train", "eval", "study", "bench"])
def test_help_answers_before_anything_heavy_is_loaded(name):
    done = process("-X", "importtime", str(ROOT / "src" / f"{name}.py"), "--help")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "hydra" in loaded
    assert not loaded & {"torch", "pytorch_lightning", "mlflow", "optuna", "pandas", "matplotlib"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("perturbation.scale=-1", "perturbation.scale=-1 is not valid: give a number >= 0"),
        ("model.dim=abc", "model.dim='abc' is not valid: give a whole number"),
        ("trainer.max_steps=0", "trainer.max_steps=0 is not valid"),
    ],
)
def test_a_refusal_that_needs_no_model_waits_for_nothing_heavy(override, message):
    done = process("-X", "importtime", str(ROOT / "src" / "train.py"), override)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 1
    assert message in done.stderr
    assert not loaded & {"torch", "pytorch_lightning", "mlflow", "optuna", "pandas", "matplotlib"}


def test_two_runs_in_one_second_get_two_folders():
    arguments = [str(ROOT / "src" / "train.py"), "--cfg", "hydra", "--package", "hydra.run.dir"]
    runs = [
        subprocess.Popen([sys.executable, *arguments, "--resolve"], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    folders = [run.communicate(timeout=60)[0] for run in runs]
    assert all(b"runs/" in folder for folder in folders)
    assert folders[0] != folders[1]


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path):
    """The process dies between writing and renaming."""
    path = tmp_path / "manifest.json"
    write_text(path, "old")
    code = (
        "import os, pathlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "from prismatic.files import write_text\n"
        "pathlib.Path.replace = lambda *_: os._exit(9)\n"
        "write_text(pathlib.Path(sys.argv[2]), 'new')\n"
    )
    assert process("-c", code, str(ROOT / "src"), str(path)).returncode == 9
    assert path.read_text() == "old"


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "deep" / "notes.txt"
    write_text(path, TEXT)
    assert path.read_text() == TEXT
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == TEXT
    assert [entry.name for entry in path.parent.iterdir()] == ["notes.txt"]
