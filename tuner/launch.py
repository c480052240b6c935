"""Candidate + base arguments + placement → LaunchSpec(argv, env). Pure, and no secret is in it."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate, Value
from tuner.placement import GpuGroup

CONTAINER_ENGINES = ("docker", "podman", "nerdctl")


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything needed to start one server, but for host and port, which each start chooses afresh.

    `prefix` is numactl and its options or empty; `command` starts vLLM; `arguments` are the model and every flag;
    `env` what is set on top of the inherited environment; `secret_env` names of variables that are handed down from the
    environment of whoever starts the server and whose values are never recorded.
    """

    prefix: tuple[str, ...]
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    secret_env: tuple[str, ...] = ()

    def argv(self, host: str, port: int) -> tuple[str, ...]:
        return (*self.prefix, *self.command, *self.arguments, "--host", host, "--port", str(port))

    @property
    def max_num_seqs(self) -> int | None:
        """The limit that the arguments set, None where vLLM's default holds."""
        words = [part for word in self.arguments for part in word.split("=", 1)]
        given = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--max-num-seqs", "--max_num_seqs")]
        return int(given[-1]) if given and given[-1].isdigit() else None

    @property
    def in_container(self) -> bool:
        return _is_container(self.command)


@dataclass(frozen=True, slots=True)
class LaunchBase:
    """What is the same for every candidate of a study.

    `flags` are those the installed vLLM has: no option is given that it lacks; `extra` are the person's own words
    after `--`, passed on unchanged; `fixed` are the space's constant flags.
    """

    command: tuple[str, ...]
    model: str
    flags: tuple[str, ...]
    fixed: tuple[tuple[str, Value], ...]
    extra: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    secret_env: tuple[str, ...] = ()
    shutdown_timeout_s: int = 10


def launch(base: LaunchBase, candidate: Candidate, group: GpuGroup) -> LaunchSpec:
    values = {**dict(base.fixed), **candidate.as_dict()}
    arguments = [*_model_arguments(base), *(word for flag, value in values.items() for word in _words(flag, value))]
    if "shutdown-timeout" in base.flags and not _mentions(base.extra, "shutdown-timeout"):
        # SIGTERM otherwise force-kills the engine at once (vllm.md section 4).
        arguments += ["--shutdown-timeout", str(base.shutdown_timeout_s)]
    env = dict(base.env)
    # A saved start-up plan ignores gpu-memory-utilization: one candidate would get another's KV cache (vllm.md 0.1).
    env["VLLM_ENABLE_STARTUP_PLAN"] = "0"
    if group.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, group.gpus))
    return LaunchSpec(
        prefix=() if _is_container(base.command) else group.numactl,
        command=_container_env(base.command, env) if _is_container(base.command) else base.command,
        arguments=(*arguments, *base.extra),
        env=tuple(sorted(env.items())),
        secret_env=base.secret_env,
    )


def _model_arguments(base: LaunchBase) -> list[str]:
    # `vllm serve MODEL` is positional; the module entry points and the image's entry point know only --model.
    return [base.model] if base.command[-1] == "serve" else ["--model", base.model]


def _words(flag: str, value: Value) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]


def mentioned_flags(extra: tuple[str, ...]) -> frozenset[str]:
    """Flags (without dashes, `_` as `-`, `--no-x` as `x`) that a person's own words set."""
    names = (w[2:].split("=", 1)[0].replace("_", "-") for w in extra if w.startswith("--") and len(w) > 2)
    return frozenset(name.removeprefix("no-") for name in names)


def given_word(extra: tuple[str, ...], flag: str) -> str | None:
    """What a person's own words set a flag to, the last time they do; None when they do not, or give it no value."""
    found = None
    for word, following in zip(extra, (*extra, "--")[1:], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name.replace("_", "-") == flag:
            found = value if equals else None if following.startswith("--") else following
    return found


def _mentions(extra: tuple[str, ...], flag: str) -> bool:
    return flag in mentioned_flags(extra)


def _is_container(command: tuple[str, ...]) -> bool:
    return bool(command) and command[0].rsplit("/", 1)[-1] in CONTAINER_ENGINES


def _container_env(command: tuple[str, ...], env: dict[str, str]) -> tuple[str, ...]:
    """`docker run …` → `docker run -e A=B …`: the container does not inherit our environment."""
    if "run" not in command:
        return command
    at = command.index("run") + 1
    options = [word for name, value in sorted(env.items()) for word in ("-e", f"{name}={value}")]
    return (*command[:at], *options, *command[at:])
