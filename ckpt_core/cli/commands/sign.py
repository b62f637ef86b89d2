"""`ckpt sign`: signs checkpoints that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckpt_core.cli.call import Call
from ckpt_core.cli.options import command, complete_references, ranking_options
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.cli.output import Output
    from ckpt_core.format.signing import SigningKey


@command(
    "sign",
    examples=[
        ("ckpt sign latest --key alice.pem", ""),
        ("ckpt sign --all --key alice.pem", "everything that was saved before there was a key"),
    ],
)
@click.argument("references", metavar="[REF]...", nargs=-1, shell_complete=complete_references)
@click.option("--key", metavar="FILE", help="The private key. Left out: CKPT_SIGNING_KEY.")
@click.option("--all", "everything", is_flag=True, help="Every checkpoint of the store.")
@ranking_options
def sign(call: Call, references: tuple[str, ...], key: str | None, everything: bool) -> None:
    """Sign checkpoints.

    The manifest is signed, which has the digest of every byte of the checkpoint. Sign only what you know
    to be yours: nothing tells whether the data was altered before. Signatures of others stay.
    """
    from ckpt_core.cli.words import counted
    from ckpt_core.pipeline import trust

    if bool(references) == everything:
        raise UsageError("name the checkpoints to sign, or say --all", kind="usage")
    signer = _signer(call, key)
    workspace = call.workspace
    found = workspace.index.checkpoints() if everything else list(map(call.resolve, references))
    chosen = list({checkpoint.id: checkpoint for checkpoint in found}.values())
    for checkpoint in chosen:
        trust.sign(workspace, checkpoint, signer)

    def show(output: Output) -> None:
        output.line(f"signed {counted(len(chosen), 'checkpoint')} as {signer.name}")

    ids = [checkpoint.id for checkpoint in chosen]
    call.answer("sign", {"key": signer.name, "signed": ids}, show, quiet=ids)


def _signer(call: Call, key: str | None) -> SigningKey:
    from ckpt_core.config import environment
    from ckpt_core.format.signing import PASSPHRASE, SigningKey

    file = key or environment("CKPT_SIGNING_KEY")
    if file is None:
        raise UsageError("sign with which key? say --key FILE, or set CKPT_SIGNING_KEY", kind="key")
    try:
        return SigningKey.load(file)
    except UsageError as error:
        if error.kind != "passphrase" or not call.output.can_ask:
            raise
    return SigningKey.load(file, call.secret(PASSPHRASE, f"Passphrase of {file}"))
