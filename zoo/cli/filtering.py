"""Pictures through classical kernels: filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo import terminal
from zoo.cli.options import check_packages, json_option, next_commands, print_json, shape


@click.command(
    "filter",
    epilog="""\b
Examples:
  zoo filter photo.jpg --kernel edges
  zoo filter photo.jpg --kernel sharpen --contrast none --padding edge -o sharp.png
  zoo filter photo.jpg --kernel mine.csv --grey --mode valid --backend torch
  zoo filter photo.jpg --kernel box-blur --onnx blur.onnx
  zoo filter --list""",
)
@click.argument("picture", type=click.Path(path_type=Path), required=False)
@click.option("--kernel", "-k", metavar="NAME|FILE", help="A name of --list, or a file of rows of numbers.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="[default: PICTURE-KERNEL.png]")
@click.option(
    "--mode",
    default="same",
    show_default=True,
    metavar="[full|same|valid]",
    help="Size: up to the last overlap, that of PICTURE, or inside it.",
)
@click.option(
    "--padding",
    default="zero",
    show_default=True,
    metavar="[zero|edge|reflect|symmetric|wrap]",
    help="What lies around PICTURE.",
)
@click.option("--grey", is_flag=True, help="Filter the luminance instead of each colour.")
@click.option(
    "--contrast",
    default="equalize",
    show_default=True,
    metavar="[none|stretch|equalize|adaptive]",
    help="How values become levels: clipped, least to largest, all levels alike, or tile by tile.",
)
@click.option(
    "--backend",
    "-b",
    default="onnx",
    show_default=True,
    metavar="NAME",
    help="onnx (onnxruntime), reference, torch or keras.",
)
@click.option("--onnx", type=click.Path(path_type=Path), help="Also write the filter as an ONNX file.")
@click.option("--list", "listing", is_flag=True, help="List the kernels.")
@json_option
def filter_(
    picture: Path | None,
    kernel: str | None,
    out: Path | None,
    onnx: Path | None,
    listing: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convolve PICTURE with a kernel and write the result as PNG.

    The filter is a CNN of one layer whose weights are the kernel: every backend and onnxruntime give
    the same values, up to rounding.
    """
    if listing:
        _list(as_json)
        return
    if picture is None or kernel is None:
        raise click.UsageError("give a PICTURE and a --kernel, or --list")
    check_packages()
    from export import filtering

    chosen = filtering.Options(kernel, **options)
    result = filtering.filter_file(picture, chosen, out, onnx)
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{result['path']}: {shape(result['output_shape'])}, {result['kernel']} of {picture} "
        f"({shape(result['input_shape'])}) by {chosen.backend}"
    )
    click.echo(f"values {result['least']:.4g} to {result['largest']:.4g}, contrast: {chosen.contrast}")
    commands = [["zoo", "filter", "--list"]]
    if onnx:
        batch, *image = result["onnx_input_shape"]
        click.echo(f"{onnx}: takes image float32 [{batch}, {', '.join(map(str, image))}], a colour an item")
    else:
        commands.append(
            ["zoo", "filter", str(picture), "--kernel", kernel, "--onnx", f"{result['kernel']}.onnx"]
        )
    next_commands(*commands)


def _list(as_json: bool) -> None:
    from zoo.filters import ABOUT, KERNELS

    if as_json:
        print_json(
            [
                {"name": name, "rows": [list(row) for row in rows], "about": ABOUT[name]}
                for name, rows in KERNELS.items()
            ]
        )
        return
    lines = []
    for name, rows in KERNELS.items():
        texts = [" ".join(f"{number:<5.2g}" for number in row) for row in rows]
        size = f"{len(rows)} x {len(rows[0])}"
        lines += [(name, size, texts[0], ABOUT[name]), *(("", "", text, "") for text in texts[1:])]
    click.echo(terminal.table(("kernel", "size", "rows", "what it shows"), lines))
    next_commands(["zoo", "filter", "photo.jpg", "--kernel", "edges"])
