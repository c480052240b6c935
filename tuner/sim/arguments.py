"""Parser of argv with the errors of `vllm serve`.

It accepts all 317 options of vLLM 0.32.0 (flags.txt). Options that the simulation models have a type; the others
have no effect. Options of the stand-in itself begin with --sim- or are --fault. Each of these also has an
environment variable, so that a search can use them without a change of its command.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.sim.configuration import EngineArguments
from tuner.sim.faults import FAULTS, Fault, parse_fault
from tuner.sim.hardware import PROFILES, Hardware, hardware_profile
from tuner.sim.virtual import Noise

VERSION = "0.32.0+sim"
DESCRIPTION = "Launch a local OpenAI-compatible API server to serve LLM completions via HTTP. (stand-in)"


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Options of the stand-in alone. `startup_s` is the wall time of a whole start; None derives it from hardware
    and model. `disturbance` is the share of speed that each other engine of the machine costs; None is the profile's.
    """

    hardware: Hardware
    speed: float
    noise: Noise
    seed: int
    faults: tuple[Fault, ...]
    state_dir: Path | None
    gpu_dir: Path | None
    startup_s: float | None
    disturbance: float | None = None


@dataclass(frozen=True, slots=True)
class ServeArguments:
    """One `vllm serve` command line. `given` lists the options that were written, as vLLM's log does."""

    model: str
    served_names: tuple[str, ...]
    host: str | None
    port: int
    dtype: str
    shutdown_timeout_s: float
    log_stats: bool
    engine: EngineArguments
    sim: SimOptions
    given: Mapping[str, object]


def human_readable_int(text: str) -> int:
    """Parse 1k = 1000, 1K = 1024 and 1.5k = 1500. Only lower-case letters allow decimals (vLLM,
    utils/argparse_utils.py)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    if match is None:
        return int(text)
    number, letter = match.groups()
    power = "kmgt".index(letter.lower()) + 1
    if letter.islower():
        return int(float(number) * 10 ** (3 * power))
    if "." in number:
        raise argparse.ArgumentTypeError(f"Decimals are not allowed with binary suffixes like {letter}.")
    return int(number) << (10 * power)


def _length(text: str) -> int:
    return -1 if text.strip() in ("auto", "-1") else human_readable_int(text)


TYPES: Mapping[str, Callable[[str], object]] = {
    "--port": int,
    "--max-num-seqs": int,
    "--max-num-active-seqs": int,
    "--max-num-batched-tokens": human_readable_int,
    "--max-num-scheduled-tokens": human_readable_int,
    "--kv-cache-memory-bytes": human_readable_int,
    "--max-model-len": _length,
    "--gpu-memory-utilization": float,
    "--watermark": float,
    "--num-gpu-blocks-override": int,
    "--block-size": int,
    "--long-prefill-token-threshold": int,
    "--tensor-parallel-size": int,
    "--pipeline-parallel-size": int,
    "--data-parallel-size": int,
    "--api-server-count": int,
    "--max-cudagraph-capture-size": int,
    "--stream-interval": int,
    "--shutdown-timeout": int,
    "--optimization-level": int,
}


class _VllmParser(argparse.ArgumentParser):
    """Parser that prints errors as vLLM does. It reads `--max_num_seqs` as `--max-num-seqs`."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"usage: vllm serve [model_tag] [options]\nvllm: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _VllmParser(prog="vllm serve", usage="vllm serve [model_tag] [options]", description=DESCRIPTION)
    parser.add_argument("model_tag", nargs="?", help="The model tag to serve (optional if specified in config)")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for line in (Path(__file__).parent / "flags.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        group, declaration, default = (part.strip() for part in line.split(" | "))
        if "--help" in declaration:
            continue
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add_flag(groups[group], declaration, default)
    _add_sim_options(parser.add_argument_group("stand-in"))
    return parser


def _add_flag(group: argparse._ArgumentGroup, declaration: str, default: str) -> None:
    """Add the flag that one line of flags.txt declares. Forms: `--a VALUE, -b VALUE`, `--a {x,y}`, `--a V [V ...]`,
    `--a, --no-a`, `--a`."""
    names = [part for part in re.split(r"[,\s]+", re.sub(r"\{[^}]*\}", "", declaration)) if part.startswith("-")]
    text = f"(default: {default})"
    positive = [name for name in names if not name.startswith("--no-")]
    if len(positive) < len(names):
        group.add_argument(*positive, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    if len(declaration.split()) == 1:
        group.add_argument(*names, action="store_true", default=None, help=text)
        return
    choices = re.search(r"\{([^}]*)\}", declaration)
    long = next(name for name in names if name.startswith("--"))
    several = "..." in declaration
    group.add_argument(
        *names,
        type=TYPES.get(long, str),
        choices=choices.group(1).split(",") if choices and not several and long not in TYPES else None,
        nargs="*" if several else None,
        metavar=None if choices and not several and long not in TYPES else long[2:].upper().replace("-", "_"),
        default=None,
        help=text,
    )


def _add_sim_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--sim-profile", help=f"hardware: {', '.join(PROFILES)} (TUNER_SIM_PROFILE; default: h100)")
    group.add_argument("--sim-speed", type=float, help="times faster than the wall clock (TUNER_SIM_SPEED; default: 1)")
    group.add_argument("--sim-startup-s", type=float, help="wall seconds of a start (TUNER_SIM_STARTUP_S)")
    group.add_argument("--sim-noise", help="standard deviation of speed: RUN,STEP or one for both (TUNER_SIM_NOISE)")
    group.add_argument("--sim-seed", type=int, help="seed of the noise (TUNER_SIM_SEED; default: 0)")
    group.add_argument("--sim-state", help="folder that counts starts (TUNER_SIM_STATE)")
    group.add_argument(
        "--sim-disturbance",
        type=float,
        help="share of speed that each other engine of the machine costs (TUNER_SIM_DISTURBANCE; default: by profile)",
    )
    group.add_argument("--sim-gpu-dir", help="folder that says who holds GPU memory (TUNER_SIM_GPU_DIR)")
    names = ", ".join(FAULTS)
    group.add_argument(
        "--fault", action="append", help=f"NAME[:ARG][@START][%%WHERE] (TUNER_SIM_FAULTS); one of {names}"
    )


def wants_help(argv: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") or word.startswith("--help=") for word in argv)


def parse(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> ServeArguments:
    """Parse `serve MODEL --flag …`, without the program name. Exits as argparse does: 0 after --help, 2 after an
    error."""
    words = [_dashes(word) for word in (argv[1:] if argv[:1] == ["serve"] else argv)]
    parser = build_parser()
    if wants_help(words):
        parser.print_help()
        parser.exit(0)
    parsed = parser.parse_args(words)
    values: dict[str, object] = {name: value for name, value in vars(parsed).items() if value is not None}
    try:
        sim = _sim_options(values, environment)
    except (KeyError, ValueError) as error:
        parser.error(str(error.args[0]))
    given = {name: value for name, value in values.items() if not name.startswith("sim_") and name != "fault"}
    model = str(values.get("model_tag") or values.get("model") or "Qwen/Qwen3-0.6B")
    names = values.get("served_model_name")
    served = tuple(str(name) for name in names) if isinstance(names, list) and names else (model,)
    return ServeArguments(
        model=model,
        served_names=served,
        host=str(values["host"]) if "host" in values else None,
        port=_number(values, "port", 8000),
        dtype=str(values.get("dtype", "auto")),
        shutdown_timeout_s=float(_number(values, "shutdown_timeout", 0)),
        log_stats="disable_log_stats" not in values,
        engine=_engine_arguments(values, environment),
        sim=sim,
        given=given,
    )


def _dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _number(values: Mapping[str, object], name: str, default: int) -> int:
    value = values.get(name, default)
    return value if isinstance(value, int) else default


def _engine_arguments(values: Mapping[str, object], environment: Mapping[str, str]) -> EngineArguments:
    known = {name: values[name] for name in EngineArguments.__dataclass_fields__ if name in values}
    gibibytes = environment.get("VLLM_CPU_KVCACHE_SPACE", "")
    if gibibytes.isdigit():
        known["kv_cache_memory_bytes"] = int(gibibytes) << 30
    return EngineArguments(**known)  # type: ignore[arg-type]  # argparse has checked each by TYPES


def _sim_options(values: Mapping[str, object], environment: Mapping[str, str]) -> SimOptions:
    def option(name: str, default: str = "") -> str:
        value = values.get(f"sim_{name}")
        return str(value) if value is not None else environment.get(f"TUNER_SIM_{name.upper()}", "") or default

    written = values.get("fault")
    texts = [str(text) for text in written] if isinstance(written, list) else []
    texts += [text for text in environment.get("TUNER_SIM_FAULTS", "").split(",") if text.strip()]
    run, _, step = option("noise", "0").partition(",")
    startup = option("startup_s")
    speed = float(option("speed", "1"))
    if speed <= 0.0:
        raise ValueError(f"--sim-speed should be above 0, not {speed}")
    return SimOptions(
        hardware=hardware_profile(option("profile", "h100")),
        speed=speed,
        noise=Noise(float(run), float(step or run)),
        seed=int(option("seed", "0")),
        faults=tuple(parse_fault(text) for text in texts),
        state_dir=Path(option("state")) if option("state") else None,
        gpu_dir=Path(option("gpu_dir")) if option("gpu_dir") else None,
        startup_s=float(startup) if startup else None,
        disturbance=float(option("disturbance")) if option("disturbance") else None,
    )
