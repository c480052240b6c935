"""Command-line flags → StudyPlan. Every user error is caught here, before a server starts."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from tuner.bench.capacity_search import SearchSettings
from tuner.candidate import Value
from tuner.capacity import GIB
from tuner.doors import DoorChoice, chosen_doors, lacks, parse_door
from tuner.environment import Environment, Gpu, describe
from tuner.errors import UsageError
from tuner.flagwords import flag_names, flag_values, number
from tuner.launch import LaunchBase, check_reachable, is_container, passed_variables
from tuner.layout import AUTO, FLAGS
from tuner.layout.choice import Units, chosen_layouts, layout_parameters
from tuner.layout.request import layout_request
from tuner.layout.rules import Memory, limits_of
from tuner.load.arrivals import chosen_arrivals
from tuner.load.fit import fitted, local_counter
from tuner.load.workload import Workload, with_body, workload
from tuner.measurement import LoadKind
from tuner.model import GGUF, folder_of
from tuner.own_words import (
    absolute_command,
    absolute_flags,
    absolute_space,
    absolute_storage,
    check_own_flags,
    check_whole_names,
)
from tuner.placement import core_shares, own_cores, parse_gpus
from tuner.secrecy import is_secret, mask_password
from tuner.secret_words import part_command, part_flags, part_space
from tuner.server.door import nginx_program
from tuner.slo import parse_slo
from tuner.space.files import read_space
from tuner.space.space import Space
from tuner.study.begin import begins_with
from tuner.study.kv_budget import KV_BYTES, LENGTH, UTILIZATION, beside_others
from tuner.study.length_choice import checked_length, needed_tokens, own_length, with_length
from tuner.study.own_files import storage_in
from tuner.study.plan import Ladder, LoadPolicy, OpenSearch, StudyPlan
from tuner.vllm import knobs, variables
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.flags import installed_vllm

DEFAULT_SLOS = ("p99 ttft <= 500ms",)
LADDER = (10, 30, 64, 128, 200, 256)


class ChangedEnvironment(StrEnum):
    """Consent to resume a study in a changed environment."""

    REFUSED = "refused"
    ALLOWED = "allowed"


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs of this machine with their NUMA nodes, and the driver. Empty without GPUs.

    `without_p2p` are the pairs of GPUs that are known to lack P2P: they cannot read each other's memory. `held` is the
    share of each GPU's memory that others hold, empty if none does.
    """

    gpus: tuple[Gpu, ...] = ()
    numa_nodes: tuple[int | None, ...] = ()
    driver: str | None = None
    without_p2p: tuple[tuple[int, int], ...] = ()
    held: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Flags of `tuner search`. `earlier` is the folder of --from, None without. `given` names those on the command
    line; None if all are meant."""

    model: str
    gpus: str | None = None
    slos: tuple[str, ...] = DEFAULT_SLOS
    workload: str = "chat"
    space: str = "default"
    max_model_len: str | None = None
    trials: int = 60
    confirm: int = 4
    time_budget: str = "8h"
    patience: int | None = None
    study: str | None = None
    studies: Path = Path("studies")
    vllm: str = "vllm serve"
    layouts: str = AUTO
    tensor_parallel_size: int | None = None
    door: str = DoorChoice.AUTO
    workers: int | None = None
    seed: int = 0
    storage: str | None = None
    load: str | None = None
    levels: str | None = None
    level_seconds: float = 60.0
    probe_seconds: float | None = None
    burstiness: float | None = None
    natural_stops: bool = False
    extra_body: str | None = None
    warm_up_seconds: float = 15.0
    start_limit_seconds: float = 1800.0
    changed_environment: ChangedEnvironment = ChangedEnvironment.REFUSED
    earlier: Path | None = None
    extra: tuple[str, ...] = ()
    given: frozenset[str] | None = None


def plan_study(
    options: SearchOptions, machine: Machine, now: datetime, cache: Path, say: Callable[[str], None]
) -> tuple[StudyPlan, Environment]:
    """Check the options and plan the study. Starts nothing but the probe of vLLM's flags. Raises UsageError or
    EnvironmentFaultError with the first fault."""
    model = checked_model(options.model)
    slos = tuple(dict.fromkeys(parse_slo(text) for text in options.slos))
    load = with_body(workload(options.workload), natural_stops=options.natural_stops, extra_body=options.extra_body)
    space, of_space = _checked_space(options.space)
    policy = _load(options, load)
    _check_counts(options)
    budget_s = parse_duration(options.time_budget)
    indices = parse_gpus(options.gpus, [gpu.index for gpu in machine.gpus])
    door = parse_door(options.door)
    units = _units(options, machine, indices)
    own = part_flags(options.extra)
    request = layout_request(options.layouts, options.tensor_parallel_size, absolute_flags(own.words), units)
    extra = request.extra
    given = flag_values(extra, short=knobs.SHORT_OPTIONS)
    own_flags = flag_names(extra, short=knobs.SHORT_OPTIONS)
    asked = _asked_length(options, own_flags)
    check_own_flags(extra, given)
    limit = own_length(model, own_flags)
    if load.file is not None:
        say(f"counting the tokens of {load.name}")
        known = (asked, given.get(LENGTH), _constant(space).get(LENGTH), None if limit is None else limit.most)
        accepted = [tokens for tokens in known if isinstance(tokens, int) and tokens > 0]
        load = fitted(load, local_counter(model), min(accepted, default=None))
    _check_own_length(given, load)
    needed = needed_tokens(load, limit)
    if asked is not None:
        checked_length(asked, needed, limit)
    given_command = part_command(options.vllm)
    command = absolute_command(given_command.words)
    check_reachable(command, {**flag_values(command, short=knobs.SHORT_OPTIONS), **given})
    if max(own.keys, given_command.keys) > 1:
        say("caution: measured servers get the first API key alone; give start.sh's server the others yourself")
    if knobs.CONFIG in given:
        say(f"caution: the file of --{knobs.CONFIG} reaches the default too, which is then not vLLM's own")
    say(f"asking {shlex.join(command)!r} which flags it has")
    vllm = installed_vllm(command, cache / "flags")
    check_whole_names(own_flags, vllm.flags)
    space, dropped = space.needs_at_least(asked or needed).on(vllm.flags, vllm.version, own_flags)
    used = tuple(gpu for gpu in machine.gpus if gpu.index in indices)
    held = (share for gpu, share in zip(machine.gpus, machine.held, strict=False) if gpu in used)
    space = beside_others(space, max(held, default=0.0), say)
    defaults = vllm_defaults(vllm.version, used)
    units = replace(units, memory=_memory(used, space, given, defaults))
    limits = limits_of(folder_of(model), {**_constant(space), **given}, own_flags.union(space.flags))
    choice = chosen_layouts(units, limits, Path(model).name, request.layouts)
    planned = [placed.layout for placed in choice.layouts]
    space = replace(space, parameters=space.parameters + layout_parameters(planned))
    has_nginx = nginx_program() is not None
    lacking = lacks(vllm.flags, has_experts=limits.has_experts, in_container=is_container(command), has_nginx=has_nginx)
    name = options.study or _usual_name(Path(model).name, load.name, now)
    folder = options.studies.absolute() / checked_study_name(name)
    inherited = {variables.API_KEY, *filter(is_secret, passed_variables(command))} & set(os.environ)
    plan = StudyPlan(
        study=folder.name,
        model=model,
        slos=slos,
        workload=load,
        space=space,
        dropped=dropped,
        base=LaunchBase(
            command=command,
            model=model,
            flags=vllm.flags,
            fixed=space.always + choice.constant,
            extra=extra,
            env=space.env,
            secret_env=tuple(sorted({*of_space, *given_command.secrets, *own.secrets, *inherited})),
        ),
        layouts=choice.layouts,
        own_layout=choice.own,
        vllm_version=vllm.version,
        asked_layouts=tuple(request.layouts or ()),
        units=units.indices,
        ruled_out=choice.ruled_out,
        doors=chosen_doors(door, lacking, planned),
        compares_doors=door is DoorChoice.BOTH and any(layout.replicas > 1 for layout in planned),
        load=policy,
        starts=options.trials,
        confirm_starts=options.confirm,
        time_budget_s=budget_s,
        start_limit_s=options.start_limit_seconds,
        seed=options.seed,
        storage=mask_password(absolute_storage(options.storage)) if options.storage else storage_in(folder),
        created_at=now.isoformat(timespec="seconds"),
        patience=options.patience,
    )
    plan = with_length(plan, asked, needed, limit, used, defaults)
    environment = describe(vllm.version, model, used, machine.driver)
    if options.earlier is not None:
        plan = replace(plan, begins_with=begins_with(options.earlier, plan, environment))
    return plan, environment


def _usual_name(model: str, load: str, now: datetime) -> str:
    """Name a study after model, workload and time. Long names of files are cut."""
    parts = re.sub(r"[^\w.+-]", "-", f"{model[:40]}-{load[:40]}-{now.astimezone():%m%d-%H%M}")
    return re.sub(r"^\W+", "", parts)


def checked_study_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
        raise UsageError(f"the study name {name!r} cannot be a folder", hint="letters, digits and . _ + - only")
    return name


def checked_model(text: str) -> str:
    """Return an absolute folder or GGUF file, or a hub name. start.sh then works from anywhere."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~user who does not exist
        raise UsageError(f"no model at {text!r}", hint=str(error)) from error
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise UsageError(f"{text} has no config.json", hint="give the folder that the model was downloaded to")
        return str(path.resolve())
    if path.is_file() and path.suffix == GGUF:
        return str(path.absolute())
    looks_local = text.startswith((".", "/", "~")) or text.count("/") != 1 or path.parent.is_dir()
    if looks_local or not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", text):  # org/name, of GGUF files org/name:QUANT
        raise UsageError(f"no model at {text!r}", hint="a folder with config.json, or a hub name such as Qwen/Qwen3-8B")
    return text


def parse_duration(text: str) -> float | None:
    """Parse `8h`, `90m`, `1h30m` or `45s` into seconds, and `none` into None."""
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)s)?\s*", text)
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if not 0 < seconds < math.inf:
        raise UsageError(f"the time {text!r} does not parse", hint="write 8h, 90m, 1h30m, or none for no limit")
    return seconds


def secrets_of(options: SearchOptions) -> dict[str, str]:
    """Return the secrets among the options, by variable. vLLM's own flags win, as they do on a command line."""
    _, of_space = _checked_space(options.space)
    return {**of_space, **part_command(options.vllm).secrets, **part_flags(options.extra).secrets}


def _load(options: SearchOptions, load: Workload) -> LoadPolicy:
    """Choose the load, open unless the ladder is requested. --probe-seconds scales the other lengths."""
    kind = options.load or (LoadKind.OPEN if options.levels is None else LoadKind.CLOSED)
    if kind not in tuple(LoadKind):
        raise UsageError(
            f"there is no load {kind!r}", hint="open (requests arrive by chance) or closed (a ladder of --levels)"
        )
    if kind == LoadKind.CLOSED:
        if options.burstiness is not None:
            raise UsageError("--burstiness is of an open loop", hint="a closed loop sends when an answer has come")
        levels = LADDER if options.levels is None else parse_levels(options.levels)
        return Ladder(levels, options.level_seconds, options.warm_up_seconds)
    if options.levels is not None:
        raise UsageError("--levels are a closed loop's, --load is open", hint="leave one out, or say --load closed")
    arrivals = chosen_arrivals(options.burstiness, load)
    usual = SearchSettings()
    probe_s = usual.probe_s if options.probe_seconds is None else options.probe_seconds
    scale = probe_s / usual.probe_s
    settings = replace(
        usual,
        probe_s=probe_s,
        saturation_s=usual.saturation_s * scale,
        longest_probe_s=usual.longest_probe_s * max(scale, 1.0),
        claim_s=usual.claim_s * scale,
        claim_requests=usual.claim_requests * scale,
        longest_claim_s=usual.longest_claim_s * scale,
    )
    return OpenSearch(options.warm_up_seconds, settings, arrivals)


def parse_levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) < 1 or list(levels) != sorted(set(levels)):
        raise UsageError(f"--levels {text!r} does not parse", hint="rising concurrencies, such as 10,30,64")
    return levels


def _check_counts(options: SearchOptions) -> None:
    numbers: tuple[tuple[str, float, int], ...] = (
        ("--trials", options.trials, 1),
        ("--confirm", options.confirm, 0),
        ("--level-seconds", options.level_seconds, 1),
        ("--probe-seconds", 1 if options.probe_seconds is None else options.probe_seconds, 1),
        ("--warm-up-seconds", options.warm_up_seconds, 0),
        ("--start-limit-seconds", options.start_limit_seconds, 1),
        ("--seed", options.seed, 0),
        ("--workers", 1 if options.workers is None else options.workers, 1),
        ("--patience", 1 if options.patience is None else options.patience, 1),
    )
    for name, value, least in numbers:
        if not math.isfinite(value) or value < least:
            raise UsageError(f"{name} {value:g} is out of range", hint=f"at least {least}")
    if options.confirm == 1:
        raise UsageError(
            "--confirm 1 compares nothing", hint="0, or 2 and more: winner and default have a fresh start each"
        )


def _asked_length(options: SearchOptions, own_flags: frozenset[str]) -> int | None:
    """Read --max-model-len, with vLLM's suffixes. None if it is left to the plan."""
    text = options.max_model_len
    if text is None:
        return None
    if LENGTH in own_flags:
        raise UsageError(
            "--max-model-len stands before and after --", hint="keep the first: it goes to every server too"
        )
    tokens = number(text.strip())
    if not isinstance(tokens, int) or tokens < 1:
        raise UsageError(
            f"--max-model-len {text!r} does not parse", hint="tokens, such as 8192, 8k (8,000) or 8K (8,192)"
        )
    return tokens


def _check_own_length(given: dict[str, Value], load: Workload) -> None:
    own = given.get(LENGTH)
    if isinstance(own, int) and not isinstance(own, bool) and 0 < own < load.longest:
        raise UsageError(
            f"--max-model-len {own} cannot hold the workload's {load.longest} tokens",
            hint="vLLM would cut answers short and look faster: raise it, or choose a shorter workload",
        )


def _units(options: SearchOptions, machine: Machine, gpus: tuple[int, ...]) -> Units:
    """Return what the servers share among them: the GPUs, or the CPU's cores."""
    workers = options.workers or 1
    if not gpus:
        return Units(shares=core_shares(workers, own_cores()) if workers > 1 else ())
    if options.workers is not None:
        raise UsageError("--workers divides a CPU, and there are GPUs", hint="choose GPUs with --gpus instead")
    nodes = dict(zip((gpu.index for gpu in machine.gpus), machine.numa_nodes, strict=False))
    return Units(gpus, nodes, without_p2p=machine.without_p2p)


def _checked_space(text: str) -> tuple[Space, dict[str, str]]:
    """Read the space, and its secrets by variable. It leaves the layout alone, because that decides where servers
    run."""
    space, secrets = part_space(read_space(text))
    if named := next((flag for flag in space.flags if flag in FLAGS), None):
        raise UsageError(
            f"space {space.name!r} names {named}", hint=f"take it out, and choose layouts: --layouts {AUTO}, or 4x1,2x2"
        )
    return absolute_space(space), secrets


def _constant(space: Space) -> dict[str, Value]:
    return {**dict(space.always), **dict(space.fixed)}


def _memory(
    gpus: tuple[Gpu, ...], space: Space, given: Mapping[str, Value], defaults: Mapping[str, Value]
) -> Memory | None:
    """Return the memory of the smallest GPU with the largest share of it that any server takes. None without GPUs."""
    if not gpus:
        return None
    shares: list[Value] = [given.get(UTILIZATION, 0.0)]
    if UTILIZATION not in given:
        shares = [value for flag, value in {**_constant(space), **dict(space.baseline)}.items() if flag == UTILIZATION]
        shares += [defaults[UTILIZATION]]
        shares += [v for p in space.parameters if p.flag == UTILIZATION for v in p.choices or (p.high,)]
    if KV_BYTES in given or KV_BYTES in space.flags:
        shares = [1.0]  # vLLM ignores the share then
    return Memory(int(min(gpu.memory_gib for gpu in gpus) * GIB), max(float(share) for share in shares))
