"""`everface simulate --fleet`: its arguments, and the table of fleets."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from everface.cli.flags import count
from everface.core.errors import BadInput
from everface.core.standard_streams import print_output

if TYPE_CHECKING:
    from everface.models.live_avatar.fleet_options import PipelineOption

HEAD = "pipeline                        GPUs   fps       places  wait p50   p99     waited  refused  used   GPUs mean  peak     GPU-h/stream-h"


def add_fleet_flags(p: argparse.ArgumentParser) -> None:
    fleet = p.add_argument_group("a fleet of pipelines")
    fleet.add_argument("--fleet", type=float, metavar="VIEWERS", help="how a fleet serves so many open sessions, on the average")
    fleet.add_argument("--hours", type=float, default=1.0, metavar="H", help="to simulate (%(default)s)")
    fleet.add_argument("--session-s", type=float, default=300.0, metavar="S", help="mean length of a session (%(default)s)")
    fleet.add_argument("--day", type=float, default=0.0, metavar="SWING", help="a day's curve: at its peak 1 + SWING times the mean (%(default)s)")
    fleet.add_argument("--idle-share", type=float, default=0.0, metavar="P", help="of a session, in which nothing is computed (%(default)s)")
    fleet.add_argument("--warm", type=float, default=0.05, metavar="P", help="free places kept ready, as a share of the taken (%(default)s)")
    fleet.add_argument("--cold-start-s", type=float, default=60.0, metavar="S", help="until another pipeline serves (%(default)s)")
    fleet.add_argument("--patience-s", type=float, default=30.0, metavar="S", help="that a viewer waits for a place (%(default)s)")
    fleet.add_argument("--gpus", type=count, metavar="N", help="most GPUs (default: as many as are needed)")
    fleet.add_argument("--price", type=float, metavar="PRICE", help="of a GPU for an hour: adds the cost of an hour of one stream")


def simulate_fleets(args: argparse.Namespace) -> None:
    """Print a row for each kind of pipeline."""
    from everface.models.live_avatar.fleet_options import pipeline_options
    from everface.runtime.planning.fleet import Fleet, Load, simulate_fleet

    if not 0 <= args.idle_share < 1:
        raise BadInput(f"an idle share of {args.idle_share:g} cannot be used: choose 0 or more, below 1")
    load = Load(args.fleet, args.session_s, swing=args.day, patience_s=args.patience_s)
    options = [_given(args)] if args.step_ms is not None else pipeline_options(args.steps, args.devices or 5)
    lines = [HEAD + ("   cost/stream-h" if args.price else "")]
    notes: set[str] = set()
    for option in options:
        slots = option.places(args.idle_share)
        start = f"{option.name:<30} {option.gpus:>5} {option.fps:6.1f}{' ' if option.measured else '*'} {slots:>10}"
        most = None if args.gpus is None else args.gpus // option.gpus
        if not slots or most == 0:
            lines.append(f"{start}  {'slower than 25 frames a second' if not slots else 'needs more GPUs'}")
            continue
        r = simulate_fleet(load, Fleet(slots, option.gpus, args.warm, args.cold_start_s, most=most), args.hours)
        row = (
            f"{start} {r.wait_p50_s:>8.1f}s {r.wait_p99_s:>6.1f}s {r.waited:>8.2%} {r.refused:>8.2%} {r.utilisation:>6.1%} "
            f"{math.ceil(r.gpus):>9,} {r.gpus_peak:>7,} {r.gpu_hours_per_stream_hour:>14.3f}"
        )
        lines.append(row + (f" {args.price * r.gpu_hours_per_stream_hour:>14.2f}" if args.price else ""))
        if r.scale < 1:
            notes.add(f"simulated at {r.scale:.3g} of its size, where waits are longer than in the whole")
    notes |= {"* forecast from steps measured on an H200 (docs/tuning.md); other rates are measured"} if args.step_ms is None else set()
    print_output("\n".join([*lines, *sorted(notes)]))


def _given(args: argparse.Namespace) -> PipelineOption:
    """The pipeline of the times that were passed."""
    from everface.models.live_avatar import forecast
    from everface.models.live_avatar.fleet_options import PipelineOption
    from everface.models.live_avatar.names import role_specs
    from everface.runtime.planning.forecast import simulate
    from everface.runtime.planning.placement import place

    roles = role_specs(args.steps)
    devices = args.devices or min(5, len(roles))
    decode_ms = forecast.PAPER_DECODE_MS if args.decode_ms is None else args.decode_ms
    times = forecast.block_times(args.steps, args.step_ms, decode_ms, args.transfer_ms, jitter=args.jitter)
    fps = simulate(place(roles, devices), times).fps
    return PipelineOption(f"{args.step_ms:g} ms a step, {args.steps} steps", devices, fps, True)
