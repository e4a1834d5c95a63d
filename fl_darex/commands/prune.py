"""``fl-darex prune``: a fine-tuned model becomes a small file of what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl_darex.commands.messages import plain_console, say, told_in_one_line
from fl_darex.commands.progress import bars

ABOUT = """\
BASE and FINETUNED are folders as save_pretrained leaves them (.safetensors or .bin, in shards or
not), of any architecture: tensors belong together by their names. FILE is what changed, pruned;
with BASE, fl-darex apply makes a model of it again. An example:

\b
  fl-darex prune bert-base bert-sst2 -o sst2.darex --p 0.99

Tensors that BASE lacks, such as a fresh head, are kept whole; those that did not change cost
nothing. Configuration, tokenizer and other small files (.json, .txt, .model, .jinja, .md) go along:
those that differ from BASE's are put into FILE, the others are taken from BASE again.

Other forms are for other programs: dense is the model's folder that apply would make; csr is the
change as CSR matrices, sparse-safetensors the new values with their indices (vLLM's patches), each
in one .safetensors file."""


def prune(
    base: Annotated[Path, typer.Argument(metavar="BASE", hidden=True)],
    finetuned: Annotated[Path, typer.Argument(metavar="FINETUNED", hidden=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="the file that is written")],
    p: Annotated[float, typer.Option(help="fraction dropped, from 0 to below 1")],
    method: Annotated[
        str, typer.Option(help="dare, structured: at random; magnitude: the largest changes stay")
    ] = "dare",
    values: Annotated[
        str,
        typer.Option(help="fp64, fp32, fp16, bf16, int8, int4, eden4 to eden1 or sign"),
    ] = "fp16",
    q: Annotated[
        str,
        typer.Option(
            help="survivors stand for themselves over q: a number in (0, 1], or dare: 1-p"
        ),
    ] = "dare",
    seed: Annotated[int, typer.Option(help="what random masks are drawn from")] = 0,
    scope: Annotated[
        str, typer.Option(help="among which entries magnitude chooses: layer, row or global")
    ] = "layer",
    columns: Annotated[
        float, typer.Option(help="part of the input columns that structured keeps, 1-p to 1")
    ] = 0.05,
    exact: Annotated[
        bool, typer.Option("--exact", help="keep an exact number of entries of each tensor")
    ] = False,
    dense: Annotated[
        list[str] | None,
        typer.Option(
            help="keep tensors whole with this in their name; may be repeated", show_default=False
        ),
    ] = None,
    dense_below: Annotated[
        int, typer.Option(help="keep tensors of at most so many entries whole")
    ] = 0,
    form: Annotated[
        str,
        typer.Option("--format", help="darex; or dense (a folder), csr, sparse-safetensors"),
    ] = "darex",
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter",
            help="FINETUNED holds a LoRA adapter: of BASE, or one after more training than BASE's",
        ),
    ] = False,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="leave configuration, tokenizer and the like out")
    ] = False,
) -> None:
    """Write what fine-tuning changed, pruned, as one small file."""
    console = plain_console()
    with told_in_one_line():
        from fl_darex import deltas

        how = deltas.Pruning(
            method=method,
            p=p,
            values=values,
            q=_number(q),
            seed=seed,
            scope=scope,
            columns=columns,
            exact=exact,
            dense=tuple(dense or ()),
            dense_below=dense_below,
        )
        models = deltas.open_pair(base, finetuned, adapter=adapter)
        with bars(console) as told:
            found = deltas.prune_as(form, *models, out, how, carry_files=not no_files, told=told)
        for remark in found.remarks:
            say(console, remark, "note:", "yellow")
        share = f"{found.kept:,} of {found.entries:,} entries" if found.entries else "no entries"
        ratio = found.dense_size / found.size
        say(
            console,
            f"{out}: {found.size / 1e6:,.3f} MB, 1/{ratio:,.0f} of FINETUNED; {share} are kept",
        )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
