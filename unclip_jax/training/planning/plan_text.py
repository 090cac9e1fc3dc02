"""A plan as text, for a person who is about to rent the chips."""

from __future__ import annotations

from unclip_jax.training.planning.plan import Plan


def plan_text(plan: Plan) -> str:
    """Memory, work, floors and cost, a figure a line."""
    slices = f"{plan.slices} x " if plan.slices > 1 else ""
    head = (
        f"{plan.count:,} parameters on {slices}{plan.topology}: mesh data {plan.mesh['data']} x "
        f"fsdp {plan.mesh['fsdp']}, batch {plan.batch_size}, {plan.batch_size / plan.devices:g} a "
        f"device; compiled in {plan.compile_seconds:.0f} s"
    )
    return "\n\n".join([head, _memory(plan), _work(plan), _floors(plan)])


def _memory(plan: Plan) -> str:
    memory = plan.memory
    how = "an upper bound, see --exact" if plan.is_quick else "as training compiles"
    rows = {
        "parameters": size_text(memory.parameters),
        "their average": size_text(memory.average),
        "optimiser": size_text(memory.optimizer),
        "frozen CLIP": size_text(memory.frozen),
        "batch": size_text(memory.batch),
        "temporaries": size_text(memory.temporaries)
        + f", with gradients {size_text(memory.gradients)}",
        "program": size_text(memory.code),
        "in all": f"{size_text(memory.total)} of {memory.capacity / 1e9:.2f} GB: it fits, "
        f"{1 - memory.total / memory.capacity:.0%} free",
    }
    lines = [f"  {name:14} {text}" for name, text in rows.items()]
    return "\n".join([f"memory of a device ({how})", *lines])


def _work(plan: Plan) -> str:
    program = plan.program
    again = program.flops * plan.devices / plan.flops
    lines = [
        "work of a step",
        f"  {plan.flops:.3e} FLOP of the model, {plan.flops / plan.batch_size:.3e} a picture",
        (
            f"  {program.flops:.3e} FLOP a device, with what is computed again {again:.2f} times "
            "the model's"
        ),
        f"  {program.bytes_moved:.3e} bytes of HBM a device"
        + (", before fusion" if plan.is_quick else ""),
    ]
    for row in program.collectives:
        where = "between slices" if row.is_across else f"among {row.group}"
        lines.append(
            f"  {row.kind} {row.dtype} {where}: {row.count} times, largest "
            f"{size_text(row.largest)}, received {size_text(row.received)}"
        )
    return "\n".join(lines)


def _floors(plan: Plan) -> str:
    chip, floor = plan.chip, plan.step_floor
    compute, memory, network = (
        time_text(seconds)
        for seconds in (plan.compute_floor, plan.memory_floor, plan.network_floor)
    )
    return "\n".join(
        [
            f"floors at the published rates of {chip.name}",
            f"  compute {compute}, network {network}, memory {memory}"
            + (" before fusion, left out" if plan.is_quick else ""),
            (
                f"  a step takes {time_text(floor)} or more ({plan.bound}-bound): at most "
                f"{plan.batch_size / floor:,.0f} pictures/s, MFU {plan.mfu_ceiling:.0%}"
            ),
            (
                f"  {dollar_text(plan.dollars_per_million)} dollars or more for a million "
                f"pictures, at {chip.dollars_per_hour:.2f} a device and hour"
            ),
        ]
    )


def size_text(size: float) -> str:
    """Bytes in GB, or MB where there are few."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def time_text(seconds: float) -> str:
    """In seconds, or milliseconds or microseconds where there are few."""
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    return f"{1e3 * seconds:,.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:,.1f} µs"


def dollar_text(dollars: float) -> str:
    """With two decimals, or two digits where it is less than a cent."""
    return f"{dollars:,.2f}" if dollars >= 0.01 else f"{dollars:.2g}"
