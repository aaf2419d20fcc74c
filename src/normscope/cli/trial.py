"""``normscope trial``: a treatment against no treatment, seed by seed, from the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from normscope.terms.finding import Prescription
    from normscope.terms.verdict import Trial


def command(
    factory: Annotated[
        str, typer.Argument(help="package.module:function; the function returns (build, train_step) and perhaps data.")
    ],
    treatment: Annotated[str | None, typer.Option(help="A treatment by name, such as insert_norm.")] = None,
    argument: Annotated[list[str] | None, typer.Option(help="name=value of the treatment, JSON or a word.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Module paths to treat; all when left out.")] = None,
    record: Annotated[Path | None, typer.Option(help="A run whose diagnosis prescribes the treatment.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 3,
    stop_early: Annotated[bool, typer.Option("--stop-early", help="Stop when the interval decides.")] = False,
    path: Annotated[Path | None, typer.Option("--path", help="A run in whose record the trial is saved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train with and without a treatment and say which ends lower. Exit code 0 when it helps, 1 when not.

    Example: normscope trial mypackage.train:parts --treatment insert_norm --argument norm=GroupNorm --steps 300
    """
    from normscope.cli.factory import parts
    from normscope.terms.verdict import Verdict
    from normscope.treat.ranks import rank_and_size
    from normscope.treat.trial import trial

    build, train_step, data = parts(factory)
    prescriptions = _prescriptions(treatment, argument or [], site or [], record)
    joined = _meet()
    first = rank_and_size()[0] == 0

    def tell(arm: str, seed: int, step: int) -> None:
        if first and not quiet and step + 1 == steps:
            typer.echo(f"seed {seed}  {arm}  {steps} steps", err=True)

    result = trial(
        build,
        train_step,
        prescriptions,
        steps=steps,
        seeds=range(seeds),
        path=path,
        data=data,
        stop_early=stop_early,
        progress=tell,
    )
    if first:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else _told(result))
    if joined:
        _part()
    raise typer.Exit(0 if result.verdict is Verdict.HOLDS else 1)


def _prescriptions(
    treatment: str | None, arguments: list[str], sites: list[str], record: Path | None
) -> tuple[Prescription, ...]:
    from normscope.terms.finding import Prescription
    from normscope.treat.treatment import prescribed

    if (treatment is None) == (record is None):
        raise typer.BadParameter("give either --treatment NAME or --record RUN")
    if record is not None:
        from normscope.diagnose.engine import diagnose

        return prescribed(diagnose(record))
    assert treatment is not None
    settings = dict(_setting(text) for text in arguments)
    words = treatment + "".join(f" {name}={value}" for name, value in settings.items())
    return (Prescription(treatment, tuple(sites), settings, words),)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--argument takes name=value, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _meet() -> bool:
    """Join the other ranks that torchrun has started, unless the factory has done so; whether they were joined."""
    import torch
    import torch.distributed as dist

    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys() or not dist.is_available() or dist.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def _part() -> None:
    """Leave when all have come: a rank that leaves while another still talks takes it down."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def _told(result: Trial) -> str:
    effect = result.effect
    lines = [
        f"{result.treatment}: {result.verdict}",
        f"  {effect.unit} {effect.value:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}] at {effect.confidence:.4g}, "
        f"{effect.method}",
    ]
    lines += [f"  {arm.name}, seed {seed}: broke off at {why}" for arm in result.arms for seed, why in arm.broke]
    return "\n".join([*lines, *(f"  {note}" for note in result.notes)])
