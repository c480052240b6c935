"""Choice of the longest request that a study's servers accept, and what follows from it for the space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tuner.candidate import Value
from tuner.capacity import KvRoom, ModelMemory
from tuner.environment import Gpu
from tuner.errors import UsageError
from tuner.flagwords import flag_names
from tuner.load.workload import Workload
from tuner.model import ModelLength, UnknownModelError, folder_of, model_length, read_config
from tuner.space.parameter import Kind
from tuner.space.space import Dropped
from tuner.study.kv_budget import LENGTH, default_room
from tuner.study.plan import StudyPlan
from tuner.study.request_length import LengthSource, RequestLength
from tuner.study.setting import StudySetting
from tuner.vllm import knobs

TEMPLATE_TOKENS = 128
"""Tokens of room for the chat template around a prompt."""

UNMODELLED_FACTOR = 2
"""Times the length that must fit where the arithmetic leaves out a part of the memory."""

CHUNKED, BATCHED = knobs.ENABLE_CHUNKED_PREFILL, knobs.MAX_NUM_BATCHED_TOKENS


def own_length(model: str, own_flags: frozenset[str]) -> ModelLength | None:
    """Derive the model's length from its folder and the names of the user's flags. None if it is not known here.

    Raises UsageError if config.json is not understood.
    """
    folder = folder_of(model)
    if folder is None or own_flags.intersection(knobs.CHANGE_CONFIG):
        return None
    try:
        return model_length(read_config(folder), window_off=knobs.DISABLE_SLIDING_WINDOW in own_flags)
    except UnknownModelError as error:
        raise UsageError(str(error), hint="the model's config.json must be a JSON object") from error


def needed_tokens(workload: Workload, model: ModelLength | None) -> int:
    """Return the length that the workload needs, with room for a chat template.

    Raises UsageError if the model cannot take the workload's longest request.
    """
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
    """Return the plan with the longest request chosen, and its space and its servers' flags adapted.

    Raises UsageError if `asked` contradicts the space or the user's own flags.
    """
    try:
        found = default_room(StudySetting.of(plan, defaults, gpus))
    except UnknownModelError:
        found = None
    length = _chosen(plan, asked, needed, model, found)
    space = plan.space
    if length.tokens is not None and length.source in (LengthSource.ASKED, LengthSource.MODEL):
        space = space.requiring(LENGTH, length.tokens)
    elif length.tokens is not None and length.only_the_workload:
        space = space.fixing(LENGTH, length.tokens)
    dropped = plan.dropped
    if length.tokens is not None and (why := _never_unchunked(plan, length.tokens)):
        space, dropped = space.without(CHUNKED), (*dropped, Dropped(CHUNKED, why))
    always = {**dict(plan.base.fixed), **dict(space.always)}
    return replace(
        plan, space=space, dropped=dropped, base=replace(plan.base, fixed=tuple(always.items())), length=length
    )


def _chosen(
    plan: StudyPlan, asked: int | None, needed: int, model: ModelLength | None, found: tuple[KvRoom, ModelMemory] | None
) -> RequestLength:
    own = None if model is None else model.own
    room = None if found is None else found[0].kv_tokens
    constant = {**dict(plan.space.fixed), **dict(plan.space.always)}.get(LENGTH)
    parameter = next((p for p in plan.parameters if p.flag == LENGTH), None)
    if LENGTH in flag_names(plan.base.extra, short=knobs.SHORT_OPTIONS):
        given = dict(plan.given).get(LENGTH)
        tokens = given if isinstance(given, int) and given > 0 else None
        return RequestLength(tokens, LengthSource.OWN_FLAG, own, room)
    if parameter is not None:
        numbers = [c for c in parameter.choices if isinstance(c, int)] or [int(parameter.low)]
        return RequestLength(min(numbers), LengthSource.SEARCHED, own, room)
    if isinstance(constant, int) and constant < (asked or needed):
        who = f"--max-model-len asks for {asked}" if asked else f"the workload needs {needed}"
        raise UsageError(
            f"space {plan.space.name!r} fixes {LENGTH} to {constant}, {who}",
            hint=f"take {LENGTH} out of the space",
        )
    if asked is not None:
        return RequestLength(asked, LengthSource.ASKED, own, room)
    if constant is not None:
        return RequestLength(constant if isinstance(constant, int) else None, LengthSource.SPACE, own, room)
    if own is None:
        source = LengthSource.NOT_ON_DISK if folder_of(plan.model) is None else LengthSource.LENGTH_UNKNOWN
        return RequestLength(needed, source, own, room)
    if found is None:
        return RequestLength(needed, LengthSource.MEMORY_UNKNOWN, own, room)
    if found[0].sequences(own * (UNMODELLED_FACTOR if found[1].not_modelled else 1)).low >= 1:
        return RequestLength(max(own, needed), LengthSource.MODEL, own, room)
    return RequestLength(needed, LengthSource.NO_ROOM, own, room)


def _never_unchunked(plan: StudyPlan, tokens: int) -> str | None:
    """Say why chunked prefill cannot be off: without it a batch must hold a whole prompt."""
    if CHUNKED not in {p.flag for p in plan.parameters}:
        return None
    searched = [p for p in plan.parameters if p.flag == BATCHED and p.kind is not Kind.CHOICE]
    highest = searched[0].high if searched else dict(plan.given).get(BATCHED)
    if not isinstance(highest, (int, float)) or highest >= tokens:
        return None
    return f"off needs {BATCHED} of at least {LENGTH} {tokens}, above {highest:g}"
