"""OpenBLAS is loaded before MLX where it is present; a late import warns, an absent library says how to get it."""

import ctypes
import subprocess
import sys

import pytest

from agp import blas


@pytest.fixture
def machine(monkeypatch):
    """Builds a pretended Linux: with or without the library, MLX imported or not. Returns what was loaded, and how."""

    def build(present: bool, mlx_imported: bool, preload: str = "") -> list[tuple[str, int]]:
        loaded = []

        def load(name: str, mode: int):
            if not present:
                raise OSError(name)
            loaded.append((name, mode))

        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setenv("LD_PRELOAD", preload)
        monkeypatch.delenv("AGP_QUIET", raising=False)
        if not mlx_imported:
            monkeypatch.delitem(sys.modules, "mlx.core")
        return loaded

    return build


def test_openblas_goes_into_the_global_scope(machine):
    loaded = machine(present=True, mlx_imported=False)
    assert blas.choose() == "openblas"
    assert loaded == [("libopenblas.so.0", ctypes.RTLD_GLOBAL)]


def test_without_the_library_the_reference_stays(machine):
    machine(present=False, mlx_imported=False)
    assert blas.choose() == "reference"


def test_after_mlx_it_is_too_late(machine):
    loaded = machine(present=True, mlx_imported=True)
    assert blas.choose() == "late"
    assert [mode for _, mode in loaded] == [ctypes.RTLD_LOCAL]


def test_a_preloaded_library_is_never_late(machine):
    machine(present=True, mlx_imported=True, preload="/usr/lib/libopenblas.so.0")
    assert blas.choose() == "openblas"


def test_late_and_absent_is_absent(machine):
    machine(present=False, mlx_imported=True)
    assert blas.choose() == "reference"


def test_a_mac_needs_nothing(machine, monkeypatch):
    loaded = machine(present=True, mlx_imported=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert blas.choose() == "accelerate" and not loaded


def test_an_absent_library_says_how_to_get_it(machine, monkeypatch, capsys):
    machine(present=False, mlx_imported=True)
    blas.warn("reference")
    assert capsys.readouterr().err.count("apt-get install libopenblas0-pthread") == 1
    monkeypatch.setenv("AGP_QUIET", "1")
    blas.warn("reference")
    assert capsys.readouterr().err == ""


def test_a_late_import_warns():
    with pytest.warns(RuntimeWarning, match="import agp first"):
        blas.warn("late")


def test_good_news_is_silent_in_a_library(capsys):
    blas.warn("openblas")
    blas.warn("accelerate")
    assert capsys.readouterr() == ("", "")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_a_late_import_names_the_line_that_was_late():
    stderr = python("import mlx.core\nimport agp")
    assert ("<string>:2: RuntimeWarning" in stderr) == (blas.state == "openblas")


def test_importing_agp_imports_no_mlx():
    assert python("import agp, sys; assert not {'mlx.core', 'numpy', 'agp.models'} & set(sys.modules)").count("\n") <= 1


def test_an_unknown_attribute_is_an_error():
    import agp

    with pytest.raises(AttributeError, match="'agp' has no attribute 'nothing'"):
        agp.nothing  # noqa: B018


@pytest.mark.skipif(blas.state != "openblas", reason="there is no OpenBLAS here")
def test_it_says_with_how_many_threads_it_multiplies(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    code = "from agp import blas, products; print(blas.threads(), products.MOST in (0, products.FEW))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["1", "True"]
