"""``ddlm-ui``: a web page to write with (Gradio)."""

import argparse
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from ddlm_core.apps.commandline import OneLineParser, environment, one_line_errors
from ddlm_core.support.errors import UserError, error_context

EXAMPLES = """examples:
  ddlm-ui                                          the model that ships with ddlm
  ddlm-ui --model checkpoints/best_model_hf        a model that ddlm-train wrote
  ddlm-ui --model user/model --device cpu          one from the Hugging Face Hub, without a GPU
  ddlm-ui --port 8080 --server-name 0.0.0.0        for everybody in your network
  ddlm-ui --share                                  for everybody, through a server of Gradio
"""


def parser() -> argparse.ArgumentParser:
    """The options, with help."""
    p = OneLineParser(
        prog="ddlm-ui",
        description="Write with a discrete diffusion language model in your browser.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", help="folder, bundled name or Hub id (default: the bundled model)")
    p.add_argument("--port", type=int, help="where to listen (default: the first free from 7860)")
    p.add_argument(
        "--server-name",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    p.add_argument("--share", action="store_true", help="make a public link, too")
    p.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    args = parser().parse_args(argv)
    with one_line_errors("ddlm-ui"):
        try:
            serve(args)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def serve(args: argparse.Namespace) -> None:
    """Load the model, open the page, and wait until somebody stops it."""
    with own_temporary_folder():
        open_and_wait(args)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """A folder for Gradio's files that no other user can read; it goes at the end.

    Its usual place is one for all users of a machine, where the first one owns it. Gradio reads the
    variable when it is imported.
    """
    if os.environ.get("GRADIO_TEMP_DIR"):
        named, hint = Path(os.environ["GRADIO_TEMP_DIR"]), "name a folder that you can write"
        with error_context(f"cannot use GRADIO_TEMP_DIR={named}", f"{hint}, or unset it"):
            named.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=named).close()
        yield
        return
    own = TemporaryDirectory(prefix="ddlm-ui-", ignore_cleanup_errors=True)
    with own as folder, environment(GRADIO_TEMP_DIR=folder):
        yield


def open_and_wait(args: argparse.Namespace) -> None:
    """Load the model, open the page, and wait."""
    port = free_port(args.server_name, args.port)  # before the model: that takes longer
    from ddlm_core.apps.page import Models, build_page
    from ddlm_core.block_pipeline import BlockPipeline

    pipeline = BlockPipeline.from_pretrained(args.model, device=args.device)
    with near():  # Gradio looks for proxies already when it is imported
        page = build_page(Models(pipeline, args.model))
    launch(page, server_name=args.server_name, server_port=port, share=args.share)
    public = f" and on {page.share_url}" if getattr(page, "share_url", None) else ""
    print(f"listening on {page.local_url}{public} (Ctrl-C stops)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def free_port(host: str, port: int | None) -> int:
    """A port that can be listened on; a ``UserError`` says why there is none."""
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--port must be a whole number from 1 to 65535, got {port}")
    for candidate in range(7860, 7960) if port is None else [port]:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, candidate), family=family):
                return candidate
        except OSError as error:
            reason = error
    what = f"port {port}" if port else "any port from 7860 to 7959"
    raise UserError(
        f"cannot listen on {what} of {host} ({reason.strerror}): choose another --port, or leave out "
        "--server-name"
    )


def launch(page: Any, **where: Any) -> None:
    """Open the page and return. No analytics, no fonts from other hosts."""
    import gradio as gr

    text, code = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(primary_hue="blue", font=text, font_mono=code).set(
        # all of it readable: see the tests
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )
    with near(where.get("server_name"), where.get("share")):
        page.launch(
            **where,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            css=live_css(),
        )


@contextmanager
def near(host: str | None = None, share: bool | None = False) -> Iterator[None]:
    """Without a proxy to what is on this machine.

    Gradio asks the new page whether it is there, which no proxy knows. To share it, it has to reach a
    server of its own, perhaps through the proxy.
    """
    kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    local = ",".join(filter(None, [kept, "127.0.0.1,localhost,::1", host]))
    without = local if share else "*"
    hint = "pip install 'httpx[socks]', or leave out --share"
    with environment(no_proxy=without, NO_PROXY=without):
        try:
            yield
        except ImportError as error:
            if "SOCKS" not in str(error):
                raise
            raise UserError(f"cannot share the page through a SOCKS proxy: {hint}") from error


def live_css() -> str:
    """The looks of the texts."""
    from ddlm_core.support.live import CSS

    return CSS


if __name__ == "__main__":
    main()
