"""Which of a run's policies `last`, `best` or a number means. Imports no torch: it is asked before anything starts."""

from __future__ import annotations

from dav_ray.config.stored import StoredRun
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show
from dav_ray.run_dir.policy_files import folder, versions
from dav_ray.run_dir.records import metric_rows

MEASURE = "evaluate/reward_mean"  # of samples without search: by it a policy is the best


def chosen(stored: StoredRun, wanted: int | str, key: str) -> int:
    """The version that `best`, `last` or a number means in a run. UserError that begins with `key` where it is none."""
    key = f"{key} {wanted}"
    uri, last = stored.storage.uri, stored.manifest.policy_version
    there = [version for version in versions(stored.storage) if version <= last]
    if wanted == "last" and last and last not in there:
        raise UserError(
            f"{show(uri, PATH)}: {folder(last)} is absent, the run's last policy; allowed: a run that is whole"
        )
    if not there:
        raise UserError(f"{key}: {show(uri, PATH)} has no policy yet; allowed: a run with a closed round")
    if wanted == "last":
        wanted = last
    if wanted == "best":
        rows = metric_rows(stored.storage.read_lines("metrics.jsonl"))
        means = {version: rows.get((version, "evaluate"), {}).get(MEASURE) for version in there}
        known = {version: mean for version, mean in means.items() if isinstance(mean, int | float)}
        if not known:
            raise UserError(f"{key}: no policy of {show(uri, PATH)} has a mean reward; allowed: last, a version")
        return max(known, key=lambda version: (known[version], -version))
    if wanted not in there:
        listed = ", ".join(map(str, there))
        raise UserError(f"{key}: {show(uri, PATH)} has no such policy; allowed: best, last, {listed}")
    return int(wanted)


def wanted_version(stored: StoredRun, text: str) -> int:
    """UserError naming --version where it means no policy. 0 is what the run started from."""
    if text == "0" or text == "last" and stored.manifest.policy_version == 0:
        return 0
    if text not in ("best", "last") and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"--version {show(text)}: is no version; allowed: best, last or a whole number >= 0")
    return chosen(stored, int(text) if text.isdecimal() else text, "--version")
