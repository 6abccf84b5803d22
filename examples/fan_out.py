"""Runs eight commands concurrently, each in its own VM, and prints a table of the results."""

import asyncio

from pyro_mcp import AsyncPyro


async def main() -> None:
    async with AsyncPyro(max_active_vms=8) as pyro:
        runs = [
            pyro.run_in_vm(environment="debian:12", command=f"echo $(({number} * {number}))", timeout_seconds=60)
            for number in range(8)
        ]
        print(f"{'number':>6} {'square':>6} {'VM':>12} {'ms':>5}")
        for number, result in enumerate(await asyncio.gather(*runs)):
            print(f"{number:6} {result['stdout'].strip():>6} {result['vm_id']} {result['duration_ms']:5}")


asyncio.run(main())
