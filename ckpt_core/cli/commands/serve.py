"""`ckpt serve`: the REST API over a store, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, trusted_option

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@command(
    "serve",
    examples=[
        ("ckpt serve", "prints an address to open"),
        ("ckpt serve --port 8080 --token-file ~/.ckpt-token", "programs find the token there"),
        ("ckpt serve --allow-write", "tags and pins can be changed"),
    ],
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port; 0 takes a free one.",
    show_default=True,
)
@click.option("--allow-write", is_flag=True, help="Let clients change tags and pins, and verify.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A further name of this server, as of a proxy before it.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the token is put (mode 0600) while the server runs.",
)
@trusted_option
def serve(
    call: Call, host: str, port: int, allow_write: bool, allow_host: tuple[str, ...], token_file: Path | None
) -> None:
    """Serve the store over HTTP: a REST API, and its page.

    Whoever asks needs the token that is made anew at each start. It listens on this machine alone unless --host says
    otherwise; it speaks no TLS: for others put a proxy before it that does. Ends with Ctrl-C.
    """
    from ckpt_core.web.serving import Server
    from ckpt_core.web.serving import token_file as kept

    server = Server(call.workspace, host=host, port=port, allow_write=allow_write, hosts=allow_host)
    if host not in _LOOPBACK:
        call.output.warning(f"listening on {host} without TLS: who can see the network can see the token")
    with kept(token_file or _own_file(server.port), server.token) as path:
        data = {"address": server.address, "token_file": str(path), "allow_write": allow_write}
        call.answer("serve", data, lambda output: output.line(f"open {server.invitation}"), quiet=[str(path)])
        call.output.note(f"the token is in {path}; Ctrl-C ends the server")
        call.output.flush()
        server.run()


def _own_file(port: int) -> Path:
    from ckpt_core.config import environment

    folder = environment("XDG_RUNTIME_DIR") or environment("XDG_STATE_HOME")
    place = Path(folder) if folder else Path.home() / ".local" / "state"
    return place / "ckpt" / f"serve-{port}.token"
