"""``fl-darex prune``: a fine-tuned model becomes a small file of what changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fl_darex.commands.messages import plain_console, say, told_in_one_line
from fl_darex.commands.progress import bars
from fl_darex.commands.searching import learned, needs_examples

if TYPE_CHECKING:
    from fl_darex.deltas import Pruned

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
in one .safetensors file.

--search and wanda load FINETUNED and look at training examples of --data, which is laid out as
task.dataset; SETTINGS, each as SECTION.KEY=VALUE, say what they are if they are no texts with
labels:


  fl-darex prune gpt gpt-mine -o x.darex --p .99 --search q-e --data texts task.name=causal-lm"""


def prune(
    base: Annotated[Path, typer.Argument(metavar="BASE", hidden=True)],
    finetuned: Annotated[Path, typer.Argument(metavar="FINETUNED", hidden=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="the file that is written")],
    p: Annotated[float, typer.Option(help="fraction dropped, from 0 to below 1")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[SETTINGS]...", hidden=True)
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="dare, structured: at random; magnitude, wanda: the largest changes stay"
        ),
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
    search: Annotated[
        str,
        typer.Option(
            help="choose q by examples: q-e, q-v, layer-q-e, layer-q-v or curvature",
            show_default=False,
        ),
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            help="training examples for --search and wanda: a folder or a name on the hub",
            show_default=False,
        ),
    ] = "",
    seed: Annotated[int, typer.Option(help="what random masks are drawn from")] = 0,
    scope: Annotated[
        str, typer.Option(help="among which entries the largest are chosen: layer, row or global")
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

        examples = needs_examples(search, method, q, data, settings or [], adapter)
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
            norms={} if examples else None,
        )
        models = deltas.open_pair(base, finetuned, adapter=adapter)
        if examples:
            how = learned(how, search, models, data, settings or [], console)
        with bars(console) as told:
            found = deltas.prune_as(form, *models, out, how, carry_files=not no_files, told=told)
        _say(console, out, found)


def _say(console: Console, out: Path, found: Pruned) -> None:
    for remark in found.remarks:
        say(console, remark, "note:", "yellow")
    share = f"{found.kept:,} of {found.entries:,} entries" if found.entries else "no entries"
    ratio = found.dense_size / found.size
    size = f"{found.size / 1e6:,.3f} MB, 1/{ratio:,.0f} of FINETUNED"
    say(console, f"{out}: {size}; {share} are kept")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
