"""The learning rate of each step: warm-up, then cosine, linear, warm-up-stable-decay, or constant."""

import math

from minigpt.config import Config


def learning_rate(step: int, max_steps: int, config: Config) -> float:
    """Learning rate of the update that makes step `step` (the first one is 1) of a run of `max_steps`.

    Cosine to a floor: Loshchilov and Hutter 2017, "SGDR", equation 5. Warm-up-stable-decay: Hu et al. 2024, "MiniCPM",
    section 4.2, with a linear decay. The warm-up rises linearly and reaches the peak just after its last step.
    """
    peak, schedule = config.optimizer.lr, config.schedule
    done = step - 1  # updates made before this one
    if done < schedule.warmup_steps:
        return peak * step / (schedule.warmup_steps + 1)
    if schedule.kind == "constant":
        return peak
    start = schedule.warmup_steps
    if schedule.kind == "wsd":
        start = max(start, max_steps - round(schedule.decay_fraction * max_steps))
    progress = min(1.0, max(0.0, (done - start) / max(1, max_steps - start)))
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1.0 - progress
    return schedule.min_lr + share * (peak - schedule.min_lr)
