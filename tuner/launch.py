"""Candidate + base arguments + placement → LaunchSpecs and their Deployment. Pure, and no secret is in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tuner.candidate import Candidate
from tuner.errors import UsageError
from tuner.flagwords import Value, as_number, flag_names, flag_values, words_for
from tuner.placement import GpuGroup
from tuner.vllm import knobs, variables

CONTAINER_ENGINES = ("docker", "podman", "nerdctl")
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Start of one server, without its host and port.

    `prefix` is numactl and its options or empty. `command` starts vLLM. `arguments` are the model and every flag.
    `env` is set on top of the inherited environment. `secret_env` names variables that the server inherits and whose
    values are never recorded. `flags` are the values that `arguments` set, `gpus` the indices that the server sees;
    both are derived if they are left out, as in records of older studies.
    """

    prefix: tuple[str, ...]
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    secret_env: tuple[str, ...] = ()
    flags: tuple[tuple[str, Value], ...] = ()
    gpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.flags:
            found = flag_values(self.arguments, short=knobs.SHORT_OPTIONS)
            object.__setattr__(self, "flags", tuple(found.items()))
        if not self.gpus:
            visible = dict(self.env).get(VISIBLE_GPUS, "").split(",")
            object.__setattr__(self, "gpus", tuple(int(gpu) for gpu in visible if gpu.isdecimal()))

    def argv(self, host: str, port: int) -> tuple[str, ...]:
        """Return the words to execute."""
        return (*self.prefix, *self.command, *self.arguments, *address_words(host, port))

    def value(self, flag: str) -> Value | None:
        """Return a flag's value, None if vLLM chooses it."""
        return dict(self.flags).get(flag)

    @property
    def max_num_seqs(self) -> int | None:
        """The most sequences at once, None if vLLM's default holds."""
        value = self.value(knobs.MAX_NUM_SEQS)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def shutdown_timeout_s(self) -> int:
        """Return the seconds that open requests get after SIGTERM. vLLM's default is 0."""
        return max(0, math.ceil(as_number(self.value(knobs.SHUTDOWN_TIMEOUT)) or 0))

    @property
    def in_container(self) -> bool:
        """Return True if the command runs a container image."""
        return is_container(self.command)


class Door(StrEnum):
    """Program that takes the requests of a deployment: its only server, vLLM's own data parallelism, or nginx in front
    of independent servers."""

    SERVER = "server"
    VLLM = "vllm"
    NGINX = "nginx"


@dataclass(frozen=True, slots=True)
class Deployment:
    """Servers that are started and ended together, and their door. One server is the ordinary case."""

    specs: tuple[LaunchSpec, ...]
    door: Door = Door.SERVER


@dataclass(frozen=True, slots=True)
class LaunchBase:
    """Launch data that all candidates of a study share. `flags` are those that the installed vLLM has. `extra` are
    the user's own words after `--`, passed on unchanged. `fixed` are the space's constant flags."""

    command: tuple[str, ...]
    model: str
    flags: tuple[str, ...]
    fixed: tuple[tuple[str, Value], ...]
    extra: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    secret_env: tuple[str, ...] = ()
    shutdown_timeout_s: int = 10


def deployment(
    base: LaunchBase, candidate: Candidate, groups: Sequence[GpuGroup], door: Door = Door.SERVER
) -> Deployment:
    """Build the launches of a candidate on all of `groups`, one server each. vLLM's own door is a single launch."""
    if door is not Door.VLLM:
        return Deployment(tuple(launch(base, candidate, group) for group in groups), door)
    whole = GpuGroup(
        gpus=tuple(gpu for group in groups for gpu in group.gpus),
        workers=tuple(worker for group in groups for worker in group.workers),
        cores=tuple(cores for group in groups for cores in group.cores),
    )
    spec = launch(base, candidate, whole, replicas=len(groups))
    return Deployment((spec,), door)


def launch(base: LaunchBase, candidate: Candidate, group: GpuGroup, replicas: int = 1) -> LaunchSpec:
    """Build the launch of one server. The user's own words come last, so that they win. vLLM itself runs `replicas`
    of its engine; the number of servers that a candidate names is a deployment's."""
    values = {**dict(base.fixed), **candidate.as_dict()}
    values.pop(knobs.DATA_PARALLEL, None)
    if replicas > 1:
        values[knobs.DATA_PARALLEL] = replicas
    arguments = [*_model_arguments(base), *(word for flag, value in values.items() for word in words_for(flag, value))]
    given = flag_names(base.extra, short=knobs.SHORT_OPTIONS)
    if knobs.SHUTDOWN_TIMEOUT in base.flags and knobs.SHUTDOWN_TIMEOUT not in given:
        # Without it, SIGTERM kills the engine at once.
        arguments += words_for(knobs.SHUTDOWN_TIMEOUT, base.shutdown_timeout_s)
    env = dict(base.env)
    # A saved start-up plan ignores gpu-memory-utilization: one candidate would get another's KV cache.
    env[variables.STARTUP_PLAN] = "0"
    if group.gpus:
        env[VISIBLE_GPUS] = ",".join(map(str, group.gpus))
    elif group.cores:
        env[variables.CPU_CORES] = "|".join(group.cores)
    return LaunchSpec(
        prefix=() if is_container(base.command) else group.numactl,
        command=_container_env(base, env) if is_container(base.command) else base.command,
        arguments=(*arguments, *base.extra),
        env=tuple(sorted(env.items())),
        secret_env=base.secret_env,
        gpus=group.gpus,
    )


def address_words(host: str, port: int | str) -> tuple[str, ...]:
    """Write the flags of the address that the server listens on."""
    return (*words_for(knobs.HOST, host), *words_for(knobs.PORT, port))


def _model_arguments(base: LaunchBase) -> list[str]:
    # `vllm serve MODEL` is positional; the module entry points and the image's entry point know only the flag.
    return [base.model] if base.command[-1] == "serve" else [*words_for(knobs.MODEL, base.model)]


def is_container(command: tuple[str, ...]) -> bool:
    return bool(command) and command[0].rsplit("/", 1)[-1] in CONTAINER_ENGINES


def check_reachable(command: tuple[str, ...], given: Mapping[str, Value]) -> None:
    """Raise UsageError for a launch whose port can never answer tuner's requests."""
    for name, instead in knobs.NO_PLAIN_PORT.items():
        value = given.get(name)
        if value is not None and value is not False and str(value) != "1":
            raise UsageError(
                f"--{name}: a server with it {instead}, and tuner's requests would never reach it",
                hint="leave it out of the search, and give it where the winner is started",
            )
    if is_container(command) and "run" in command and not _shares_network(command):
        raise UsageError(
            "the container has a network of its own, and every server gets another port of this machine",
            hint=f"share the machine's: {command[0]} run --network host …, without -p",
        )


def _shares_network(command: tuple[str, ...]) -> bool:
    """Tell if a container is reachable at the machine's own ports."""
    words = " ".join(command).replace("=", " ").split()
    return any(word in ("--network", "--net") and value != "bridge" for word, value in itertools.pairwise(words))


def passed_variables(command: Sequence[str]) -> tuple[str, ...]:
    """List the variables that a container takes from the environment of its engine's client: `-e NAME`."""
    after = [word for option, word in itertools.pairwise(command) if option in ("-e", "--env")]
    glued = [word.removeprefix(option) for word in command for option in ("--env=", "-e") if word.startswith(option)]
    return tuple(name for name in (*after, *glued) if name.isidentifier())


def _container_env(base: LaunchBase, env: dict[str, str]) -> tuple[str, ...]:
    """Insert `-e A=B` after `docker run`. A container does not inherit our environment. Secrets go by name alone."""
    command = base.command
    if "run" not in command:
        return command
    at = command.index("run") + 1
    secrets = [name for name in base.secret_env if name not in passed_variables(command)]
    settings = [*(f"{name}={value}" for name, value in sorted(env.items())), *secrets]
    return (*command[:at], *(word for setting in settings for word in ("-e", setting)), *command[at:])
