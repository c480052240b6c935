"""Search for the vLLM launch flags with the highest QPS within latency limits.

In a notebook: `study = tuner.load_study("studies/NAME")`, see docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.notebook import Study, load_study

__all__ = ["Study", "load_study"]


def __getattr__(name: str) -> object:
    """Import pandas and plotly only for those who ask for a study."""
    if name in __all__:
        from tuner import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
