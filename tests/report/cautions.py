"""A caution of every kind, with every sign."""

from __future__ import annotations

from tuner.telemetry.cautions import Caution, CautionKind, Observation, Sign

EVERY_CAUTION = (
    Caution(
        CautionKind.CLIENT_BOUND,
        (Observation(Sign.CPU_SHARE, 0.93), Observation(Sign.LAG_MS, 12.0), Observation(Sign.LATE_MS, 18.1)),
    ),
    Caution(CautionKind.FEW_REQUESTS, (Observation(Sign.COMPLETED, 301.0),)),
    Caution(CautionKind.THROTTLED, (Observation(Sign.THROTTLE_REASON, "power cap", 0),)),
    Caution(CautionKind.FOREIGN_PROCESS, (Observation(Sign.PROCESS_ID, 4711.0, 1),)),
    Caution(CautionKind.DRIFT, (Observation(Sign.FIRST_HALF_MS, 310.0), Observation(Sign.SECOND_HALF_MS, 402.0))),
    Caution(CautionKind.HOST_BUSY, (Observation(Sign.FOREIGN_CORES, 1.3),)),
    Caution(CautionKind.METRICS_MISSING, (Observation(Sign.NO_METRICS), Observation(Sign.NO_PREEMPTION_COUNTER))),
)
