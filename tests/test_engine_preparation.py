"""The zygote knows the script: its functions, its search path, its directory; and it says in words what cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from taskpool.core import events as ev
from taskpool.wire.zygote import Prepare
from tests.engine_rig import PATIENCE_S, Rig

ROOT = str(Path(__file__).resolve().parent.parent)

BODY = """
import os, sys, tempfile
from pathlib import Path

print("loaded as", __name__, file=sys.stderr)

def where(x):
    return x + 1, __name__, os.getcwd(), sys.argv[1:]

def run():
    from taskpool.engines.preparation import describe_main
    from taskpool.wire.description import main_stem
    from taskpool.wire.zygote import Prepare
    from tests.engine_rig import Rig
    with tempfile.TemporaryDirectory() as directory:
        rig = Rig(Path(directory), prepare=Prepare(main=describe_main(), main_stem=main_stem()))
        rig.ready(1)
        print(rig.call(1, where, 1))
        rig.close()
"""
GUARDED = BODY + '\nif __name__ == "__main__":\n    run()\n'


def python(*arguments: str, cwd: Path, stdin: str | None = None) -> tuple[str, str]:
    """Run an interpreter to its end; return its output and errors."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_functions_of_a_script_are_found_and_its_main_part_runs_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    script = tmp_path / "sub" / "script.py"
    script.write_text(GUARDED)
    out, errors = python(os.path.join("sub", "script.py"), "--flag", cwd=tmp_path)
    assert out == f"{(2, '__mp_main__', str(tmp_path), ['--flag'])}\n"
    assert errors.split("\n")[:2] == ["loaded as __main__", "loaded as __mp_main__"]
    assert errors.count("loaded as") == 2


def test_functions_of_a_module_run_by_name_are_found(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "mod.py").write_text(GUARDED)
    out, errors = python("-m", "pkg.mod", cwd=tmp_path)
    assert out == f"{(2, '__mp_main__', str(tmp_path), [])}\n"
    assert errors.count("loaded as __main__") == 1


def test_a_package_run_by_name_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "__main__.py").write_text(BODY + "\nrun()\n")
    out, errors = python("-m", "pkg", cwd=tmp_path)
    assert out.startswith("(2, ")
    assert errors.count("loaded as") == 1


@pytest.mark.parametrize("arguments", [["-"], [], ["-i"], ["-c", BODY + "\nrun()\n"]], ids=["dash", "stdin", "interactive", "-c"])
def test_functions_that_no_file_holds_travel_by_value(tmp_path: Path, arguments: list[str]) -> None:
    code = None if "-c" in arguments else BODY.replace("\n\n    ", "\n    ") + "\n\nrun()\n"
    out, errors = python(*arguments, cwd=tmp_path, stdin=code)
    assert out.startswith("(2, ")
    assert errors.count("loaded as") == 1


def test_modules_beside_the_script_do_not_get_before_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(GUARDED.replace("import os, sys", "import helper, os, sys"))
    (tmp_path / "helper.py").write_text("")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "enum.py").write_text("raise SystemError('of the directory it was started in')")
    out, _ = python(str(tmp_path / "script.py"), cwd=other)
    assert out.startswith("(2, ")


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        BODY.replace("rig.ready(1)", "rig.until(lambda: rig.prepared); print(rig.prepared[0].error)").replace(
            "print(rig.call(1, where, 1))", ""
        )
        + "\nrun()\n"
    )
    out, errors = python("script.py", cwd=tmp_path)
    assert 'if __name__ == "__main__":' in out
    assert errors.count("loaded as") == 2


# ---- preloading -----------------------------------------------------------------------------------------------------


def preload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> Rig:
    """Return an engine that preloads modules of these names and texts."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    from taskpool.engines.preparation import describe_main

    return Rig(tmp_path, prepare=Prepare(main=describe_main(), preload=tuple(modules)))


def loaded_modules(prefix: str) -> list[str]:
    return sorted(name for name in sys.modules if name.startswith(prefix))


def thread_names() -> list[str]:
    import threading

    return sorted(thread.name for thread in threading.enumerate())


def test_preloaded_modules_are_there_when_a_worker_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = preload(tmp_path, monkeypatch, plain_one="", plain_two="")
    rig.ready(1)
    assert rig.prepared[0].error == ""
    assert rig.call(1, loaded_modules, "plain_") == ["plain_one", "plain_two"]
    rig.close()


@pytest.mark.parametrize("text", ["raise ValueError('this one')", "import sys; sys.exit('this one')", "import this_one_is_missing"])
def test_an_import_that_fails_is_told_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    rig = preload(tmp_path, monkeypatch, faulty=text)
    rig.until(lambda: rig.prepared)
    assert "faulty.py" in rig.prepared[0].error
    assert "this" in rig.prepared[0].error.splitlines()[-1]
    assert not any(ours in rig.prepared[0].error for ours in ("zygote.py", "frozen"))  # only what is the user's
    rig.engine.spawn(1)
    assert "could not be imported" in rig.wait(ev.WorkerFailed).error
    rig.close()


def test_an_import_that_kills_the_zygote_is_told_after_three_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = preload(tmp_path, monkeypatch, deadly="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    rig.engine.spawn(1)
    assert "SIGSEGV, 3 times in a row" in rig.wait(ev.WorkerFailed).error
    assert "SIGSEGV" in rig.prepared[0].error
    rig.engine.spawn(2)
    assert rig.wait(ev.WorkerFailed).worker == 2
    rig.close()


def test_a_module_that_leaves_a_thread_is_named_and_imported_by_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threaded = """
        import threading, time
        threading.Thread(target=time.sleep, args=(3600,), name="left-behind", daemon=True).start()
    """
    rig = preload(tmp_path, monkeypatch, plain="", threaded=threaded)
    rig.ready(1, 2)
    assert rig.prepared[0].error == ""
    assert ["threaded" in notice for notice in rig.prepared[0].notices] == [True]
    assert "left-behind" in rig.call(1, thread_names)
    assert rig.call(2, loaded_modules, "threaded") == ["threaded"]
    zygote = rig.node._nursery.pid
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    rig.close()


def test_a_module_that_fails_in_each_worker_is_a_death_before_readiness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fickle = """
        import os, threading, time
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        path = __file__ + ".seen"
        if os.path.exists(path):
            raise ValueError("not twice")
        open(path, "w").close()
    """
    rig = preload(tmp_path, monkeypatch, fickle=fickle)
    rig.engine.spawn(1)
    death = rig.wait(ev.WorkerDied)
    assert (death.begun, death.why, death.error.exit_code) == (0, "", 1)
    assert death.error.message == "its worker cannot be used: it died before it was ready: ValueError: not twice"
    assert "fickle.py" in death.output
    rig.close()


def test_threads_of_the_zygote_that_end_in_time_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = preload(tmp_path, monkeypatch, brief="import threading; t = threading.Thread(target=int); t.start(); t.join()")
    rig.ready(1)
    assert rig.prepared[0].notices == ()
    rig.close()
