"""The `agp` command: help without MLX, an example for every verb, one clean message for what the user can mend."""

import subprocess
import sys

import pytest

from scripts import cli


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A verb whose `run` has the given body."""

    def plant(body: str) -> None:
        source = f'"""Do it.\n\n    agp planted\n"""\ndef add_arguments(parser): pass\ndef run(args):\n    {body}\n'
        (tmp_path / "planted_verb.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(cli, "VERBS", {"planted": "planted_verb"})
        monkeypatch.delitem(sys.modules, "planted_verb", raising=False)

    return plant


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_every_verb_with_its_line(words, capsys):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for verb, module in cli.VERBS.items():
        first, _ = cli.docstring(module)
        assert f"  {verb:<10} {first}" in shown


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_helps_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"\nexamples:\n  agp {verb}" in shown


def test_help_waits_for_no_library():
    code = "import sys; from scripts.cli import main; main(['--help']); assert 'mlx.core' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_unknown_verb_names_the_known_ones(capsys):
    assert cli.main(["fly"]) == 2
    assert capsys.readouterr().err == f"agp: no verb 'fly'; there are {', '.join(cli.VERBS)}\n"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("agp 0.")


@pytest.mark.parametrize("error", ["ValueError('no such tap')", "FileNotFoundError('no such tap')"])
def test_what_the_user_can_mend_is_one_line(planted, monkeypatch, capsys, error):
    monkeypatch.setenv("AGP_QUIET", "1")
    planted(f"raise {error}")
    assert cli.main(["planted"]) == 2
    assert capsys.readouterr().err == "agp planted: no such tap\n"


def test_the_traceback_is_there_for_who_asks(planted, monkeypatch):
    monkeypatch.setenv("AGP_TRACEBACK", "1")
    planted("raise ValueError('no such tap')")
    with pytest.raises(ValueError, match="no such tap"):
        cli.main(["planted"])


def test_our_own_bugs_are_not_hidden(planted):
    planted("assert False, 'a bug'")
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["planted"])


def test_ctrl_c_is_one_line(planted, monkeypatch, capsys):
    monkeypatch.setenv("AGP_QUIET", "1")
    planted("raise KeyboardInterrupt")
    assert cli.main(["planted"]) == 130
    assert capsys.readouterr().err == "agp planted: stopped\n"


@pytest.mark.parametrize("returned, code", [("None", 0), ("0", 0), ("3", 3)])
def test_a_verb_may_return_an_exit_code(planted, returned, code):
    planted(f"return {returned}")
    assert cli.main(["planted"]) == code


def test_openblas_is_said_once_and_only_where_it_is_used(planted, monkeypatch, capsys):
    monkeypatch.delenv("AGP_QUIET", raising=False)
    planted("pass")
    for state, lines in (("openblas", 1), ("accelerate", 0), ("late", 0)):
        monkeypatch.setattr(cli.agp.blas, "state", state)
        cli.main(["planted"])
        assert capsys.readouterr().err.count("OpenBLAS") == lines


def test_a_closed_pipe_is_quiet():
    command = [sys.executable, "-m", "scripts.cli", "figures"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # long before the first line is written
        stderr = process.stderr.read()
    assert process.returncode == 141
    assert "Error" not in stderr and "Exception" not in stderr
