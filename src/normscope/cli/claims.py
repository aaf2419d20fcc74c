"""``normscope claims``: list the statements of the articles, run them as experiments, write the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from normscope.claims.claim import Claim

app = typer.Typer(
    name="claims",
    help="Every statement of the articles as a runnable experiment with a verdict.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Ids = Annotated[list[str] | None, typer.Argument(help="Claims (0.7) or articles (0); all when left out.")]
Data = Annotated[str, typer.Option("--data", help="A folder of images; scikit-learn's digits when left out.")]
Full = Annotated[bool, typer.Option("--full", help="The full size: hours, for a GPU.")]
Device = Annotated[str, typer.Option(help="Where networks are trained.")]
Cache = Annotated[Path, typer.Option(help="Where outcomes are kept.")]
_CACHE = Path(".normscope/claims")


@app.command(name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    lang: Annotated[Literal["en", "zh"], typer.Option(help="The language of the sentences.")] = "en",
) -> None:
    """List the claims: number, kind, sentence.

    Example: normscope claims list --lang zh
    """
    from normscope.claims.registry import claims

    rows = [{"id": one.id, "kind": one.kind, "name": one.name, "sentence": one.sentence(lang)} for one in claims()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row['id']:<5} {row['kind']:<12} {row['sentence']}")


@app.command()
def run(
    ids: Ids = None,
    data: Data = "",
    full: Full = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    device: Device = "cpu",
    cache: Cache = _CACHE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows of the ledger as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run claims, from where the last run stopped, and print their verdicts. Exit code 1 when a run failed.

    Example: normscope claims run 0.7 2.13 --workers 2
    """
    from normscope.claims import runner
    from normscope.claims.bench import Bench
    from normscope.claims.ledger import ledger

    chosen, bench, size = _chosen(ids), Bench(data, device), "full" if full else "quick"
    failures = []

    def tell(job: runner.Job, failure: str | None) -> None:
        if failure is not None:
            failures.append(failure)
        if failure is not None or not quiet:
            typer.echo(f"{job.claim:<5} {json.dumps(job.case)}{f'  failed: {failure}' if failure else ''}", err=True)

    runner.run(chosen, size=size, bench=bench, cache=cache, workers=workers, progress=tell)
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
    from normscope.claims.ledger import ledger
    from normscope.claims.ledger import markdown as written

    rows = ledger(_chosen(ids), size="full" if full else "quick", bench=Bench(data, device), cache=cache)
    if markdown is not None:
        markdown.write_text(written(rows), encoding="utf-8", newline="\n")
    else:
        page.write(rows, out, lang=lang)
    if not quiet:
        typer.echo(str((markdown or out).resolve()))


def _chosen(ids: list[str] | None) -> list[Claim]:
    """The claims with these numbers; a number without a dot is an article's."""
    from normscope.claims.registry import claim, claims

    chosen: dict[str, Claim] = {}
    for name in ids or ("0", "1", "2", "3", "4"):
        own = [one for one in claims() if one.id.startswith(f"{name}.")] or [claim(name)]
        chosen.update((one.id, one) for one in own)
    return list(chosen.values())
