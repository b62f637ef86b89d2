"""`ckpt keys`: makes the keys that sign checkpoints, and tells public ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output


@command(
    "keys",
    examples=[
        ("ckpt keys new ~/keys/alice.pem", "and alice.pem.pub, which the others trust"),
        ("ckpt keys show ~/keys/alice.pem.pub", "as `ckpt show` names its owner"),
    ],
)
@click.argument("action", type=click.Choice(["new", "show"]))
@click.argument("file", metavar="FILE", type=click.Path())
@click.option(
    "--passphrase",
    is_flag=True,
    help="Encrypt the private key: asks for a passphrase, unless CKPT_KEY_PASSPHRASE has one.",
)
def keys(call: Call, action: str, file: str, passphrase: bool) -> None:
    """Make a pair of keys that sign, or tell the public one.

    FILE gets the private key, for its owner alone (mode 0600), FILE.pub the public one: Ed25519, in
    PEM. No file is ever overwritten.
    """
    from ckpt_core.format.signing import PASSPHRASE, new_key, public_keys

    if action == "show":
        if passphrase:
            raise UsageError("`ckpt keys show` takes no passphrase: it reads public keys", kind="usage")
        found = public_keys(file)

        def list_(output: Output) -> None:
            for each in found:
                output.line(each)

        call.answer("keys", {"file": file, "keys": found}, list_, quiet=found)
        return
    key = new_key(file, call.secret(PASSPHRASE, "Passphrase", twice=True) if passphrase else None)

    def show(output: Output) -> None:
        output.line(f"made {file}, the private key: sign with it, and give it to nobody")
        output.line(f"made {file}.pub, the public key: {key}")

    made = {"private": os.path.abspath(file), "public": os.path.abspath(f"{file}.pub"), "key": key}
    call.answer("keys", made, show, quiet=[key])
