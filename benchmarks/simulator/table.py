"""A study as text for the terminal."""

from benchmarks.simulator.study import Result, Study, describe, is_reconstructed
from benchmarks.simulator.verdict import judge

_HEAD = f"{'policy':<11}{'setting':<44}{'cost $':>18}{'SLO %':>16}{'$/M tok':>9}{'GPU h':>8}{'CPU h':>8}{'/oracle':>9}"


def render(found: Study) -> str:
    """The trace, its references, and a line for each policy."""
    trace, references = found.trace, found.references
    lines = [
        "",
        f"{trace.name}: {len(trace):,} requests in {trace.span_s / 3600.0:.2f} h"
        + (" (reconstructed from published statistics)" if is_reconstructed(trace.name) else ""),
    ]
    if references:
        one, every = (references.one_pool_full, references.one_pool), (references.all_pools_full, references.all_pools)
        bounds = [
            f"DP {label} ${full.lower_usd:.2f} (u=1) ${real.lower_usd:.2f} (u=0.85)"
            for label, (full, real) in (("one pool", one), ("all pools", every))
        ]
        lines.append(f"  references: work bound ${references.work_bound_usd:.2f}, {', '.join(bounds)}")
    lines += ["  " + _HEAD, *("  " + _line(result, found) for result in found.results)]
    verdict = judge(describe(found))
    if verdict:
        better = ", ".join(verdict["dominated_by"]) or "none"
        lines.append(f"  peers better on both cost and SLO: {better}")
    return "\n".join(lines)


def _line(result: Result, found: Study) -> str:
    usd, slo = result.usd, result.slo
    setting = ", ".join(f"{name} {value:g}" for name, value in result.setting.items())
    setting = f"{setting} (default)" if result.is_default else setting
    hours = [sum(outcome.replica_hours[index] for outcome in result.outcomes) / len(result.outcomes)
             for index in range(len(found.scenario.pools))]  # fmt: skip
    primary = sum(hour for hour, pool in zip(hours, found.scenario.pools, strict=True) if pool.fallback is None)
    ratio = f"{usd.mean / found.references.all_pools.lower_usd:.2f}" if found.references else "-"
    per_million = sum(outcome.usd_per_million_tokens for outcome in result.outcomes) / len(result.outcomes)
    return (
        f"{result.policy:<11}{setting:<44}{usd.mean:>10.2f} ± {usd.ci95:<5.2f}"
        f"{slo.mean * 100:>8.2f} ± {slo.ci95 * 100:<5.2f}"
        f"{per_million:>9.3f}{primary:>8.2f}{sum(hours) - primary:>8.2f}{ratio:>9}"
    )
