"""``generate_with_visualization``: live in a notebook and in a terminal, silent elsewhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.slow  # kernels take their time

START = """
from ddlm_core import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({folder!r}, device="cpu")
options = {{"num_steps": 6, "seed": 3}}
"""
CELLS = {
    "assigned": "text = pipeline.generate_with_visualization(**options)",
    "last expression": "pipeline.generate_with_visualization(**options)",
    "both": "text = pipeline.generate_with_visualization(**options)\ntext",
    "shown again": "text",
    "printed": "print(text)",
}


@pytest.fixture(scope="module")
def notebook(tiny_model_folder: Path) -> Any:
    """A function that runs a cell: the messages that its output is made of."""
    manager, client = start_new_kernel(
        extra_arguments=["--IPKernelApp.cache_dir="], env=os.environ | {"PYTHONPATH": path()}
    )

    def run(code: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        reply = client.execute_interactive(code, timeout=120, output_hook=messages.append)
        assert reply["content"]["status"] == "ok", reply["content"]
        return [message for message in messages if message["msg_type"] not in ("status",)]

    run(START.format(folder=str(tiny_model_folder)))
    run("import ddlm_core.support.live as live; live.SECONDS_BETWEEN = 0")
    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def path() -> str:
    return os.pathsep.join(filter(None, sys.path))


def shown(messages: list[dict[str, Any]]) -> list[str]:
    """The HTML that stands in the output at the end, as a stored notebook has it."""
    outputs: dict[Any, str] = {}
    for number, message in enumerate(messages):
        if message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
            content = message["content"]
            key = content.get("transient", {}).get("display_id", number)
            assert (key in outputs) == (message["msg_type"] == "update_display_data")
            outputs[key] = content["data"].get("text/html", "")
    return [*outputs.values()]


@pytest.mark.parametrize("cell", ["assigned", "last expression", "both"])
def test_a_notebook_shows_each_step_and_then_one_player(cell, notebook):
    messages = notebook(CELLS[cell])
    updates = [m["content"]["data"] for m in messages if m["msg_type"] == "update_display_data"]
    live = [data["text/html"] for data in updates[:-1]]
    assert len(live) == 7  # the random start and 6 steps
    for step, html in enumerate(live):
        assert f"step {step} of 6 · noise" in html and "ddlm-live" in html
    (player,) = shown(messages)
    assert 'class="ddlm-player"' in player and "ddlm-live" not in player
    assert not any(m["msg_type"] == "execute_result" for m in messages)


def test_another_cell_shows_the_player_again_and_prints_the_text(notebook, tiny_model_folder):
    notebook(CELLS["assigned"])
    (player,) = shown(notebook(CELLS["shown again"]))
    assert 'class="ddlm-player"' in player
    from ddlm_core import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tiny_model_folder, device="cpu")
    printed = "".join(
        m["content"]["text"] for m in notebook(CELLS["printed"]) if m["msg_type"] == "stream"
    )
    assert printed == pipeline.generate(num_steps=6, seed=3)[0] + "\n"


def run_script(folder: Path, stdout: Any) -> subprocess.Popen:
    program = START.format(folder=str(folder)) + CELLS["assigned"]
    program += "\nimport sys; print(f'>{text}<', file=sys.stderr)"
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60", "PYTHONPATH": path()}
    environment |= {"PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, env=environment
    )


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_terminal_shows_each_step_in_place(tiny_model_folder):
    screen, terminal = os.openpty()
    with run_script(tiny_model_folder, terminal) as process:
        os.close(terminal)
        sent = b""
        try:
            while chunk := os.read(screen, 1 << 16):
                sent += chunk
        except OSError:  # the program has ended
            pass
        text = process.stderr.read().decode()[1:-2]
    os.close(screen)
    drawn = sent.decode().replace("\r\n", "\n")
    for step in range(7):
        assert f"step {step} · noise" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1  # the cursor comes back
    assert drawn.endswith(f"\x1b[J{text}\n\x1b[0m\x1b[?25h")


def test_a_pipe_gets_nothing(tiny_model_folder):
    with run_script(tiny_model_folder, subprocess.PIPE) as process:
        out, errors = process.communicate()
    assert out == b"" and errors.decode().startswith(">") and process.returncode == 0
