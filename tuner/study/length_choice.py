"""Choice of the longest request that a study's servers accept, and what follows from it for the space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tuner.candidate import Value
from tuner.capacity import KvRoom, ModelMemory
from tuner.environment import Gpu
from tuner.errors import UsageError
from tuner.flagwords import flag_names
from tuner.kv.config_json import UnknownModelError, read_config
from tuner.load.fit import TEMPLATE_TOKENS
from tuner.load.workload import Workload
from tuner.model import ModelLength, folder_of, model_length
from tuner.space.parameter import Kind
from tuner.space.space import Dropped
from tuner.study.kv_budget import LENGTH, default_room
from tuner.study.plan import StudyPlan
from tuner.study.request_length import LengthSource, RequestLength
from tuner.study.setting import StudySetting
from tuner.vllm import knobs

UNMODELLED_FACTOR = 2
"""Times the length that must fit where the arithmetic leaves out a part of the memory."""

CHUNKED, BATCHED = knobs.ENABLE_CHUNKED_PREFILL, knobs.MAX_NUM_BATCHED_TOKENS


def own_length(model: str, own_flags: frozenset[str]) -> ModelLength | None:
    """Derive the model's length from its folder and the names of the user's flags. None if it is not known here.
    Raises UsageError if config.json is not understood."""
    folder = folder_of(model)
    if folder is None or own_flags.intersection(knobs.CHANGE_CONFIG):
        return None
    try:
        return model_length(read_config(folder), window_off=knobs.DISABLE_SLIDING_WINDOW in own_flags)
    except UnknownModelError as error:
        raise UsageError(str(error), hint="the model's config.json must be a JSON object") from error


def needed_tokens(workload: Workload, model: ModelLength | None) -> int:
    """Return the length that the workload needs, with room for a chat template. Raises UsageError if the model
    cannot take the workload's longest request."""
    needed = workload.longest + TEMPLATE_TOKENS
    if model is None:
        return needed
    if workload.longest >= model.most:
        raise UsageError(
            f"workload {workload.name!r} needs {workload.longest} tokens a request, the model takes {model.most}",
            hint="choose a workload with shorter requests",
        )
    return min(needed, model.most)


def checked_length(asked: int, needed: int, model: ModelLength | None) -> int:
    """Return `asked`, the value of --max-model-len. Raises UsageError if no server could keep it."""
    if asked < needed:
        raise UsageError(
            f"--max-model-len {asked} cannot hold the workload's {needed} tokens, chat template included",
            hint=f"at least {needed}, or a workload with shorter requests",
        )
    if model is not None and asked > model.most:
        raise UsageError(
            f"--max-model-len {asked} is above the model's length of {model.most}",
            hint=f"vLLM refuses it: at most {model.most}, or leave it out for what the KV cache holds",
        )
    return asked


def with_length(
    plan: StudyPlan,
    asked: int | None,
    needed: int,
    model: ModelLength | None,
    gpus: tuple[Gpu, ...],
    defaults: Mapping[str, Value],
) -> StudyPlan:
    """Return the plan with the longest request chosen, and its space and its servers' flags adapted. Raises
    UsageError if `asked` contradicts the space or the user's own flags."""
    try:
        found = default_room(StudySetting.of(plan, defaults, gpus), needed)
    except UnknownModelError:
        found = None
    length = _chosen(plan, asked, needed, model, found)
    if length.tokens is None:
        return replace(plan, length=length)
    space, dropped = plan.space, plan.dropped
    if length.source in (LengthSource.ASKED, LengthSource.MODEL):
        space = space.requiring(LENGTH, length.tokens)
    elif length.only_the_workload:
        space = space.fixing(LENGTH, length.tokens)
    if why := _never_unchunked(plan, length.tokens):
        space, dropped = space.without(CHUNKED), (*dropped, Dropped(CHUNKED, why))
    fixed = tuple({**dict(plan.base.fixed), **dict(space.always)}.items())
    return replace(plan, space=space, dropped=dropped, base=replace(plan.base, fixed=fixed), length=length)


def _chosen(
    plan: StudyPlan, asked: int | None, needed: int, model: ModelLength | None, found: tuple[KvRoom, ModelMemory] | None
) -> RequestLength:
    own = None if model is None else max(model.own, needed)
    tokens, source = _from_user(plan, asked, needed) or (needed, _from_model(plan, own, found))
    if source is LengthSource.MODEL:
        tokens = own
    shown = own if source is LengthSource.NO_ROOM else tokens
    return RequestLength(tokens, source, own, None if found is None else found[0].tokens_of(shown or found[0].longest))


def _from_user(plan: StudyPlan, asked: int | None, needed: int) -> tuple[int | None, LengthSource] | None:
    """Take the length from the user's flags or the space. None if they leave it open."""
    if LENGTH in flag_names(plan.base.extra, short=knobs.SHORT_OPTIONS):
        given = plan.given.get(LENGTH)
        return given if isinstance(given, int) and given > 0 else None, LengthSource.OWN_FLAG
    if (parameter := next((p for p in plan.parameters if p.flag == LENGTH), None)) is not None:
        numbers = [c for c in parameter.choices if isinstance(c, int)] or [int(parameter.low)]
        return min(numbers), LengthSource.SEARCHED
    constant = {**dict(plan.space.fixed), **dict(plan.space.always)}.get(LENGTH)
    if isinstance(constant, int) and constant < (asked or needed):
        who = f"--max-model-len asks for {asked}" if asked else f"the workload needs {needed}"
        raise UsageError(
            f"space {plan.space.name!r} fixes {LENGTH} to {constant}, {who}", hint=f"take {LENGTH} out of the space"
        )
    if asked is not None:
        return asked, LengthSource.ASKED
    return None if constant is None else (constant if isinstance(constant, int) else None, LengthSource.SPACE)


def _from_model(plan: StudyPlan, own: int | None, found: tuple[KvRoom, ModelMemory] | None) -> LengthSource:
    """Return MODEL if the default's KV cache surely holds a request of the model's own length, else the reason."""
    if own is None:
        here = folder_of(plan.model) is not None or ":" in plan.model or Path(plan.model).exists()
        return LengthSource.LENGTH_UNKNOWN if here else LengthSource.NOT_ON_DISK
    if found is None:
        return LengthSource.MEMORY_UNKNOWN
    room, memory = found
    fits = room.surely_admits(own * (UNMODELLED_FACTOR if memory.not_modelled else 1))
    return LengthSource.MODEL if fits else LengthSource.NO_ROOM


def _never_unchunked(plan: StudyPlan, tokens: int) -> str | None:
    """Say why chunked prefill cannot be off: without it a batch must hold a whole prompt."""
    if CHUNKED not in {p.flag for p in plan.parameters}:
        return None
    searched = [p for p in plan.parameters if p.flag == BATCHED and p.kind is not Kind.CHOICE]
    highest = searched[0].high if searched else plan.given.get(BATCHED)
    if not isinstance(highest, (int, float)) or highest >= tokens:
        return None
    return f"off needs {BATCHED} of at least {LENGTH} {tokens}, above {highest:g}"
