"""How figures are written for people."""


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour; from a hundred hours on, days."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours / 24:.3g} days"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def amount(value: float) -> str:
    """Three digits and a unit: 950, 28.1k, 10.7M."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5 or unit == "E":
            return f"{value:.3g}{unit}"
        value /= 1000
    return str(value)


def memory(megabytes: float) -> str:
    """412 MB, 1.87 GB."""
    return f"{megabytes:.0f} MB" if megabytes < 999.5 else f"{megabytes / 1000:.3g} GB"
