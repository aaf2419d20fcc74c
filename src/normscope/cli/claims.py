"""``normscope claims``: list the statements of the articles, run them as experiments, write the ledger."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from normscope.claims.claim import Claim

app = typer.Typer(
    name="claims",
    help="Every statement of the articles as a runnable experiment with a verdict.\n\n"
    "Example: normscope claims run 0.11 3.5 --workers 2",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Ids = Annotated[list[str] | None, typer.Argument(help="Claims (0.7) or articles (0); all when left out.")]
Data = Annotated[str, typer.Option("--data", help="A folder of images; scikit-learn's digits when left out.")]
Full = Annotated[
    bool, typer.Option("--full/--quick", help="The full size takes hours and a GPU; the quick one minutes.")
]
Device = Annotated[str, typer.Option(help="Where networks are trained.")]
Cache = Annotated[Path, typer.Option(help="Where outcomes are kept.")]
_CACHE = Path(".normscope/claims")


@app.command(name="list")
def list_(
    ids: Ids = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    lang: Annotated[Literal["en", "zh"], typer.Option(help="The language of the sentences.")] = "en",
    data: Data = "",
    full: Full = False,
    device: Device = "cpu",
    cache: Cache = _CACHE,
) -> None:
    """List the claims: number, sentence, last verdict, effect.

    Example: normscope claims list 0 --lang zh
    """
    from normscope.claims.bench import Bench
    from normscope.claims.ledger import ledger

    rows = ledger(_chosen(ids), size=_size(full), bench=Bench(data, device), cache=cache)
    if as_json:
        told = [
            {
                "id": row.claim.id,
                "kind": row.claim.kind,
                "name": row.claim.name,
                "sentence": row.claim.sentence(lang),
                "verdict": row.verdict,
                "effect": row.summary,
            }
            for row in rows
        ]
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row.claim.id:<5} {row.claim.sentence(lang)}")
        typer.echo(f"      {row.verdict}{f': {row.summary}' if row.summary else ''}")


@app.command()
def run(
    ids: Ids = None,
    all_: Annotated[bool, typer.Option("--all", help="All claims, as when no number is given.")] = False,
    data: Data = "",
    full: Full = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster that runs them; `local` starts one here.")] = "",
    device: Device = "cpu",
    cache: Cache = _CACHE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of the ledger as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run claims, from where the last run stopped, and print their verdicts. Exit code 1 when a run failed.

    Example: normscope claims run --all --quick --workers 2
    """
    from normscope.claims import runner
    from normscope.claims.bench import Bench
    from normscope.claims.ledger import ledger

    if all_ and ids:
        raise typer.BadParameter("give numbers, or --all, not both")
    chosen, bench, size = _chosen(ids), Bench(data, device), _size(full)
    failures, started = [], time.monotonic()

    def tell(job: runner.Job, failure: str | None, done: int, of: int) -> None:
        if failure is not None:
            failures.append(failure)
        if failure is not None or not quiet:
            elapsed = time.monotonic() - started
            left = f"{elapsed:.0f} s, about {elapsed / done * (of - done):.0f} s to go"
            told = f"  failed: {failure}" if failure else ""
            typer.echo(f"[{done}/{of}] {left}  {job.claim} {json.dumps(job.case)}{told}", err=True)

    runner.run(chosen, size=size, bench=bench, cache=cache, workers=workers, ray=ray, progress=tell)
    rows = ledger(chosen, size=size, bench=bench, cache=cache)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=2, ensure_ascii=False))
    else:
        for row in rows:
            typer.echo(f"{row.claim.id:<5} {row.verdict:<24} {row.summary}")
    raise typer.Exit(1 if failures else 0)


@app.command()
def report(
    ids: Ids = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("claims.html"),
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown here, and no page.")] = None,
    essay: Annotated[Path | None, typer.Option(help="Write the essay into this folder, and no page.")] = None,
    lang: Annotated[Literal["en", "zh"], typer.Option(help="The language of the page.")] = "en",
    data: Data = "",
    full: Full = False,
    device: Device = "cpu",
    cache: Cache = _CACHE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write the ledger from the outcomes in the cache: one self-contained HTML page, or CLAIMS.md.

    Example: normscope claims report --markdown CLAIMS.md
    """
    from normscope.claims import page
    from normscope.claims.bench import Bench
    from normscope.claims.essay import essays
    from normscope.claims.ledger import ledger
    from normscope.claims.ledger import markdown as written

    rows = ledger(_chosen(ids), size=_size(full), bench=Bench(data, device), cache=cache)
    texts = {markdown: written(rows)} if markdown else {}
    if essay is not None:
        texts.update({essay / name: text for name, text in essays(rows).items()})
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8", newline="\n")
    if not texts:
        page.write(rows, out, lang=lang)
    if not quiet:
        for file in texts or (out,):
            typer.echo(str(file.resolve()))


@app.command()
def figures(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path("figures"),
    data: Data = "",
    full: Full = False,
    device: Device = "cpu",
    cache: Cache = _CACHE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Redraw the figures that people know from the outcomes in the cache, as SVG. Exit code 1 when runs are missing.

    Example: normscope claims figures -o docs/images/claims
    """
    from normscope.claims import image, runner
    from normscope.claims.bench import Bench
    from normscope.claims.figure import figures
    from normscope.claims.registry import claim

    missing = False
    out.mkdir(parents=True, exist_ok=True)
    for figure in figures():
        ran = runner.load(claim(figure.of), size=_size(full), bench=Bench(data, device), cache=cache)
        if ran.missing:
            missing = True
            typer.echo(f"{figure.name}: {ran.missing} runs are missing; normscope claims run {figure.of}", err=True)
            continue
        for panel, chart in figure.draw(ran.outcomes).items():
            file = out / f"{'-'.join([figure.name, *panel.split()])}.svg"
            file.write_text(image.svg(chart), encoding="utf-8", newline="\n")
            if not quiet:
                typer.echo(str(file))
    raise typer.Exit(1 if missing else 0)


def _size(full: bool) -> str:
    return "full" if full else "quick"


def _chosen(ids: list[str] | None) -> list[Claim]:
    """The claims with these numbers; a number without a dot is an article's."""
    from normscope.claims.registry import claim, claims

    chosen: dict[str, Claim] = {}
    for name in ids or ("0", "1", "2", "3", "4"):
        own = [one for one in claims() if one.id.startswith(f"{name}.")] or [claim(name)]
        chosen.update((one.id, one) for one in own)
    return list(chosen.values())
