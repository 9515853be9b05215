"""Where a run came from, asked in repositories made here."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from prismatic.run_folder.provenance import PACKAGES, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, env=clean, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    """With one commit."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


@pytest.fixture
def replace_tool(tmp_path_factory, monkeypatch):
    """Puts a script in the place of a program: replace_tool("git", "exit 1")."""

    def replace(name, script):
        folder = tmp_path_factory.mktemp("bin")
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    return replace


def test_a_clean_tree_has_a_commit_and_no_changes(repository):
    found = provenance(repository)
    assert (found.commit, found.diff) == (git(repository, "rev-parse", "HEAD").strip(), "")


def test_a_dirty_tree_has_its_changes(repository):
    (repository / "code.py").write_text("two\n")
    (repository / "staged.py").write_text("three\n")
    (repository / "größe.txt").write_text("new")
    git(repository, "add", "staged.py")
    lines = provenance(repository).diff.splitlines()
    assert {"-one", "+two", "+three", "# untracked: größe.txt"} <= set(lines)


def test_before_the_first_commit_everything_is_a_change(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("one\n")
    git(tmp_path, "add", ".")
    (tmp_path / "new.txt").write_text("new")
    found = provenance(tmp_path)
    assert found.commit is None
    assert {"+one", "# untracked: new.txt"} <= set(found.diff.splitlines())


def test_another_users_repository_is_read_as_well(repository, replace_tool):
    real = shutil.which("git")
    replace_tool("git", f'GIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {real} "$@"')
    found = provenance(repository)
    assert found.commit is not None and found.diff == ""


@pytest.mark.parametrize("fails", ["diff", "ls-files"])
def test_what_git_cannot_say_is_not_clean(repository, replace_tool, fails):
    real = shutil.which("git")
    replace_tool("git", f'case "$*" in *{fails}*) exit 128;; esac; exec {real} "$@"')
    assert provenance(repository).diff is None


def test_without_a_repository_or_without_git_nothing_is_known(tmp_path, repository, monkeypatch):
    outside = tmp_path.parent
    assert (provenance(outside).commit, provenance(outside).diff) == (None, None)
    monkeypatch.setenv("PATH", "")
    found = provenance(repository)
    assert (found.commit, found.diff, found.gpu) == (None, None, None)


def test_the_repository_of_a_running_hook_is_not_asked(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert provenance(repository).commit is not None


@pytest.mark.parametrize("code, gpu", [(0, "NVIDIA H100"), (9, None)])
def test_the_gpu_is_named(tmp_path, replace_tool, code, gpu):
    replace_tool("nvidia-smi", f"echo NVIDIA H100\nexit {code}")  # it reports errors there too
    assert provenance(tmp_path).gpu == gpu


def test_versions_and_the_processor_are_named(tmp_path):
    found = provenance(tmp_path)
    assert found.cpu.endswith(f" x {os.cpu_count()}")
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.versions["torch"] == torch.__version__
    assert found.versions.keys() == {"python", *PACKAGES}
