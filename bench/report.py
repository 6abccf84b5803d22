"""Results as text: ratios with their targets, tables for the terminal and the documentation, plots."""

import json
import os

import plots

BEGIN = "<!-- Written by bench/run.py from here -->"
END = "<!-- to here -->"


def ratios(results):
    """What the numbers say of each other: (what, value, unit, target at most or None)."""
    true = results["one_shot"]["true"]
    exec_, memory, mcp, python = (results[name] for name in ("exec", "memory", "mcp", "python"))
    found = [
        ("`pyro run true` to the floor", _ratio(true, "pyro run", "floor"), "×", 1.3),
        ("the same with a spare VM to the floor", _ratio(true, "pyro run, spare", "floor"), "×", 0.6),
        ("`pyro run true` to a cold boot", _ratio(true, "pyro run", "cold boot"), "×", 0.125),
        ("`pyro run true` to gVisor", _ratio(true, "pyro run", "gVisor"), "×", 1),
        ("the same with a spare VM to gVisor", _ratio(true, "pyro run, spare", "gVisor"), "×", 1),
        ("`pyro run true` to podman", _ratio(true, "pyro run", "podman"), "×", 1),
        ("the same with a spare VM to podman", _ratio(true, "pyro run, spare", "podman"), "×", 1),
        ("command in a live VM to the bare port", _ratio(exec_, "engine", "raw port"), "×", 1.5),
        ("`pyro task exec` to the engine's exec and the start of pyro", _task_exec(results["tasks"]["exec"]), "×", 3),
        ("last 100 of 1,000 commands in a task to the first 100",
         _ratio(results["tasks"]["in_a_row"], "last tenth", "first tenth"), "×", 1.2),
        ("growth of its supervisor meanwhile", results["tasks"]["in_a_row"]["supervisor_growth_mib"], "MiB", 1),
        ("`vm_run` of `true` by MCP to the engine's own run", _ratio(mcp["run"], "`vm_run`", "engine"), "×", 1.1),
        ("the same with a spare VM", _ratio(mcp["run"], "`vm_run`, spare", "engine, spare"), "×", 1.1),
        ("start of an MCP server to its list of tools", mcp["start"]["server start to the list of tools"].get("median"), "ms", 50),
        ("`exec_task` in Python, beyond the engine's own", _beyond(python["exec"]), "ms", 1),
        ("the same to the engine's own", _ratio(python["exec"], "package", "engine"), "×", None),
        ("`status_task` in Python, beyond the engine's own", _beyond(python["status"]), "ms", 1),
        ("`import pyro_mcp` to `import json, subprocess`", _ratio(python["import"], "pyro_mcp", "json, subprocess"), "×", 1.5),
        ("PSS per VM of 16, before its first command", _pss(memory, "16", "idle"), "MiB", 25),
        ("PSS per VM of 16, after `true`", _pss(memory, "16", "used"), "MiB", None),
        ("start with 8 GiB to one with 256 MiB", _ratio(results["memory_size"], "8192", "256"), "×", 1.3),
        ("start beside 50 VMs to one beside none", _ratio(results["live"], "50", "0"), "×", 2.0),
    ]
    return [entry for entry in found if entry[1] is not None]


def _pss(memory, count, when):
    """QEMU and supervisor of one VM."""
    if count not in memory:
        return None
    return sum(memory[count][when][f"{part}_pss_mib"] for part in ("qemu", "supervisor"))


def _task_exec(rows):
    """The command line's time in terms of what it cannot do without."""
    needed = [rows[name].get("median") for name in ("engine", "start of the command line")]
    if None in needed or "median" not in rows["command line"]:
        return None
    return rows["command line"]["median"] / sum(needed)


def _ratio(group, name, base):
    if "median" in group.get(name, {}) and "median" in group.get(base, {}):
        return group[name]["median"] / group[base]["median"]
    return None


def _beyond(group):
    return group["difference within a turn"].get("median")


def _cell(row, digits=0):
    if not row:
        return ""
    if "unavailable" in row:
        return "not available"
    return f"{row['median']:.{digits}f} ({row['p25']:.{digits}f} to {row['p75']:.{digits}f})"


def _table(header, rows):
    widths = [max(len(str(row[column])) for row in [header, *rows]) for column in range(len(header))]
    rows = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows)


def text(results):
    """All of it as Markdown."""
    machine = results["machine"]
    one_shot = results["one_shot"]
    names = list(one_shot["true"])
    parts = [
        f"Measured on {machine['date']}: pyro {machine['pyro']}, QEMU {machine['qemu']}, accelerator "
        f"**{machine['accelerator']}**, {machine['cores']} cores of {machine['cpu']}, {machine['memory_mib']} MiB, "
        f"Linux {machine['kernel']}.",
        "### Ratios",
        _table(["What", "Value", "Target", ""], [
            [what, f"{value:.2f} {unit}", f"at most {limit:g}" if limit else "",
             "" if not limit else "met" if value <= limit else "**missed**"]
            for what, value, unit, limit in ratios(results)]),
        "### One command from nothing to nothing left, ms",
        _table(["Contender", *(f"`{command}`" for command in one_shot), "`true`, times the floor"], [
            [name, *(_cell(one_shot[command].get(name)) for command in one_shot),
             f"{value:.2f}" if (value := _ratio(one_shot["true"], name, "floor")) else ""] for name in names]),
        "### VMs that stay",
        _table(["What", "Median (quartiles)"], [
            ["create, start and a first command, ms", _cell(results["first_command"])],
            *([f"`/bin/true` in a live VM, {name}, ms", _cell(row, 2)] for name, row in results["exec"].items()),
            *([f"{name}, MB/s", _cell(row)] for name, row in results["throughput"].items())]),
        "### Tasks, ms",
        _table(["What", "Median (quartiles)"], [
            ["`pyro task create` and the first `pyro task exec`",
             _cell(results["tasks"]["create"]["create and first command"])],
            *([f"`true` in a task, {name}", _cell(row, 2)] for name, row in results["tasks"]["exec"].items()),
            *([f"1,000 commands in a row, {name}", _cell(results["tasks"]["in_a_row"][name], 2)]
              for name in ("first tenth", "last tenth"))]),
        "### MCP, ms",
        _table(["What", "Median (quartiles)"], [
            *([name, _cell(row, 2)] for name, row in results["mcp"]["start"].items()),
            *([f"`true` in a VM of its own, {name}", _cell(row)] for name, row in results["mcp"]["run"].items())]),
        "### Python, ms",
        _table(["What", "Median (quartiles)"], [
            *([f"`true` in a task, {name}", _cell(row, 2)] for name, row in results["python"]["exec"].items()),
            *([f"the task's state, {name}", _cell(row, 2)] for name, row in results["python"]["status"].items()),
            *([name, _cell(row, 2)] for name, row in results["python"]["start"].items()),
            *([f"`import {names}`", _cell(row, 2)] for names, row in results["python"]["import"].items())]),
        "### Many at once",
        _table(["VMs", "All have answered `true`, ms"], [
            [count, _cell(row)] for count, row in results["at_once"].items()]),
        "### Memory per VM, MiB",
        _table(["VMs", "Command", "QEMU: RSS", "PSS", "Supervisor: RSS", "PSS", "PSS together"], [
            [count, {"idle": "none yet", "used": "after `true`"}[when], *(f"{row[key]:.1f}" for key in (
                "qemu_rss_mib", "qemu_pss_mib", "supervisor_rss_mib", "supervisor_pss_mib")),
             f"{_pss(results['memory'], count, when):.1f}"]
            for when in ("idle", "used") for count, rows in results["memory"].items() for row in [rows[when]]]),
        "### Start to first command, ms",
        _table(["Memory, MiB", "Median (quartiles)"], [
            [size, _cell(row)] for size, row in results["memory_size"].items()]),
        _table(["VMs already there", "Median (quartiles)"], [
            [count, _cell(row)] for count, row in results["live"].items()]),
    ]
    return "\n\n".join(parts)


def write(results, directory, page):
    """The raw results, the plots and the tables in the documentation."""
    os.makedirs(directory, exist_ok=True)
    _put(f"{directory}/results.json", json.dumps(results, indent=2) + "\n")
    for name, plot in _plots(results).items():
        _put(f"{directory}/{name}.svg", plot)
    with open(page) as file:
        before, rest = file.read().split(BEGIN)
    _put(page, f"{before}{BEGIN}\n\n{text(results)}\n\n{END}{rest.split(END)[1]}")


def _put(path, content):
    with open(path, "w") as file:
        file.write(content)


def _plots(results):
    def there(group):
        return [(name, row) for name, row in group.items() if "median" in row]

    def points(group):
        return [(int(name), row) for name, row in there(group)]

    def exactly(value):
        return {"median": value, "p25": value, "p75": value}
    memory = results["memory"]
    pss = {name: [(int(count), exactly(_pss(memory, count, when))) for count in memory]
           for name, when in (("no command yet", "idle"), ("after true", "used"))}
    sizes, live = points(results["memory_size"]), points(results["live"])
    return {
        "one-shot": plots.bars("One command (true), from nothing to nothing left", "ms", there(results["one_shot"]["true"])),
        "at-once": plots.lines("Until all VMs have answered", "VMs at once", "ms", {"": points(results["at_once"])}),
        "memory": plots.lines("Memory per idle VM (PSS)", "VMs", "MiB",
                              pss, 25),
        "memory-size": plots.lines("Start to first command, by memory", "MiB", "ms", {"": sizes},
                                   sizes[0][1]["median"] * 1.3),
        "live": plots.lines("Start to first command, by live VMs", "VMs already there", "ms", {"": live},
                            live[0][1]["median"] * 2),
    }
